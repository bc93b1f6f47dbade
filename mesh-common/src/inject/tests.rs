use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::names::{PROXY_UID, port};

fn pod() -> Value {
    json!({
        "metadata": { "labels": { "app": "reviews", "version": "v1" } },
        "spec": {
            "serviceAccountName": "reviews",
            "automountServiceAccountToken": false,
            "shareProcessNamespace": true,
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 2000 },
            "initContainers": [{ "name": "migrate", "image": "migrate:1" }],
            "containers": [{ "name": "app", "image": "reviews:1", "ports": [{ "name": "web", "containerPort": 9080 }] }],
        },
    })
}

fn injected(pod: &Value) -> Value {
    match inject(pod, &InjectConfig::default()) {
        Ok(Outcome::Injected(pod)) => pod,
        other => panic!("{other:?}"),
    }
}

fn refusal(pod: &Value) -> String {
    inject(pod, &InjectConfig::default()).unwrap_err().to_string()
}

fn annotated(name: &str, value: &str) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({ (name): value });
    pod
}

fn args(pod: &Value, container: usize) -> Vec<String> {
    let args = pod["spec"]["initContainers"][container]["args"].as_array().unwrap();
    args.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
}

fn probes_of(pod: &Value) -> Probes {
    let env = pod["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let value = env.iter().find(|it| it["name"] == "MESH_PROBES").map(|it| it["value"].as_str().unwrap());
    value.map(|text| serde_json::from_str(text).unwrap()).unwrap_or_default()
}

#[test]
fn the_proxy_comes_first_and_has_no_rights() {
    let pod = injected(&pod());
    let names: Vec<_> =
        pod["spec"]["initContainers"].as_array().unwrap().iter().map(|it| it["name"].as_str()).collect();
    assert_eq!(names, [Some("mesh-init"), Some("mesh-proxy"), Some("migrate")]);
    let (init, proxy) = (&pod["spec"]["initContainers"][0], &pod["spec"]["initContainers"][1]);
    assert_eq!(init["securityContext"]["capabilities"], json!({ "add": ["NET_ADMIN"], "drop": ["ALL"] }));
    assert_eq!(
        (&init["securityContext"]["runAsUser"], &init["securityContext"]["runAsNonRoot"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["securityContext"]["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(proxy["securityContext"]["runAsUser"], PROXY_UID);
    for container in [init, proxy] {
        assert_eq!(container["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["resources"]["requests"], json!({ "cpu": "10m", "memory": "32Mi" }));
    }
    assert!(args(&pod, 1).contains(&"--version=v1".to_owned()));
    assert_eq!(args(&pod, 0).join(" "), "intercept --uid 1337 --test --exclude-inbound-ports 15021,15090");
    let token = &pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "mesh-control");
    assert_eq!(pod["metadata"]["labels"]["meshctl.dev/proxy"], "true");
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], "15090");
    // What the pod says of itself stays.
    assert_eq!(pod["spec"]["securityContext"]["runAsUser"], 1000);
    assert_eq!(
        pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"],
        json!({ "path": "/drain", "port": 15021 })
    );
}

#[test]
fn a_pod_that_has_little_time_to_end_tells_its_proxy() {
    let with = |seconds: Value| {
        let pod = json!({"spec": {"terminationGracePeriodSeconds": seconds, "containers": [{"name": "app"}]}});
        args(&injected(&pod), 1).into_iter().find(|arg| arg.starts_with("--grace"))
    };
    assert_eq!(with(json!(9)), Some("--grace=9".to_owned()));
    assert_eq!((with(json!(30)), with(json!(600)), with(Value::Null)), (None, None, None));
}

#[test]
fn annotations_change_what_is_injected() {
    let with = |name: &str, value: &str| injected(&annotated(&format!("meshctl.dev/{name}"), value));
    assert!(args(&with("exclude-inbound-ports", "22, 9000"), 0).contains(&"15021,15090,22,9000".to_owned()));
    assert!(
        args(&with("exclude-outbound-ports", "3306"), 0).ends_with(&["--exclude-outbound-ports".into(), "3306".into()])
    );
    let cidrs = args(&with("exclude-outbound-cidrs", "10.0.0.0/8,fd00::/8"), 0);
    assert_eq!(cidrs.last().unwrap(), "10.0.0.0/8,fd00::/8");
    assert!(
        args(&with("log-level", "mesh_proxy::dns=debug,warn"), 1)
            .contains(&"--log=mesh_proxy::dns=debug,warn".to_owned())
    );
    assert!(args(&with("access-log", "json"), 1).contains(&"--access-log=json".to_owned()));
    let audited = args(&with("audit-log", "on"), 1);
    assert!(["--audit-log=-", "--audit-log-allowed=0"].iter().all(|arg| audited.contains(&(*arg).to_owned())));
    assert!(!args(&with("audit-log-allowed", "1"), 1).iter().any(|arg| arg.contains("audit")));
    assert!(args(&with("proxy-max-lag", "1s500ms"), 1).contains(&"--max-lag=1500".to_owned()));
    let resources = |name: &str, value: &str| with(name, value)["spec"]["initContainers"][1]["resources"].clone();
    assert_eq!(resources("proxy-cpu", "0.5")["requests"]["cpu"], "0.5");
    assert_eq!(resources("proxy-memory-limit", "1Gi")["limits"], json!({ "memory": "1Gi" }));
    // A limit below the default request is a request as well.
    assert_eq!(
        resources("proxy-cpu-limit", "5m"),
        json!({ "requests": { "cpu": "5m", "memory": "32Mi" }, "limits": { "cpu": "5m" } })
    );
}

#[test]
fn bad_annotations_are_refused_with_what_to_write() {
    for (name, value, part) in [
        ("exclude-inbound-ports", "http", "\"http\" is not a port"),
        ("exclude-outbound-ports", "0", "from 1 to 65535"),
        ("exclude-outbound-cidrs", "10.0.0.0/33", "10.0.0.0/8 or fd00::/8"),
        ("proxy-cpu", "a lot", "100m or 0.5"),
        ("proxy-memory", "64mb", "64Mi or 1Gi"),
        ("log-level", "verbose", "error, warn, info, debug or trace"),
        ("access-log", "yes", "off, text or json"),
        ("audit-log", "json", "write on or off"),
        ("audit-log-allowed", "1%", "from 0 to 100"),
        ("proxy-max-lag", "500", "500ms"),
        ("exclude-inbound-port", "1", "there are exclude-inbound-ports"),
        ("inject", "false", "mesh-injection: \"disabled\""),
    ] {
        let error = refusal(&annotated(&format!("meshctl.dev/{name}"), value));
        assert!(error.starts_with(&format!("metadata.annotations[meshctl.dev/{name}]: ")), "{error}");
        assert!(error.contains(part), "{error}");
    }
    let mut limited = annotated("meshctl.dev/proxy-cpu", "2");
    limited["metadata"]["annotations"]["meshctl.dev/proxy-cpu-limit"] = "1".into();
    assert!(refusal(&limited).contains("2 is more than 1"), "{}", refusal(&limited));
    let mut labelled = pod();
    labelled["metadata"]["labels"]["mesh-injection"] = "no".into();
    assert!(refusal(&labelled).contains("write `enabled` or `disabled`"));
}

#[test]
fn some_pods_stay_as_they_are_and_others_are_refused() {
    let skipped = |path: &str, value: Value| {
        let mut pod = pod();
        *pod.pointer_mut("/metadata/labels").unwrap() = json!({ "mesh-injection": "enabled" });
        let (parent, field) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[field] = value;
        match inject(&pod, &InjectConfig::default()) {
            Ok(Outcome::Skipped(reason)) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(skipped("/metadata/labels/mesh-injection", "disabled".into()), Skipped::OptedOut);
    assert_eq!(skipped("/spec/hostNetwork", true.into()), Skipped::HostNetwork);
    assert_eq!(skipped("/spec/os", json!({ "name": "windows" })), Skipped::Windows);

    let refused = |path: &str, value: Value| {
        let mut pod = pod();
        let (parent, field) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[field] = value;
        refusal(&pod)
    };
    assert!(
        refused("/spec/securityContext/runAsUser", 1337.into()).starts_with("spec.securityContext.runAsUser: 1337")
    );
    let own = refused("/spec/containers/0/securityContext", json!({ "runAsUser": 1337 }));
    assert!(own.starts_with("spec.containers[0].securityContext.runAsUser"), "{own}");
    assert!(refused("/spec/containers/0/name", "mesh-proxy".into()).contains("give yours another name"));
    assert!(refused("/spec/containers/0/name", "migrate".into()).contains("two containers"));
    assert!(refused("/spec/volumes", json!([{ "name": "mesh-token" }])).starts_with("spec.volumes[0].name"));
    assert!(refused("/spec/dnsPolicy", "Default".into()).contains("ClusterFirst"));
    assert!(refused("/spec/containers", json!([])).contains("needs a container"));
    assert!(refused("/spec/containers", json!({})).contains("must be a list"));
    assert!(refused("/metadata/annotations", json!({ "x": 1 })).contains("put it in quotes"));
    // It says that it is injected, but is not: the webhook must not take its word.
    assert!(refused("/metadata/annotations", json!({ ANNOTATION_INJECTED: "{}" })).contains("no container mesh-proxy"));
    assert!(refused("/metadata/annotations", json!({ ANNOTATION_INJECTED: "x" })).contains("was changed since"));
}

#[test]
fn probes_go_through_the_proxy() {
    let mut pod = pod();
    pod["spec"]["containers"][0]["livenessProbe"] = json!({
        "httpGet": { "port": "web", "path": "/health?$(X)", "scheme": "HTTPS", "httpHeaders": [{ "name": "Host", "value": "a.b" }] },
        "timeoutSeconds": 3, "periodSeconds": 7, "terminationGracePeriodSeconds": 9,
    });
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": 9080 } });
    pod["spec"]["containers"][0]["startupProbe"] = json!({ "grpc": { "port": 9081, "service": "ready" } });
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({ "postStart": { "httpGet": { "port": 9080 } }, "preStop": { "exec": { "command": ["x"] } } });
    pod["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
    pod["spec"]["initContainers"][0]["startupProbe"] =
        json!({ "httpGet": { "port": 1, "path": "x" }, "timeoutSeconds": null });
    let after = injected(&pod);
    let app = &after["spec"]["containers"][0];
    assert_eq!(
        app["livenessProbe"],
        json!({ "httpGet": { "path": "/app-health/app/livez", "port": 15021 }, "timeoutSeconds": 3, "periodSeconds": 7, "terminationGracePeriodSeconds": 9 })
    );
    assert_eq!(app["readinessProbe"], json!({ "httpGet": { "path": "/app-health/app/readyz", "port": 15021 } }));
    let key = probes_of(&after)["app"][&Which::PostStart].key.clone().unwrap();
    assert_eq!(key.len(), 32);
    assert_eq!(app["lifecycle"]["postStart"]["httpGet"]["path"], format!("/app-health/app/poststart/{key}"));
    assert_eq!(app["lifecycle"]["preStop"], json!({ "exec": { "command": ["x"] } }));
    assert!(!after["spec"]["initContainers"][1]["env"].to_string().contains("$("));
    assert_eq!(after["spec"]["initContainers"][2]["startupProbe"]["httpGet"]["path"], "/app-health/migrate/startupz");
    let probes = probes_of(&after);
    let action =
        |container: &str, which| (probes[container][&which].action.clone(), probes[container][&which].timeout_seconds);
    let http = |port, path: &str, https, headers| Action::Http { port, path: path.into(), https, headers };
    assert_eq!(action("app", Which::Livez), (http(9080, "/health?$(X)", true, vec![("Host".into(), "a.b".into())]), 3));
    assert_eq!(action("app", Which::Readyz), (Action::Tcp { port: 9080 }, 1));
    assert_eq!(action("app", Which::Startupz), (Action::Grpc { port: 9081, service: "ready".into() }, 1));
    assert_eq!(action("migrate", Which::Startupz), (http(1, "/x", false, vec![]), 1));
    assert_eq!(uninject(&after).unwrap(), pod);
}

#[test]
fn a_hook_that_sleeps_lets_the_proxy_leave_meanwhile() {
    let mut pod = pod();
    let sleep = |seconds: Value| json!({ "sleep": { "seconds": seconds } });
    pod["spec"]["containers"][0]["lifecycle"] = json!({ "postStart": sleep(1.into()), "preStop": sleep(5.into()) });
    let after = injected(&pod);
    let lifecycle = &after["spec"]["containers"][0]["lifecycle"];
    assert_eq!(lifecycle["postStart"], sleep(1.into()));
    let hook = &probes_of(&after)["app"][&Which::PreStop];
    let path = format!("/app-health/app/prestop/{}", hook.key.as_ref().unwrap());
    assert_eq!(lifecycle["preStop"], json!({ "httpGet": { "path": path, "port": 15021 } }));
    assert_eq!(hook.action, Action::Sleep { seconds: 5 });
    assert_eq!(uninject(&after).unwrap(), pod);
    for left in [json!("5"), json!(-1), json!(7200), json!(u64::MAX), Value::Null] {
        let hook = sleep(left);
        pod["spec"]["containers"][0]["lifecycle"]["preStop"] = hook.clone();
        assert_eq!(injected(&pod)["spec"]["containers"][0]["lifecycle"]["preStop"], hook);
    }
}

#[test]
fn a_hook_that_runs_a_command_is_warned_of() {
    let mut pod = pod();
    assert_eq!(warnings(&injected(&pod)), Vec::<String>::new());
    pod["spec"]["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["x"] } } });
    let warned = warnings(&injected(&pod));
    assert_eq!(warned.len(), 1);
    assert!(warned[0].starts_with("container app: its preStop hook runs a command"), "{warned:?}");
    assert!(warned[0].contains("http://localhost:15021/drain"), "{warned:?}");
}

#[test]
fn probes_that_are_not_for_the_pod_stay() {
    let mut pod = pod();
    pod["spec"]["containers"][0]["livenessProbe"] = json!({ "exec": { "command": ["true"] } });
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "httpGet": { "host": "example.com", "port": 80 } });
    let after = injected(&pod);
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(after["spec"]["containers"][0][probe], pod["spec"]["containers"][0][probe]);
    }
    assert_eq!(probes_of(&after), Probes::new());
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "httpGet": { "port": "admin" } });
    let error = refusal(&pod);
    assert!(error.starts_with("spec.containers[0].readinessProbe.httpGet.port: the container has no port"), "{error}");
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "httpGet": { "port": "8080" } });
    assert!(probes_of(&injected(&pod)).contains_key("app"));
}

#[test]
fn own_prometheus_annotations_stay_the_only_ones() {
    let after = injected(&annotated("prometheus.io/scrape", "false"));
    let keys: Vec<_> = after["metadata"]["annotations"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["meshctl.dev/injected", "prometheus.io/scrape"]);
}

#[test]
fn what_the_api_server_adds_does_not_hinder_the_way_back() {
    let before = pod();
    let mut after = injected(&before);
    // Defaults, and the mount that the service account's admission puts into every container.
    for container in after["spec"]["initContainers"].as_array_mut().unwrap() {
        container["terminationMessagePath"] = "/dev/termination-log".into();
        container["volumeMounts"] =
            json!([{ "name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io" }]);
    }
    after["spec"]["volumes"].as_array_mut().unwrap().push(json!({ "name": "kube-api-access-x" }));
    let again = uninject(&after).unwrap();
    assert_eq!(again["spec"]["volumes"], json!([{ "name": "kube-api-access-x" }]));
    assert_eq!(again["spec"]["initContainers"].as_array().unwrap().len(), 1);
    assert_ne!(after, before);
}

#[test]
fn a_new_configuration_replaces_the_old_one() {
    let newer = InjectConfig { image: "mesh-proxy:2".into(), ..InjectConfig::default() };
    let upgraded = inject(&injected(&pod()), &newer).unwrap();
    assert_eq!(upgraded, inject(&pod(), &newer).unwrap());
}

/// As the API server lists objects of one kind, and `kubectl get --raw` shows them.
#[test]
fn items_of_a_list_of_one_kind_need_not_say_which() {
    let list = json!({"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [
        {"metadata": {"name": "a"}, "spec": {"template": pod()}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "b"}, "spec": {"template": pod()}},
    ]});
    let found: Vec<_> = templates(&list).into_iter().map(|it| (it.kind, it.pointer)).collect();
    let expected = |index: u8| ("Deployment".to_owned(), format!("/items/{index}/spec/template"));
    assert_eq!(found, [expected(0), expected(1)]);
    let pods = json!({"apiVersion": "v1", "kind": "PodList", "items": [pod()]});
    assert_eq!(templates(&pods)[0].pointer, "/items/0");
    // A list of anything says nothing of its items, and what makes no pods still makes none.
    for (version, kind) in [("v1", "List"), ("v1", "ServiceList"), ("apps/v1", "List")] {
        let list = json!({"apiVersion": version, "kind": kind, "items": [{"spec": {"template": pod()}}]});
        assert_eq!(templates(&list), []);
    }
}

#[test]
fn finds_templates_in_every_kind() {
    let of = |version: &str, kind: &str| {
        let found = templates(&json!({ "apiVersion": version, "kind": kind }));
        found.into_iter().map(|template| template.pointer).collect::<Vec<_>>()
    };
    assert_eq!(of("v1", "Pod"), [""]);
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
    ] {
        assert_eq!(of(version, kind), ["/spec/template"], "{kind}");
    }
    assert_eq!(of("batch/v1", "CronJob"), ["/spec/jobTemplate/spec/template"]);
    assert_eq!(of("example.com/v1", "Deployment"), [""; 0]);
    assert_eq!(of("v1", "Service"), [""; 0]);
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service" },
        { "apiVersion": "v1", "kind": "List", "items": [{ "apiVersion": "v1", "kind": "Pod" }, { "apiVersion": "apps/v1", "kind": "Deployment" }] },
    ]});
    let pointers: Vec<_> = templates(&list).into_iter().map(|it| (it.object, it.pointer, it.path)).collect();
    let text = |parts: [&str; 3]| (parts[0].to_owned(), parts[1].to_owned(), parts[2].to_owned());
    assert_eq!(
        pointers,
        [
            text(["/items/1/items/0", "/items/1/items/0", ""]),
            text(["/items/1/items/1", "/items/1/items/1/spec/template", "spec.template"])
        ]
    );
}

/// Absent, null, empty, or something.
fn maybe(empty: Value, something: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![Just(None), Just(Some(Value::Null)), Just(Some(empty)), something.prop_map(Some)]
}

fn fields(named: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = named.into_iter().unzip();
    values.prop_map(move |values| {
        let present = names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(present.collect())
    })
}

fn a_probe() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({ "httpGet": { "port": 80, "path": "/$" }, "timeoutSeconds": 2 })),
        Just(json!({ "httpGet": { "port": 80, "host": "x" } })),
        Just(json!({ "tcpSocket": { "port": "81" }, "grpc": null })),
        Just(json!({ "grpc": { "port": 82 }, "unknown": [1, null] })),
        Just(json!({ "exec": { "command": ["x"] } })),
        Just(json!({ "sleep": { "seconds": 3 } })),
    ]
}

fn a_container(name: &'static str) -> impl Strategy<Value = Value> {
    let probe = || maybe(json!({}), a_probe()).boxed();
    let hook = || maybe(json!({}), a_probe()).boxed();
    let lifecycle = maybe(json!({}), fields(vec![("preStop", hook()), ("postStart", hook())])).boxed();
    fields(vec![
        ("name", Just(Some(name.into())).boxed()),
        ("restartPolicy", prop_oneof![Just(None), Just(Some("Always".into()))].boxed()),
        ("livenessProbe", probe()),
        ("readinessProbe", probe()),
        ("startupProbe", probe()),
        ("lifecycle", lifecycle),
        ("unknown", maybe(json!([]), Just(json!({ "x": null }))).boxed()),
    ])
}

fn a_pod() -> impl Strategy<Value = Value> {
    let labels = prop_oneof![Just(json!({ "app": "x" })), Just(json!({ "mesh-injection": "enabled" }))];
    let annotations = prop_oneof![
        Just(json!({ "x/y": "" })),
        Just(json!({ "prometheus.io/port": "1" })),
        Just(json!({ "meshctl.dev/proxy-cpu": "1" }))
    ];
    let metadata = fields(vec![
        ("labels", maybe(json!({}), labels).boxed()),
        ("annotations", maybe(json!({}), annotations).boxed()),
        ("name", prop_oneof![Just(None), Just(Some("x".into()))].boxed()),
    ]);
    let spec = fields(vec![
        ("initContainers", maybe(json!([]), a_container("first").prop_map(|it| json!([it]))).boxed()),
        ("containers", (a_container("a"), a_container("b")).prop_map(|(a, b)| Some(json!([a, b]))).boxed()),
        ("volumes", maybe(json!([]), Just(json!([{ "name": "data" }]))).boxed()),
        ("hostNetwork", prop_oneof![Just(None), Just(Some(false.into()))].boxed()),
    ]);
    fields(vec![("metadata", maybe(json!({}), metadata).boxed()), ("spec", spec.prop_map(Some).boxed())])
}

proptest! {
    #[test]
    fn the_way_back_leads_to_the_same_and_twice_is_once(pod in a_pod()) {
        let once = injected(&pod);
        prop_assert_ne!(&once, &pod);
        prop_assert_eq!(&injected(&once), &once);
        prop_assert_eq!(uninject(&once).unwrap(), pod.clone());
        prop_assert_eq!(uninject(&pod).unwrap(), pod);
        let ports = once.to_string().matches(&format!("\"port\":{}", port::READY)).count();
        prop_assert!(ports >= 1);
    }
}

#[test]
fn with_the_plugin_there_is_no_container_with_a_capability() {
    let pod = json!({
        "metadata": {"annotations": {"meshctl.dev/exclude-inbound-ports": "22"}},
        "spec": {"containers": [{"name": "app"}]}
    });
    let config = InjectConfig { cni: true, ..InjectConfig::default() };
    let Outcome::Injected(injected) = inject(&pod, &config).unwrap() else { panic!() };
    let names: Vec<_> = injected["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["mesh-proxy"]);
    assert!(!injected.to_string().contains("NET_ADMIN"));
    let annotations = injected["metadata"]["annotations"].as_object().unwrap();
    let exclusions = Exclusions { inbound_ports: vec![22], ..Exclusions::default() };
    assert_eq!(by_cni(annotations), Ok(Some(exclusions)));
    assert_eq!(uninject(&injected).unwrap(), pod);
    // What was injected for an init container is none of the plugin's business, nor is a pod outside of the mesh.
    let Outcome::Injected(other) = inject(&pod, &InjectConfig::default()).unwrap() else { panic!() };
    assert_eq!(by_cni(other["metadata"]["annotations"].as_object().unwrap()), Ok(None));
    assert_eq!(by_cni(&serde_json::Map::new()), Ok(None));
    let unknown = json!({"meshctl.dev/interception": "magic"});
    assert!(by_cni(unknown.as_object().unwrap()).is_err());
}
