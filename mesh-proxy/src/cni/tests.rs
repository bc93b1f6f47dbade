use super::*;

fn config(annotations: Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "n", "type": "mesh-cni",
        "runtimeConfig": {POD_ANNOTATIONS: annotations},
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.2/16"}]}
    })
}

fn code(command: &str, netns: Option<&Path>, config: &Value) -> u32 {
    run(command, netns, config).unwrap_err().code
}

#[test]
fn a_pod_outside_of_the_mesh_is_passed_on() {
    for annotations in [json!({}), json!({"meshctl.dev/injected": "{}"}), Value::Null] {
        let config = config(annotations);
        // Its network is not even looked at.
        assert_eq!(run("ADD", None, &config).unwrap(), config["prevResult"]);
        assert_eq!(run("CHECK", None, &config), Ok(Value::Null));
    }
}

#[test]
fn speaks_as_the_specification_says() {
    let versions = run("VERSION", None, &json!({"cniVersion": "1.0.0"})).unwrap();
    assert_eq!(versions["supportedVersions"], json!(VERSIONS));
    let meshed = config(json!({"meshctl.dev/interception": "cni"}));
    for command in ["DEL", "GC", "STATUS"] {
        assert_eq!(run(command, None, &meshed), Ok(Value::Null));
    }
    assert_eq!(code("ADD", None, &meshed), INVALID_ENVIRONMENT);
    assert_eq!(code("ADD", Some(Path::new("/proc/self/ns/nothing")), &meshed), IO);
    assert_eq!(code("FLY", None, &meshed), INVALID_ENVIRONMENT);
    assert_eq!(code("ADD", None, &Value::Null), UNREADABLE);
    assert_eq!(code("ADD", None, &json!({"cniVersion": "2.0.0"})), INCOMPATIBLE_VERSION);
    let wrong = config(json!({"meshctl.dev/interception": "cni", "meshctl.dev/exclude-inbound-ports": "x"}));
    let failure = run("ADD", None, &wrong).unwrap_err();
    assert_eq!(failure.code, INVALID_ANNOTATIONS);
    assert!(failure.message.contains("exclude-inbound-ports"), "{}", failure.message);
}

/// In a network of its own, which stands for the pod's.
#[test]
fn writes_the_rules_of_the_init_container_into_the_pod() {
    if !intercept::tests::runs_in_namespace("cni::tests::writes_the_rules_of_the_init_container_into_the_pod") {
        return;
    }
    let netns = Some(Path::new("/proc/self/ns/net"));
    let config = config(json!({"meshctl.dev/interception": "cni", "meshctl.dev/exclude-inbound-ports": "22"}));
    assert_eq!(code("CHECK", netns, &config), NO_INTERCEPTION);
    assert_eq!(run("ADD", netns, &config).unwrap(), config["prevResult"]);
    assert_eq!(run("CHECK", netns, &config), Ok(Value::Null));
    intercept::self_test(&Rules::default()).unwrap();
    let exclusions = exclusions(&config).unwrap().unwrap();
    assert_eq!(rules(&exclusions).unwrap().exclude_inbound_ports, [15021, 15090, 22]);
}
