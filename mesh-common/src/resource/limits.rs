use serde::{Deserialize, Serialize};

use super::{ByteRate, ByteSize, Duration};

/// What a workload takes; its own proxy refuses the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrafficLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<RequestLimit>,
    /// That are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<AtATime>,
    /// That are not answered to their end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<AtATime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// How large a request may be. As a whole: `{}` turns off what a wider scope says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Size {
    /// Names and values of its headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<ByteSize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<ByteSize>,
}

/// How fast bytes come and go at each workload. As a whole: `{}` turns off what a wider scope says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Bandwidth {
    /// To the application, of all callers together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<ByteRate>,
    /// From the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<ByteRate>,
    /// Of each caller's SPIFFE ID; those that have none share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_caller: Option<BothWays>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BothWays {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up: Option<ByteRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<ByteRate>,
}

impl Bandwidth {
    pub fn is_on(&self) -> bool {
        let each = self.per_caller();
        [self.up, self.down, each.up, each.down].iter().any(Option::is_some)
    }

    pub fn per_caller(&self) -> BothWays {
        self.per_caller.unwrap_or_default()
    }
}

/// How many at a time at each workload. As a whole: `{}` turns off what a wider scope says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AtATime {
    /// Of all callers together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Of each caller's SPIFFE ID; those that have none share one count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_caller: Option<u32>,
}

impl AtATime {
    pub fn is_on(&self) -> bool {
        self.max.is_some() || self.per_caller.is_some()
    }
}

/// A token bucket at each workload.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestLimit {
    pub rate: u32,
    /// Default: a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Duration>,
    /// That many at once, after a pause. Default: the rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Who has a bucket of its own. Default: nobody, all requests to the port share one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<LimitBy>,
    /// The header of [`LimitBy::Header`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

impl RequestLimit {
    pub fn per(&self) -> std::time::Duration {
        self.per.map_or(std::time::Duration::from_secs(1), Duration::get)
    }

    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.rate)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum LimitBy {
    /// The SPIFFE ID of whoever calls.
    CallerIdentity,
    /// Each value of a header; requests without it share one.
    Header,
}
