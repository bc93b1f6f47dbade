//! The Helm chart in `deploy/chart`, built into the program. Its templates use nothing but `{{ .Values.a.b }}`,
//! `{{ .Release.Namespace }}` and one `if` around the whole, so that it is rendered here as Helm would.

use serde_json::{Map, Value, json};

use super::manifest::Manifest;
use super::values::Values;
use super::{ANNOTATION_VALUES, NAMESPACE};
use crate::failure::Failure;

const VALUES: &str = include_str!("../../../deploy/chart/values.yaml");

/// In the order in which they are written: what is referred to comes first, and the webhooks last, so that nothing depends
/// on a control plane before it is asked for.
const TEMPLATES: [(&str, &str); 8] = [
    ("serviceaccount.yaml", include_str!("../../../deploy/chart/templates/serviceaccount.yaml")),
    ("rbac.yaml", include_str!("../../../deploy/chart/templates/rbac.yaml")),
    ("service.yaml", include_str!("../../../deploy/chart/templates/service.yaml")),
    ("poddisruptionbudget.yaml", include_str!("../../../deploy/chart/templates/poddisruptionbudget.yaml")),
    ("podmonitor.yaml", include_str!("../../../deploy/chart/templates/podmonitor.yaml")),
    ("cni.yaml", include_str!("../../../deploy/chart/templates/cni.yaml")),
    ("deployment.yaml", include_str!("../../../deploy/chart/templates/deployment.yaml")),
    ("webhooks.yaml", include_str!("../../../deploy/chart/templates/webhooks.yaml")),
];

const CRDS: [&str; 9] = [
    include_str!("../../../deploy/crds/meshctl.dev_authorizationpolicies.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_directresponses.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_faultinjections.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_meshconfigs.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_peerauthentications.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_requestauthentications.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_telemetries.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_trafficpolicies.yaml"),
    include_str!("../../../deploy/crds/meshctl.dev_workloadentries.yaml"),
];

pub fn defaults() -> Result<Values, Failure> {
    match serde_saphyr::from_str::<Map<String, Value>>(VALUES) {
        Ok(tree) => Ok(Values::new(tree)),
        Err(error) => Err(broken("values.yaml", &error.to_string())),
    }
}

/// The definitions of our own kinds.
pub fn crds() -> Result<Vec<Manifest>, Failure> {
    CRDS.iter().map(|text| Ok(documents("crds", text)?.remove(0))).collect()
}

/// The namespace, which is not a part of the chart: Helm makes it itself.
pub fn namespace(values: &Values) -> Result<Manifest, Failure> {
    let settings = values.differing(&defaults()?).into_iter().filter(|s| s.path != "image.tag");
    let settings: Map<String, Value> = settings.map(|s| (s.path, Value::String(s.value))).collect();
    Ok(Manifest(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {
                "app.kubernetes.io/part-of": "mesh",
                "pod-security.kubernetes.io/enforce": "restricted",
            },
            "annotations": {ANNOTATION_VALUES: Value::Object(settings).to_string()},
        },
    })))
}

/// What an earlier installation was given, as [`namespace`] has kept it.
pub fn kept(annotation: &str) -> Vec<super::values::Setting> {
    let settings: Map<String, Value> = serde_json::from_str(annotation).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    settings.iter().filter_map(|(path, value)| format!("{path}={}", text(value)?).parse().ok()).collect()
}

/// All objects of the chart that these values want.
pub fn render(values: &Values) -> Result<Vec<Manifest>, Failure> {
    some(values, |condition| values.get(condition).as_deref() == Some("true"))
}

/// All objects that the chart has for any values.
pub fn everything(values: &Values) -> Result<Vec<Manifest>, Failure> {
    some(values, |_| true)
}

fn some(values: &Values, holds: impl Fn(&str) -> bool) -> Result<Vec<Manifest>, Failure> {
    let mut manifests = Vec::new();
    for (name, template) in TEMPLATES {
        let body = match template.strip_prefix("{{- if .Values.").and_then(|rest| rest.split_once(" }}\n")) {
            None => template,
            Some((condition, rest)) if holds(condition) => rest.trim_end().trim_end_matches("{{- end }}"),
            Some(_) => continue,
        };
        manifests.extend(documents(name, &substitute(name, body, values)?)?);
    }
    Ok(manifests)
}

fn substitute(name: &str, template: &str, values: &Values) -> Result<String, Failure> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, after) = after.split_once("}}").ok_or_else(|| broken(name, "an expression has no end"))?;
        let expression = expression.trim();
        let value = match expression.strip_prefix(".Values.") {
            Some(path) => values.get(path),
            None if expression == ".Release.Namespace" => Some(NAMESPACE.to_owned()),
            None => None,
        };
        text.push_str(before);
        text.push_str(&value.ok_or_else(|| broken(name, &format!("there is no {expression}")))?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

pub(super) fn documents(name: &str, text: &str) -> Result<Vec<Manifest>, Failure> {
    let read = serde_saphyr::from_multiple::<Value>(text).map_err(|e| {
        // The templates are right, so it is a setting.
        Failure::refused(format!("With these settings {name} is no valid YAML any more: {e}."))
            .hint("See the values that --set gives.")
    })?;
    Ok(read.into_iter().map(Manifest).collect())
}

fn broken(name: &str, reason: &str) -> Failure {
    Failure::new(format!("The built-in chart is broken: {name}: {reason}."))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::{Path, PathBuf};

    use super::*;

    fn chart() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart")
    }

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn every_file_of_the_chart_is_built_in() {
        let templates: BTreeSet<String> = TEMPLATES.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut files = names(&chart().join("templates"));
        assert!(files.remove("NOTES.txt"), "what only Helm has to say");
        assert_eq!(templates, files);
        assert_eq!(CRDS.len(), names(&chart().join("crds")).len());
    }

    #[test]
    fn the_chart_is_of_this_version() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(defaults().unwrap().get("image.tag").as_deref(), Some(version));
        let text = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
        assert!(
            text.contains(&format!("\nversion: {version}\n")) && text.contains(&format!("\nappVersion: {version}\n"))
        );
    }

    #[test]
    fn settings_arrive_where_they_belong() {
        let mut values = defaults().unwrap();
        for setting in ["image.registry=registry.local:5000/x", "image.tag=9.9", "control.replicas=7"] {
            values.set(&setting.parse().unwrap()).unwrap();
        }
        let manifests = render(&values).unwrap();
        let deployment = manifests.iter().find(|m| m.kind() == "Deployment").unwrap();
        assert_eq!(deployment.0["spec"]["replicas"], 7);
        let container = &deployment.0["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.local:5000/x/mesh-control:9.9");
        assert!(manifests.iter().all(|m| m.namespace().is_none_or(|namespace| namespace == NAMESPACE)));

        let kept = kept(namespace(&values).unwrap().0["metadata"]["annotations"][ANNOTATION_VALUES].as_str().unwrap());
        let names: Vec<&str> = kept.iter().map(|s| s.path.as_str()).collect();
        assert_eq!(names, ["control.replicas", "image.registry"], "the version is not kept");
    }

    /// All rules in CEL, with where they are.
    fn rules<'a>(value: &'a Value, path: &str, found: &mut Vec<(String, &'a Value)>) {
        let mut each = |name: &str, value: &'a Value| match name {
            "x-kubernetes-validations" => {
                let list = value.as_array().unwrap();
                found.extend(list.iter().map(|rule| (path.to_owned(), rule)));
            }
            _ => rules(value, &format!("{path}.{name}"), found),
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| each(name, value)),
            Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| each(&at.to_string(), value)),
            _ => {}
        }
    }

    /// Without one, whoever breaks a rule is shown the expression.
    #[test]
    fn every_rule_of_our_kinds_says_what_is_wrong() {
        let crds = crds().unwrap();
        let mut found = Vec::new();
        crds.iter().for_each(|crd| rules(&crd.0, crd.name(), &mut found));
        assert!(found.len() > 80, "only {} rules", found.len());
        for (path, rule) in found {
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.split_whitespace().count() >= 3, "{path}: {rule}");
        }
    }

    #[test]
    fn every_setting_is_used() {
        let all: String = TEMPLATES.iter().map(|(_, text)| *text).collect();
        for name in defaults().unwrap().names() {
            let used = [format!("{{{{ .Values.{name} }}}}"), format!("{{{{- if .Values.{name} }}}}")];
            assert!(used.iter().any(|used| all.contains(used)), "{name} has no effect");
        }
    }

    /// Which keeps one of two replicas, and lets the node of an only one be drained.
    #[test]
    fn a_drain_takes_one_replica_at_a_time_and_an_only_one_too() {
        let budget = render(&defaults().unwrap()).unwrap().into_iter().find(|m| m.kind() == "PodDisruptionBudget");
        let budget = &budget.unwrap().0["spec"];
        assert_eq!((&budget["maxUnavailable"], budget.get("minAvailable")), (&json!(1), None));
    }

    #[test]
    fn the_plugin_of_the_nodes_is_there_when_it_is_wanted() {
        let daemon_set = |manifests: Vec<Manifest>| manifests.into_iter().find(|m| m.kind() == "DaemonSet");
        let mut values = defaults().unwrap();
        assert_eq!(daemon_set(render(&values).unwrap()), None);
        assert!(daemon_set(everything(&values).unwrap()).is_some());
        for setting in ["cni.enabled=true", "cni.confDir=/etc/net"] {
            values.set(&setting.parse().unwrap()).unwrap();
        }
        let Manifest(found) = daemon_set(render(&values).unwrap()).unwrap();
        let pod = &found["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"][1]["hostPath"]["path"], "/etc/net");
        assert_eq!(pod["containers"][0]["args"][0], "cni-install");
    }

    #[test]
    fn monitors_are_there_when_they_are_wanted() {
        let monitors = |values: &Values| -> Vec<Manifest> {
            render(values).unwrap().into_iter().filter(|m| m.kind() == "PodMonitor").collect()
        };
        let mut values = defaults().unwrap();
        assert_eq!(monitors(&values), []);
        for setting in ["metrics.podMonitor.enabled=true", "metrics.podMonitor.interval=7s"] {
            values.set(&setting.parse().unwrap()).unwrap();
        }
        let found = monitors(&values);
        assert_eq!(found.iter().map(Manifest::name).collect::<Vec<_>>(), ["mesh-control", "mesh-proxy"]);
        assert!(found.iter().all(|m| m.0["spec"]["podMetricsEndpoints"][0]["interval"] == "7s"));
        assert_eq!(found[0].resource().plural, "podmonitors");
    }

    /// The real Helm, when `MESH_HELM` names it, makes the same of the chart.
    #[test]
    fn helm_renders_the_same_objects() {
        let Some(helm) = std::env::var_os("MESH_HELM") else { return };
        let cases: [&[&str]; 5] = [
            &[],
            &["metrics.podMonitor.enabled=true", "metrics.podMonitor.interval=10s"],
            &["cni.enabled=true"],
            &["control.replicas=1"],
            &["control.replicas=3", "image.tag=1.2.3", "proxy.log=debug", "cni.enabled=true", "cni.confDir=/etc/net"],
        ];
        for settings in cases {
            let mut values = defaults().unwrap();
            let mut command = std::process::Command::new(&helm);
            command.args(["template", "mesh"]).arg(chart()).arg("--include-crds");
            command.args(["--namespace", NAMESPACE, "--kube-version", "1.34.0"]);
            for setting in settings {
                values.set(&setting.parse().unwrap()).unwrap();
                command.args(["--set", setting]);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let rendered = documents("helm", &String::from_utf8(output.stdout).unwrap()).unwrap();
            let ours = [crds().unwrap(), render(&values).unwrap()].concat();
            let by_name = |manifests: Vec<Manifest>| -> BTreeMap<String, Value> {
                manifests.into_iter().map(|manifest| (manifest.to_string(), manifest.0)).collect()
            };
            let (rendered, ours) = (by_name(rendered), by_name(ours));
            assert!(rendered.keys().eq(ours.keys()), "{settings:?}: {:?} {:?}", rendered.keys(), ours.keys());
            for (name, object) in rendered {
                assert_eq!(object, ours[&name], "{settings:?}: {name}");
            }
        }
        let mut elsewhere = std::process::Command::new(&helm);
        elsewhere.args(["template", "mesh"]).arg(chart()).args(["--namespace", "other", "--kube-version", "1.34.0"]);
        let output = elsewhere.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("--namespace mesh-system"), "{said}");
    }
}
