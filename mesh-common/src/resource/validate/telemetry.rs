use super::super::TelemetrySpec;
use super::Errors;
use super::fields::{label, targets};

pub(super) fn check(spec: &TelemetrySpec, errors: &mut Errors) {
    targets(errors, &spec.target_refs, &["Service"]);
    for (i, target) in spec.target_refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{i}].sectionName");
        errors.add_if(target.section_name.is_some(), path, "it holds for all ports of a workload");
    }
    let Some(tracing) = &spec.tracing else { return errors.add("spec.tracing", "`tracing` is needed") };
    let empty = tracing.enabled.is_none() && tracing.backend.is_none() && tracing.sampling_percent.is_none();
    errors.add_if(empty, "spec.tracing", "one of `enabled`, `backend` and `samplingPercent` is needed");
    if let Some(backend) = &tracing.backend {
        label(errors, "spec.tracing.backend.name", &backend.name);
        if let Some(namespace) = &backend.namespace {
            label(errors, "spec.tracing.backend.namespace", namespace);
        }
        errors.add_if(backend.port == 0, "spec.tracing.backend.port", "a port is a number from 1 to 65535");
    }
    if let Some(percent) = tracing.sampling_percent {
        let scaled = percent * 10_000.0;
        let fits = (0.0..=100.0).contains(&percent) && (scaled - scaled.round()).abs() < 1e-6;
        let message = "a percentage is from 0 to 100 and has at most four decimals";
        errors.add_if(!fits, "spec.tracing.samplingPercent", message);
    }
}
