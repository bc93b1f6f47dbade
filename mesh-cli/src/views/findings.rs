//! What `check` looks at, and what it found.

use serde::Serialize;

use crate::output::{Cell, Table};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warning,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub level: Level,
    pub subject: String,
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(subject: &str, message: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject: subject.to_owned(), message: message.into(), remedy: None }
    }

    pub fn warning(subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { level: Level::Warning, subject: subject.to_owned(), message: message.into(), remedy }
    }

    pub fn error(subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::warning(subject, message, remedy) }
    }
}

pub fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&["STATE", "SUBJECT", "FINDING"]);
    for finding in findings {
        let state = match finding.level {
            Level::Ok => Cell::good("ok"),
            Level::Warning => Cell::warn("warning"),
            Level::Error => Cell::bad("ERROR"),
        };
        let remedy = finding.remedy.as_ref().map(|remedy| format!("\n-> {remedy}")).unwrap_or_default();
        table.row(vec![state, finding.subject.clone().into(), format!("{}{remedy}", finding.message).into()]);
    }
    table
}

/// `2 errors, 1 warning`; `None` when all is well.
pub fn summary(findings: &[Finding]) -> Option<String> {
    let count = |level: Level| findings.iter().filter(|f| f.level == level).count();
    let named = |count: usize, name: &str| match count {
        0 => None,
        1 => Some(format!("1 {name}")),
        many => Some(format!("{many} {name}s")),
    };
    let parts: Vec<String> =
        [named(count(Level::Error), "error"), named(count(Level::Warning), "warning")].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted_by_level() {
        let findings = [
            Finding::ok("a", "x"),
            Finding::error("b", "x", "y"),
            Finding::error("c", "x", "y"),
            Finding::warning("d", "x", "y"),
        ];
        assert_eq!(summary(&findings), Some("2 errors, 1 warning".to_owned()));
        assert_eq!(summary(&findings[..1]), None);
    }

    #[test]
    fn the_remedy_is_below_its_finding() {
        let text = table(&[Finding::warning("routes", "no backend", "start it")]).render(false, false, None);
        assert_eq!(text, "STATE    SUBJECT  FINDING\nwarning  routes   no backend\n                  -> start it\n");
    }
}
