//! The resource types, in the order in which they are sent.

use mesh_common::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    Cluster,
    Endpoints,
    Secret,
    Listener,
    Route,
    Name,
}

impl Type {
    /// The order in which what is new goes out: clients ask for endpoints and secrets when they have the cluster, and for
    /// routes when they have the listener.
    pub const ALL: [Self; 6] = [Self::Cluster, Self::Endpoints, Self::Secret, Self::Listener, Self::Route, Self::Name];

    /// The order in which what is gone goes out: nothing refers to an earlier type.
    pub const REMOVAL: [Self; 6] =
        [Self::Name, Self::Listener, Self::Route, Self::Cluster, Self::Endpoints, Self::Secret];

    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.url() == url)
    }

    pub fn url(self) -> &'static str {
        match self {
            Self::Cluster => names::TYPE_CLUSTER,
            Self::Endpoints => names::TYPE_ENDPOINTS,
            Self::Secret => names::TYPE_SECRET,
            Self::Listener => names::TYPE_LISTENER,
            Self::Route => names::TYPE_ROUTE,
            Self::Name => names::TYPE_NAME,
        }
    }

    /// As in `meshctl proxy status` and in metrics.
    pub fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoints => "EDS",
            Self::Secret => "SDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Name => "NAME",
        }
    }

    /// The types that a client may ask for without naming anything, and of which a state-of-the-world response always
    /// holds the full set.
    pub fn full_set(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}
