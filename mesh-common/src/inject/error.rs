use std::fmt;

/// Why a pod cannot be injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// `spec.containers[0].name`, from the pod or the template on.
    pub path: String,
    /// A sentence that says what to do.
    pub reason: String,
}

impl InjectError {
    pub(super) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    /// The same, seen from further out.
    pub fn within(self, prefix: &str) -> Self {
        let path = if prefix.is_empty() { self.path } else { format!("{prefix}.{}", self.path) };
        Self { path, reason: self.reason }
    }
}

impl fmt::Display for InjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

impl std::error::Error for InjectError {}
