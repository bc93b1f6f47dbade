use std::fmt;

use super::Object;

/// What is wrong with a field whose type is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.rules[0].matches[1].path.value`
    pub path: String,
    /// A sentence that says what to do.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl std::error::Error for FieldError {}

/// Everything that can be known to be wrong from the object alone.
pub fn validate(_object: &Object) -> Vec<FieldError> {
    Vec::new()
}
