use serde::Serialize;

/// One thing that is so, or isn't, about an object: a Kubernetes condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs`, ...
    #[serde(rename = "type")]
    pub condition_type: &'static str,
    #[serde(serialize_with = "as_text")]
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Condition {
    pub fn is_problem(&self) -> bool {
        !self.status
    }
}

/// Kubernetes writes `"True"` and `"False"`.
fn as_text<S: serde::Serializer>(status: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *status { "True" } else { "False" })
}
