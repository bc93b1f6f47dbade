//! Whole commands, from the words of the command line to what is printed and stored.

use clap::Parser;
use mesh_common::proto::control::rotate_root_request::Step;
use mesh_common::proto::control::{Certificate, Proxy, ServiceView, WaitProgress, WorkloadCertificate, WorkloadView};
use mesh_common::resource::{Kind, Object};

use super::fake::{self, Running};
use super::*;
use crate::failure::Exit;
use crate::output::Format;

/// Runs a command line against the fake control plane, and gives what it printed.
async fn meshctl(running: &Running, line: &str) -> Result<String, Failure> {
    let words = ["meshctl"].into_iter().chain(line.split_whitespace());
    let cli = Cli::try_parse_from(words).map_err(|e| Failure::usage(e.to_string()))?;
    let (mut context, captured) = running.context(cli.global.output);
    context.namespace = cli.global.namespace;
    dispatch(&context, cli.command).await.map(|()| captured.text())
}

fn shop() -> Running {
    let running = fake::start();
    let workload = |version: &str| WorkloadView { version: version.into(), healthy: true, ..WorkloadView::default() };
    running.state().services = vec![ServiceView {
        namespace: "default".into(),
        name: "reviews".into(),
        ports: vec![9080],
        workloads: vec![workload("v1"), workload("v2")],
        ..ServiceView::default()
    }];
    running
}

fn backends(running: &Running) -> Vec<(String, u32)> {
    let Some(Object::HttpRoute(route)) = running.object(Kind::HttpRoute, "reviews") else { return Vec::new() };
    let rule = route.spec.rules.last().unwrap();
    rule.backend_refs.iter().map(|b| (b.name.clone(), b.weight())).collect()
}

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /api}}]
    backendRefs: [{name: reviews-v1, port: 9080}]
";

#[tokio::test]
async fn set_weight_makes_a_route_and_then_edits_it() {
    let running = shop();
    let text = meshctl(&running, "route set-weight reviews v1=90 v2=10").await.unwrap();
    assert!(text.starts_with("HTTPRoute default/reviews created (revision 1)\n"), "{text}");
    assert!(text.contains("all       v1       90      90 %"), "{text}");
    assert_eq!(meshctl(&running, "route list -o name").await.unwrap(), "httproute/reviews\n");
    assert_eq!(backends(&running), [("reviews-v1".into(), 90), ("reviews-v2".into(), 10)]);
    let text = meshctl(&running, "route set-weight reviews v1=90 v2=10").await.unwrap();
    assert!(text.contains("unchanged"), "{text}");
}

#[tokio::test]
async fn a_change_by_somebody_else_is_kept() {
    let running = shop();
    meshctl(&running, "route set-weight reviews v1=1").await.unwrap();
    // Arrives after meshctl has read the route, and before it writes it.
    running.state().others = mesh_common::resource::parse_yaml("test", ROUTE).unwrap();
    meshctl(&running, "route set-weight reviews v2=1").await.unwrap();
    let Some(Object::HttpRoute(route)) = running.object(Kind::HttpRoute, "reviews") else { panic!("no route") };
    assert_eq!(route.spec.rules.len(), 2, "the other's rule is lost: {:?}", route.spec.rules);
    assert_eq!(backends(&running), [("reviews-v2".into(), 1)]);
}

#[tokio::test]
async fn unknown_services_versions_and_routes_change_nothing() {
    let running = shop();
    for line in
        ["route set-weight reviews v3=1", "route set-weight nope v1=1", "delete httproute nope", "get httproute nope"]
    {
        let failure = meshctl(&running, line).await.unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound, "{line}: {failure}");
    }
    assert!(running.state().objects.is_empty());
    meshctl(&running, "route set-weight reviews v3=1 --force").await.unwrap();
    assert_eq!(backends(&running), [("reviews-v3".into(), 1)]);
}

#[tokio::test]
async fn a_match_is_set_and_taken_back() {
    let running = shop();
    let text = meshctl(&running, "route set-match reviews --header end-user=jason v2").await.unwrap();
    assert!(text.contains("header end-user=jason  v2            100     100 %"), "{text}");
    let text = meshctl(&running, "route list -o json").await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json[0]["routes"][0]["rules"][0]["matches"][0], "header end-user=jason");
    assert_eq!(meshctl(&running, "route reset reviews -o name").await.unwrap(), "httproute/reviews\n");
    assert!(running.state().objects.is_empty());
    assert_eq!(meshctl(&running, "route set-match reviews v2").await.unwrap_err().exit, Exit::Usage);
}

#[tokio::test]
async fn a_route_must_be_named_where_there_are_several() {
    let running = shop();
    running.put(ROUTE);
    running.put(&ROUTE.replace("metadata: {name: reviews,", "metadata: {name: other,"));
    let failure = meshctl(&running, "route set-weight reviews v1=1").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Refused);
    assert!(failure.message.contains("httproute/other, httproute/reviews"), "{failure}");
    meshctl(&running, "route set-weight reviews v2=1 --route reviews").await.unwrap();
    assert_eq!(backends(&running), [("reviews-v2".into(), 1)]);
}

#[tokio::test]
async fn the_ports_protocol_decides_the_kind_of_a_new_route() {
    let running = shop();
    running.put("apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: default}\nspec: {ports: [{port: 9080, appProtocol: grpc}]}");
    meshctl(&running, "route set-weight reviews v1=1").await.unwrap();
    assert!(running.object(Kind::GrpcRoute, "reviews").is_some());
}

#[tokio::test]
async fn faults_are_listed_and_cleared() {
    let running = shop();
    let text = meshctl(&running, "fault delay reviews --percent 50 --delay 300ms --from web").await.unwrap();
    assert!(text.contains("delay 300ms in 50 % of the calls of reviews by web, for 5m"), "{text}");
    meshctl(&running, "fault abort reviews --status 418").await.unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&meshctl(&running, "fault list -o json").await.unwrap()).unwrap();
    assert_eq!((json[0]["name"].as_str(), json[1]["from"][0].as_str()), (Some("reviews-abort"), Some("web")));
    assert_eq!(
        meshctl(&running, "fault list -o name").await.unwrap(),
        "faultinjection/reviews-abort\nfaultinjection/reviews-delay-from-web\n"
    );
    meshctl(&running, "fault clear reviews-abort").await.unwrap();
    assert_eq!(
        meshctl(&running, "fault clear reviews").await.unwrap(),
        "FaultInjection default/reviews-delay-from-web deleted\n"
    );
    assert_eq!(meshctl(&running, "fault clear").await.unwrap(), "");
}

#[tokio::test]
async fn objects_are_printed_in_every_format() {
    let running = shop();
    running.put(ROUTE);
    let json: serde_json::Value =
        serde_json::from_str(&meshctl(&running, "get httproutes -o json").await.unwrap()).unwrap();
    assert_eq!((json["kind"].as_str(), json["items"][0]["metadata"]["name"].as_str()), (Some("List"), Some("reviews")));
    let yaml = meshctl(&running, "get httproute/reviews -o yaml").await.unwrap();
    assert_eq!(mesh_common::resource::parse_yaml("test", &yaml).unwrap().len(), 1);
    assert_eq!(meshctl(&running, "get all -o name").await.unwrap(), "httproute/reviews\n");
    let services: serde_json::Value =
        serde_json::from_str(&meshctl(&running, "get services -o json").await.unwrap()).unwrap();
    assert_eq!(services[0]["versions"], serde_json::json!(["v1", "v2"]));
}

/// In the order in which they have something to say. (What needs an editor, a real proxy or a cluster is tested with these.)
#[tokio::test]
async fn every_command_prints_json_and_yaml_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("route.yaml");
    std::fs::write(&file, ROUTE).unwrap();
    let apply = format!("apply -f {}", file.display());
    for format in ["json", "yaml"] {
        let running = shop();
        running.state().proxies =
            vec![Proxy { id: "web-1.default".into(), namespace: "default".into(), ..Proxy::default() }];
        running.state().progress = vec![WaitProgress { done: true, ..WaitProgress::default() }];
        for line in [
            apply.as_str(),
            "get all",
            "get services",
            "get workloads",
            "get httproutes",
            "get httproute reviews",
            "route list",
            "route set-weight reviews v1=90 v2=10",
            "route set-match reviews --header end-user=jason v2",
            "route reset reviews --header end-user=jason",
            "fault delay reviews --percent 50 --delay 300ms --from web",
            "fault abort reviews --status 418",
            "fault reset reviews",
            "fault list",
            "fault clear reviews",
            "delete httproute reviews",
            "wait",
            "top",
            "topology",
            "proxy status",
            "proxy status web",
            "log-level debug",
            "token create --service-account web",
            "version",
        ] {
            let printed = meshctl(&running, &format!("{line} -o {format}")).await;
            let text = printed.unwrap_or_else(|failure| panic!("{line}: {failure}"));
            let data: Result<serde_json::Value, String> = match format {
                "json" => serde_json::from_str(&text).map_err(|error| error.to_string()),
                _ => serde_saphyr::from_str(&text).map_err(|error| error.to_string()),
            };
            let data = data.unwrap_or_else(|error| panic!("{line} -o {format}: {error}: {text}"));
            assert!(data.is_object() || data.is_array(), "{line} -o {format}: {text}");
        }
    }
}

#[tokio::test]
async fn wait_tells_success_rejection_and_delay_apart() {
    let running = shop();
    let step = |done, pending: &[&str], rejected: &[&str]| {
        let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
        WaitProgress { proxies: 2, done, pending: texts(pending), rejected: texts(rejected), ..WaitProgress::default() }
    };
    running.state().progress = vec![step(false, &["web"], &[]), step(true, &[], &[])];
    let text = meshctl(&running, "wait").await.unwrap();
    assert!(text.contains("in force at all 2 proxies"), "{text}");
    running.state().progress = vec![step(false, &["web"], &["web: RDS: bad weight"])];
    let failure = meshctl(&running, "wait").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Failed);
    assert!(failure.message.contains("web: RDS: bad weight"), "{failure}");
    running.state().progress = vec![step(false, &["web"], &[])];
    let failure = meshctl(&running, "wait --timeout 10ms").await.unwrap_err();
    assert_eq!(failure.exit, Exit::TimedOut);
}

#[tokio::test]
async fn a_proxy_is_shown_with_what_it_rejected() {
    let running = shop();
    running.state().proxies =
        vec![Proxy { id: "web-1.default".into(), namespace: "default".into(), ..Proxy::default() }];
    let json: serde_json::Value =
        serde_json::from_str(&meshctl(&running, "proxy status -o json").await.unwrap()).unwrap();
    assert_eq!(json[0]["id"], "web-1.default");
    assert!(meshctl(&running, "proxy status web").await.unwrap().starts_with("Proxy      web-1.default\n"));
    assert_eq!(meshctl(&running, "proxy status api").await.unwrap_err().exit, Exit::NotFound);
    // It is no mesh-proxy of this machine.
    assert_eq!(meshctl(&running, "proxy log-level web debug").await.unwrap_err().exit, Exit::Failed);
}

#[tokio::test]
async fn a_token_goes_to_standard_output_alone() {
    let running = shop();
    assert_eq!(meshctl(&running, "token create --service-account web").await.unwrap(), "mesh1.a.b.c\n");
    assert_eq!(meshctl(&running, "token create").await.unwrap_err().exit, Exit::Usage);
}

#[tokio::test]
async fn without_a_control_plane_the_own_version_is_still_said() {
    let running = shop();
    let (mut context, captured) = running.context(Format::Table);
    context.location = Location::Search(Vec::new());
    let Ok(cli) = Cli::try_parse_from(["meshctl", "version"]) else { panic!("no such command") };
    let failure = dispatch(&context, cli.command).await.unwrap_err();
    assert_eq!(
        (failure.exit, captured.text()),
        (Exit::Unreachable, format!("meshctl        {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[tokio::test]
async fn a_certificate_that_runs_out_ends_in_an_exit_code_of_its_own() {
    let running = shop();
    let identity = "spiffe://mesh.local/ns/default/sa/reviews";
    let now = jiff::Timestamp::now().as_second();
    let of = |id: &str, end: i64| WorkloadCertificate {
        id: id.into(),
        identity: identity.into(),
        service: "reviews.default.svc.cluster.local".into(),
        since_unix_ms: (now - 100) * 1000,
        certificate: Some(Certificate { not_after_unix: now + end, subject: identity.into(), ..Default::default() }),
        ..WorkloadCertificate::default()
    };
    let proxy = |id: &str, identity: &str| Proxy { id: id.into(), identity: identity.into(), ..Proxy::default() };
    running.state().proxies = vec![proxy("reviews-1.default", identity), proxy("web-1.default", "")];
    running.state().certificates.workloads = vec![of("reviews-1.default", 3600)];
    let text = meshctl(&running, "certs").await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("reviews-1.default") && lines[1].ends_with("ok"), "{text}");
    assert!(lines[2].starts_with("web-1.default") && lines[2].ends_with("unknown"), "{text}");
    assert_eq!(meshctl(&running, "certs reviews -o name").await.unwrap(), "reviews-1.default\n");
    assert_eq!(meshctl(&running, "certs -n other -o json").await.unwrap().matches("reviews").count(), 0);
    assert_eq!(meshctl(&running, "certs nowhere").await.unwrap_err().exit, Exit::NotFound);
    running.state().certificates.workloads.push(of("reviews-2.default", 20));
    assert_eq!(meshctl(&running, "certs").await.unwrap_err().exit, Exit::Failed);
    assert_eq!(meshctl(&running, "certs reviews-1").await.unwrap().lines().count(), 4);
}

#[tokio::test]
async fn a_root_is_replaced_when_everybody_has_followed() {
    let running = shop();
    let behind = |id: &str, certificate| WorkloadCertificate { id: id.into(), certificate, ..Default::default() };
    let known = || Some(Certificate { not_after_unix: 4_000_000_000, ..Certificate::default() });
    assert_eq!(meshctl(&running, "certs rotate-root --status").await.unwrap(), "The root is not being replaced.\n");
    assert_eq!(meshctl(&running, "certs web rotate-root --status").await.unwrap_err().exit, Exit::Usage);
    let json = meshctl(&running, "certs -o json rotate-root --status").await.unwrap();
    assert!(json.contains("\"followed\": 0"), "{json}");
    assert!(running.state().rotated.iter().all(|(step, _)| *step == Step::Unspecified));
    let text = meshctl(&running, "certs rotate-root --force --yes").await.unwrap();
    assert_eq!(
        text,
        "The root was replaced. Start all workloads again, with new tokens: until then they trust the root before.\n"
    );
    assert_eq!(running.state().rotated.last(), Some(&(Step::Begin, true)));

    running.state().rotation.behind = vec![behind("a", known()), behind("b", known()), behind("c", known())];
    let text = meshctl(&running, "certs rotate-root --yes").await.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("Certificates hang on a new root since 2030-03-17T17:46:40Z"), "{text}");
    assert!(lines[1].starts_with("2 of 3 workloads have followed; a "), "{text}");
    assert!(
        lines[2] == "3 of 3 workloads have followed." && lines[3].starts_with("The root before is trusted no more"),
        "{text}"
    );
    assert_eq!(running.state().rotated.last(), Some(&(Step::End, false)));

    running.state().rotation.behind = vec![behind("d", None)];
    let late = meshctl(&running, "certs rotate-root --yes --wait-timeout 50ms").await.unwrap_err();
    assert_eq!(late.exit, Exit::TimedOut);
    assert_eq!(meshctl(&running, "certs rotate-root --status -o name").await.unwrap(), "d\n");
    let text = meshctl(&running, "certs rotate-root --force --yes").await.unwrap();
    assert!(text.starts_with("The root before is trusted no more"), "{text}");
    assert_eq!(running.state().rotated.last(), Some(&(Step::End, true)));
}

#[tokio::test]
async fn changes_are_asked_for_by_object_time_and_who() {
    let running = shop();
    assert_eq!(meshctl(&running, "audit tail").await.unwrap(), "");
    running.state().audit = vec![serde_json::json!({
        "time": "2030-01-02T03:04:05.678Z", "who": {"kind": "user", "name": "ada", "uid": 1000}, "verb": "delete",
        "object": {"kind": "Service", "namespace": "shop", "name": "a"}, "revision": 3, "before": {},
    })];
    let text = meshctl(&running, "audit query --since 1h --object svc/a --who ada -n shop").await.unwrap();
    assert!(text.lines().nth(1).unwrap().starts_with("2030-01-02 03:04:05  ada  delete  Service shop/a  3"), "{text}");
    let asked = running.state().audited.pop().unwrap();
    assert_eq!((asked.kind.as_str(), asked.name.as_str(), asked.namespace.as_str()), ("Service", "a", "shop"));
    assert!(asked.who == "ada" && asked.since_unix_ms > 1_700_000_000_000 && asked.last == 0 && !asked.follow);
    let json = meshctl(&running, "audit tail --lines 5 -o json").await.unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["who"]["uid"], 1000);
    let asked = running.state().audited.pop().unwrap();
    assert_eq!((asked.last, asked.since_unix_ms, asked.kind.as_str()), (5, 0, ""));
    assert_eq!(meshctl(&running, "audit tail --follow -o name").await.unwrap(), "service/a\n");
    assert_eq!(meshctl(&running, "audit query --object pod").await.unwrap_err().exit, Exit::Usage);
}

#[tokio::test]
async fn a_tap_asks_for_what_is_given_and_ends_by_itself() {
    use mesh_common::proto::control::{TapAsked, TapResponse};
    use mesh_common::proto::telemetry::{Protocol, Reporter, StatusRange, TapEvent};

    let running = shop();
    let event = |path: &str| TapEvent {
        protocol: Protocol::Http.into(),
        direction: 1,
        reporter: Some(Reporter { service: "web.default.svc.cluster.local".into(), ..Reporter::default() }),
        service: "reviews.default.svc.cluster.local".into(),
        path: path.into(),
        ..TapEvent::default()
    };
    let asked = Some(TapAsked { proxies: 2, identities: Vec::new() });
    running.state().tapped = vec![
        TapResponse { asked, ..TapResponse::default() },
        TapResponse { events: vec![event("/1"), event("/2"), event("/3")], not_shown: 12, asked: None },
    ];
    running.state().holds = true;
    let line = "tap reviews --from web --from ada.bank --to reviews --method get --path /api --status 5xx --status none \
                --min-duration 10ms --header End-User --max-rate 7 --failed --direction outbound --count 2 -o json";
    let text = meshctl(&running, line).await.unwrap();
    let paths: Vec<_> =
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["path"].clone()).collect();
    assert_eq!(paths, ["/1", "/2"]);
    let request = running.state().taps.remove(0);
    let filter = request.filter.unwrap();
    let names = |parties: &[mesh_common::proto::telemetry::TapParty]| {
        parties.iter().map(|it| format!("{}.{}", it.name, it.namespace)).collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&filter.from), names(&filter.to)),
        (vec!["web.default".into(), "ada.bank".into()], vec!["reviews.default".into()])
    );
    assert_eq!(names(&[request.whose.unwrap()]), ["reviews.default"]);
    assert_eq!(filter.statuses, [StatusRange { first: 500, last: 599 }, StatusRange { first: 0, last: 0 }]);
    assert_eq!((filter.methods.as_slice(), filter.path_prefix.as_str()), (&["GET".to_owned()][..], "/api"));
    assert_eq!((filter.min_duration_ms, filter.failed, filter.direction, filter.namespace.as_str()), (10, true, 1, ""));
    assert_eq!((request.max_rate, request.headers), (7, vec!["end-user".to_owned()]));

    let text = meshctl(&running, "tap --for 300ms").await.unwrap();
    assert_eq!(text.lines().filter(|line| line.contains("web -> reviews")).count(), 3, "{text}");
    assert_eq!(meshctl(&running, "tap --count 1 -o name").await.unwrap(), "service/reviews\n");
    for wrong in [
        "tap --status 6xx",
        "tap --path api",
        "tap --max-rate 0",
        "tap --max-rate 1001",
        "tap --count 0",
        "tap --header a:b",
        "tap --from reviews.svc",
        "tap a.reviews.shop.svc",
    ] {
        assert_eq!(meshctl(&running, wrong).await.unwrap_err().exit, Exit::Usage, "{wrong}");
    }
    let many = "--method GET ".repeat(33);
    assert_eq!(meshctl(&running, &format!("tap {many}")).await.unwrap_err().exit, Exit::Usage);
    // One that ends without being asked to has failed.
    running.state().holds = false;
    assert_eq!(meshctl(&running, "tap").await.unwrap_err().exit, Exit::Unreachable);
}

/// The files of a bug report, without the folder that they are in.
pub fn files(archive: &std::path::Path) -> std::collections::BTreeMap<String, String> {
    let mut read = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(archive).unwrap()));
    let files = read.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
        (path.split_once('/').unwrap().1.to_owned(), text)
    });
    files.collect()
}

#[tokio::test]
async fn a_bug_report_has_what_can_be_had_and_no_secrets() {
    let running = shop();
    let route = ROUTE.replace(
        "    backendRefs",
        "    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: authorization, value: Basic s3cret}]}}]\n    backendRefs",
    );
    for object in mesh_common::resource::parse_yaml("test", &route).unwrap() {
        running.state().objects.insert(object.key(), object);
    }
    let proxy = |id: &str| Proxy { id: id.into(), namespace: "default".into(), ..Proxy::default() };
    running.state().proxies = vec![proxy("web-1.default"), proxy("web-2.default")];
    let logs = running.folder().join("logs");
    std::fs::create_dir(&logs).unwrap();
    for (name, text) in [("mesh-control", "ready\n"), ("web-1", "GET /a?token=s3cret 200\n"), ("web-1.app", "app\n")] {
        std::fs::write(logs.join(format!("{name}.log")), text).unwrap();
    }
    let file = running.folder().join("report.tar.gz");
    let line = format!("bug-report --file {}", file.display());
    let said = meshctl(&running, &line).await.unwrap();
    let files = files(&file);
    assert!(said.contains(&format!("{} has {} files.", file.display(), files.len())), "{said}");
    let all = files.values().cloned().collect::<String>();
    assert!(!all.contains("s3cret"), "{all}");
    assert!(files["objects.json"].contains("[redacted]") && files["objects.json"].contains("/api"), "{all}");
    assert_eq!(files["proxies/web-1.log"], "GET /a?[redacted] 200\n");
    assert_eq!(files["control-plane/mesh-control.log"], "ready\n");
    assert!(files["services.json"].contains("reviews") && files["proxies.json"].contains("web-2"), "{files:?}");
    assert!(!files.contains_key("proxies/web-1.app.log"), "{files:?}");
    assert!(files["about.txt"].contains("missing: the log of web-2.default: "), "{}", files["about.txt"]);
    // This control plane has no configurations to give.
    assert!(files["about.txt"].contains("missing: proxy config all web-1.default -o json: "), "{}", files["about.txt"]);

    let again = meshctl(&running, &line).await.unwrap_err();
    assert!(again.message.contains("exists already"), "{again}");
    std::fs::remove_file(&file).unwrap();
    meshctl(&running, &format!("{line} --proxy web-2")).await.unwrap();
    assert!(!self::files(&file).contains_key("proxies/web-1.log"));

    // Logs are there whether anybody answers or not.
    std::fs::remove_file(running.folder().join("control.sock")).unwrap();
    for (options, named) in [("", false), ("--proxy web-1.default --proxy web-2", true)] {
        std::fs::remove_file(&file).unwrap();
        meshctl(&running, &format!("{line} {options}")).await.unwrap();
        let files = self::files(&file);
        assert_eq!(files["proxies/web-1.log"], "GET /a?[redacted] 200\n");
        let about = &files["about.txt"];
        assert!(about.contains("missing: configurations of proxies: "), "{about}");
        assert_eq!(about.contains("missing: the log of web-2: "), named, "{about}");
    }
}

#[tokio::test]
async fn logs_are_read_with_no_control_plane_that_answers() {
    let running = shop();
    let logs = running.folder().join("logs");
    std::fs::create_dir(&logs).unwrap();
    for (name, text) in [("web-1", "1\n2\n"), ("web-2", "3\n"), ("web-1.app", "app\n")] {
        std::fs::write(logs.join(format!("{name}.log")), text).unwrap();
    }
    std::fs::remove_file(running.folder().join("control.sock")).unwrap();
    assert_eq!(meshctl(&running, "logs web-1 --lines 1").await.unwrap(), "2\n");
    assert_eq!(meshctl(&running, "logs web-2.default").await.unwrap(), "3\n");
    assert_eq!(meshctl(&running, "logs web-.default").await.unwrap_err().exit, Exit::NotFound);
    for (line, says) in [
        ("logs web", "2 proxies begin with web: web-1, web-2."),
        ("logs reviews", "No proxy reviews has a log here."),
        ("logs", "The control plane has no log"),
    ] {
        let failure = meshctl(&running, line).await.unwrap_err();
        assert!(failure.exit == Exit::NotFound && failure.message.contains(says), "{line}: {failure}");
    }
    assert_eq!(meshctl(&running, "logs web-1 --previous").await.unwrap_err().exit, Exit::Usage);
}
