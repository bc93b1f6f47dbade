//! Dashboards, rules and runbooks fit together and name only metrics that there are; each alert fires for its cause.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use mesh_common::metrics;
use mesh_e2e::dashboards::{self, Panel};

#[test]
fn panels_have_their_own_ids_and_places() {
    let all = dashboards::all().unwrap();
    assert_eq!(all.len(), 4);
    let uids: BTreeSet<&str> = all.iter().map(|it| it.json["uid"].as_str().unwrap()).collect();
    assert_eq!(uids.len(), 4);
    for dashboard in &all {
        let name = &dashboard.name;
        assert!(dashboard.json["schemaVersion"].as_u64().unwrap() >= 39, "{name}");
        let ids: BTreeSet<u64> = dashboard.panels.iter().map(|panel| panel.id).collect();
        assert_eq!(ids.len(), dashboard.panels.len(), "{name}: an id is there twice");
        let titles: BTreeSet<&str> = dashboard.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles.len(), dashboard.panels.len(), "{name}: a title is there twice");
        for (index, a) in dashboard.panels.iter().enumerate() {
            assert!(a.w > 0 && a.h > 0 && a.x + a.w <= 24, "{name}: {} is out of the grid", a.title);
            assert!(!a.queries.is_empty(), "{name}: {} asks nothing", a.title);
            for b in &dashboard.panels[index + 1..] {
                assert!(!overlap(a, b), "{name}: {} and {} overlap", a.title, b.title);
            }
        }
        for target in dashboard.json["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().unwrap())
        {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}");
        }
    }
}

fn overlap(a: &Panel, b: &Panel) -> bool {
    a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h
}

#[test]
fn every_variable_that_a_query_names_is_there() {
    for dashboard in dashboards::all().unwrap() {
        let list = dashboard.json["templating"]["list"].as_array().unwrap();
        let mut known: BTreeSet<&str> = list.iter().map(|it| it["name"].as_str().unwrap()).collect();
        known.insert("__rate_interval");
        for query in dashboard.panels.iter().flat_map(|panel| &panel.queries) {
            for after in query.split('$').skip(1) {
                let end = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
                assert!(known.contains(&after[..end]), "{}: there is no ${}: {query}", dashboard.name, &after[..end]);
            }
        }
    }
}

#[test]
fn dashboards_and_rules_name_only_metrics_that_there_are() {
    let known: BTreeSet<&str> = metrics::of_proxy().chain(metrics::of_control()).map(|m| m.name).collect();
    let mut seen = 0;
    let mut check = |what: &str, text: &str| {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
            // Recorded ones have colons; whoever names one that is not recorded is found by the test with Prometheus.
            if !(word.starts_with("mesh_") || word.starts_with("process_")) || word == "mesh_" {
                continue;
            }
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|it| word.strip_suffix(it)).unwrap_or(word);
            assert!(known.contains(word) || known.contains(base), "{what} names {word}, which there is not");
            seen += 1;
        }
    };
    for dashboard in dashboards::all().unwrap() {
        for query in dashboard.panels.iter().flat_map(|panel| &panel.queries) {
            check(&dashboard.name, query);
        }
    }
    for file in ["recording.yaml", "alerting.yaml"] {
        let text = std::fs::read_to_string(dashboards::rules().join(file)).unwrap();
        let expressions: String = text.lines().filter(|line| !line.contains("summary:")).collect::<Vec<_>>().join("\n");
        check(file, &expressions);
    }
    assert!(seen > 60, "only {seen} names were found");
}

#[test]
fn each_alert_has_a_test_and_a_runbook() {
    let rules = std::fs::read_to_string(dashboards::rules().join("alerting.yaml")).unwrap();
    let tests = std::fs::read_to_string(dashboards::rules().join("tests.yaml")).unwrap();
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let index = std::fs::read_to_string(root.join("docs/runbooks/README.md")).unwrap();
    for alert in &alerts {
        let path = format!("docs/runbooks/{alert}.md");
        assert!(rules.contains(&format!("runbook_url: {path}\n")), "{alert} names no runbook");
        let page = std::fs::read_to_string(root.join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        for part in [format!("# {alert}\n"), "\n## See\n".to_owned(), "\n## Cure\n".to_owned()] {
            assert!(page.contains(&part), "{path} has no {part:?}");
        }
        assert!(index.contains(&format!("]({alert}.md)")), "{alert} is not in the list of runbooks");
        // Once where it fires, and once where it does not.
        assert!(tests.matches(&format!("alertname: {alert}\n")).count() >= 2, "{alert} has no tests");
    }
    let pages = std::fs::read_dir(root.join("docs/runbooks")).unwrap().count();
    assert_eq!(pages, alerts.len() + 1, "a runbook is of no alert");
}

#[test]
fn promtool_finds_the_rules_right() {
    for args in [&["check", "rules", "recording.yaml", "alerting.yaml"][..], &["test", "rules", "tests.yaml"]] {
        let output = Command::new("promtool").args(args).current_dir(dashboards::rules()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
