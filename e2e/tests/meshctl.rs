//! `meshctl` as a user types it: what it says, what it changes, and its exit codes.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use mesh_e2e::as_root_and_without;
use mesh_e2e::mesh::{Mesh, User};
use mesh_e2e::process::eventually;
use mesh_e2e::resolver::{MANY, Resolver};
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

as_root_and_without!(
    exit_codes_are_as_documented,
    a_change_is_waited_for_and_seen_in_the_proxies,
    objects_are_edited_and_deleted,
    faults_are_listed_and_cleared_one_by_one,
    log_levels_change_while_the_mesh_runs,
    a_start_that_failed_leaves_nothing_and_says_once_what_to_do,
    long_answers_of_the_hosts_resolver_arrive_whole,
    certificates_are_shown_and_missed_renewals_told,
    logs_and_what_a_bug_report_has,
);

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Checks the exit code, and gives what was said to people.
fn code(output: Output, want: i32) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(want), "{}{error}", out(&output));
    error
}

fn exit_codes_are_as_documented(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let run = |args: &[&str]| mesh.meshctl_output(args).unwrap();
    code(run(&["version"]), 0);
    code(run(&["route", "set-weight", "reviews", "v1=many"]), 2);
    code(run(&["frobnicate"]), 2);
    code(run(&["get", "httproute", "nowhere"]), 3);
    code(run(&["delete", "httproute", "nowhere"]), 3);
    code(run(&["proxy", "config", "routes", "nowhere"]), 3);
    code(run(&["route", "set-weight", "nowhere", "v1"]), 3);
    code(run(&["apply", "-f", "/nowhere.yaml"]), 3);
    let mut alone = mesh.command("meshctl");
    let output = alone.args(["--control", "unix:/nowhere/control.sock", "get", "services"]).output().unwrap();
    assert!(code(output, 5).contains("/nowhere/control.sock"));

    let refused = |name: &str, text: &str, says: &[&str]| {
        let file = mesh.logs().join(name);
        std::fs::write(&file, text).unwrap();
        let error = code(run(&["apply", "-f", &file.to_string_lossy()]), 4);
        for part in says {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    };
    refused("malformed.yaml", "apiVersion: v1\nkind: [\n", &["malformed.yaml:"]);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  ports:\n  - port: 9080\n";
    refused("unknown.yaml", &format!("{service}    prot: http\n"), &["unknown.yaml:7:", "spec.ports[0]", "prot"]);
    refused("wrong.yaml", &service.replace("9080", "99999"), &["wrong.yaml:6:", "spec.ports[0].port"]);
    refused("two.yaml", &format!("{service}---\n{service}    prot: http\n"), &["two.yaml:14:", "prot"]);
    code(run(&["get", "service", "reviews"]), 3);
    refused(
        "twice.yaml",
        &format!("{service}---\n{service}"),
        &["twice.yaml:8:1:", "twice.yaml:1:1", "each object once"],
    );
    for filter in ["a=b=c", "inof"] {
        assert!(code(run(&["log-level", filter]), 4).contains("is not a log filter"));
    }
    assert!(code(run(&["wait", "--revision", "99999", "--timeout", "100ms"]), 6).contains("99999"));
    // Somebody else's change is not overwritten.
    mesh.apply(service).unwrap();
    refused(
        "stale.yaml",
        &service.replace("name: reviews", "name: reviews, resourceVersion: \"999\""),
        &["resourceVersion"],
    );
}

fn a_change_is_waited_for_and_seen_in_the_proxies(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _v1 = mesh.echo("reviews", "v1").unwrap();
    let _v2 = mesh.echo("reviews", "v2").unwrap();
    let load = mesh.load("web", &["--url", "http://reviews:9080/", "--rate", "20"]).unwrap();
    load.flowing().unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=90", "v2=10"]).unwrap();
    let output = mesh.meshctl_output(&["wait", "--timeout", "10s"]).unwrap();
    let said = out(&output) + &code(output, 0);
    assert!(said.contains("in force"), "{said}");
    for (part, proxy, says) in [
        ("listeners", "web", "reviews"),
        ("routes", "web", "reviews-v2"),
        ("clusters", "web", "reviews"),
        ("endpoints", "web", "9080"),
        ("secrets", "web", "spiffe://mesh.local/ns/default/sa/web"),
        ("secrets", "web", "trust bundle"),
        ("names", "web", "reviews"),
        ("listeners", "reviews-v1", "inbound"),
        ("secrets", "reviews-v1", "spiffe://mesh.local/ns/default/sa/reviews"),
    ] {
        // The proxy asks for what its application uses when it first does.
        eventually(Duration::from_secs(5), || {
            let table = mesh.meshctl(&["proxy", "config", part, proxy])?;
            anyhow::ensure!(table.lines().count() > 1 && table.contains(says), "{part} of {proxy}: {table}");
            Ok(())
        })
        .unwrap();
        let json = mesh.meshctl(&["proxy", "config", part, proxy, "-o", "json"]).unwrap();
        serde_json::from_str::<serde_json::Value>(&json).unwrap();
        assert!(!json.contains("PRIVATE KEY"), "{json}");
    }
    // A proxy that does not answer is named, when the time is over.
    load.0.signal_child("mesh-proxy", Signal::SIGSTOP).unwrap();
    mesh.meshctl(&["route", "set-weight", "reviews", "v1=10", "v2=90"]).unwrap();
    let error = code(mesh.meshctl_output(&["wait", "--timeout", "500ms"]).unwrap(), 6);
    assert!(error.contains("web"), "{error}");
    load.0.signal_child("mesh-proxy", Signal::SIGCONT).unwrap();
    mesh.wait().unwrap();

    // One that refuses what it is sent is named with its words, wherever somebody looks.
    const WHY: &str = "clusters are beneath me";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _refusing = runtime.block_on(refuse_clusters(&mesh.xds_plaintext, WHY));
    eventually(Duration::from_secs(5), || {
        let table = mesh.meshctl(&["proxy", "status"])?;
        anyhow::ensure!(table.lines().any(|l| l.contains("stubborn") && l.contains("REJECTED")), "{table}");
        Ok(())
    })
    .unwrap();
    let details = mesh.meshctl(&["proxy", "status", "stubborn"]).unwrap();
    assert!(details.contains(&format!(": {WHY}")), "{details}");
    let error = code(mesh.meshctl_output(&["wait", "--timeout", "1s"]).unwrap(), 1);
    assert!(error.contains("stubborn") && error.contains(WHY), "{error}");
    let output = mesh.meshctl_output(&["check"]).unwrap();
    let said = out(&output) + &code(output, 1);
    assert!(said.contains("stubborn"), "{said}");
}

/// A client that takes no clusters, and says why; connected until what is returned is dropped.
async fn refuse_clusters(control: &str, why: &str) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let ask = DiscoveryRequest {
        node: Some(Node { id: "stubborn.default".to_owned(), ..Node::default() }),
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..DiscoveryRequest::default()
    };
    let (send, requests) = mpsc::channel(2);
    send.send(ask.clone()).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::connect(format!("http://{control}")).await.unwrap();
    let mut answers = client.stream_aggregated_resources(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let refusal = Status { code: 13, message: why.to_owned(), ..Status::default() };
    send.send(DiscoveryRequest { response_nonce: answer.nonce, error_detail: Some(refusal), ..ask }).await.unwrap();
    (send, answers)
}

fn objects_are_edited_and_deleted(user: User) {
    let mesh = Mesh::start(user).unwrap();
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {ports: [{port: 9080}]}\n").unwrap();
    let edit_with = |script: &str| {
        let editor = mesh.folder().join("bin/editor");
        std::fs::write(&editor, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = mesh.command("meshctl");
        command.env_remove("VISUAL").env("EDITOR", editor).args(["edit", "service", "reviews"]).output().unwrap()
    };
    let edit = |sed: &str| edit_with(&format!("exec sed -i '{sed}' \"$1\""));
    let port = |port: &str| mesh.meshctl(&["get", "service", "reviews", "-o", "yaml"]).unwrap().contains(port);
    code(edit("s/9080/9081/"), 0);
    assert!(port("port: 9081"));
    assert!(code(edit("s/nothing/like it/"), 0).contains("Nothing was changed"));
    // Refused, and saved once more as it is: what was written is kept, and the object is as before.
    let error = code(edit("s/port: 908[0-9]*/prot: 9082/"), 4);
    assert!(error.contains("prot"), "{error}");
    assert!(port("port: 9081"));

    // Somebody else was quicker: their change stays, and what was saved is kept.
    let quicker = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec: {ports: [{port: 9083}]}\n";
    std::fs::write(mesh.folder().join("bin/quicker.yaml"), quicker).unwrap();
    let meshctl = mesh.program("meshctl");
    let apply = format!("{} apply -f {}", meshctl.display(), mesh.folder().join("bin/quicker.yaml").display());
    let error = code(edit_with(&format!("{apply} && exec sed -i s/9081/9084/ \"$1\"")), 4);
    assert!(error.contains("Somebody else has changed") && error.contains("meshctl-edit-"), "{error}");
    assert!(port("port: 9083"));

    // All that are named, or none.
    code(mesh.meshctl_output(&["delete", "service/reviews", "service/nowhere"]).unwrap(), 3);
    assert!(port("port: 9083"));
    mesh.meshctl(&["delete", "service/reviews"]).unwrap();
    code(mesh.meshctl_output(&["get", "service", "reviews"]).unwrap(), 3);
    mesh.meshctl(&["delete", "service/reviews", "--ignore-not-found"]).unwrap();
}

fn faults_are_listed_and_cleared_one_by_one(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    mesh.meshctl(&["fault", "delay", "reviews", "--percent", "50", "--delay", "2s", "--from", "web"]).unwrap();
    mesh.meshctl(&["fault", "abort", "reviews", "--percent", "10", "--status", "503"]).unwrap();
    let names =
        || mesh.meshctl(&["fault", "list", "-o", "name"]).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(names().len(), 2);
    let table = mesh.meshctl(&["fault", "list"]).unwrap();
    assert!(["50", "2s", "web", "503"].iter().all(|part| table.contains(part)), "{table}");
    mesh.meshctl(&["fault", "clear", "reviews-delay-from-web"]).unwrap();
    assert!(names().len() == 1 && !names()[0].contains("delay"), "{:?}", names());
    mesh.meshctl(&["fault", "clear", "reviews", "--wait"]).unwrap();
    assert!(names().is_empty());
    code(mesh.meshctl_output(&["fault", "clear", "nothing-like-it"]).unwrap(), 3);
}

fn log_levels_change_while_the_mesh_runs(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let _reviews = mesh.echo("reviews", "v1").unwrap();
    let control = || {
        let process = mesh.control.as_ref().unwrap();
        process.stdout() + &process.stderr()
    };
    assert!(!control().contains("DEBUG"));
    mesh.meshctl(&["log-level", "debug"]).unwrap();
    mesh.apply("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {ports: [{port: 9080}]}\n").unwrap();
    assert!(control().contains("DEBUG"), "{}", control());
    assert!(!mesh.proxy_logs("reviews-v1").unwrap().contains("DEBUG"));
    mesh.meshctl(&["proxy", "log-level", "reviews-v1", "debug"]).unwrap();
    mesh.curl("web", &["-o", "/dev/null", "http://reviews:9080/"]).unwrap();
    eventually(Duration::from_secs(5), || {
        let log = mesh.proxy_logs("reviews-v1")?;
        anyhow::ensure!(log.contains("DEBUG"), "{log}");
        Ok(())
    })
    .unwrap();
    let said = mesh.meshctl(&["proxy", "log-level", "reviews-v1", "info", "-o", "json"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&json["filter"], json["proxy"].as_str().unwrap().starts_with("reviews-v1")), (&"info".into(), true));
    code(mesh.meshctl_output(&["log-level", "no=such=level"]).unwrap(), 4);
}

/// Real bash completes commands and options with the script.
#[test]
fn shells_complete_commands() {
    let mesh = Mesh::start(User::Same).unwrap();
    let complete = |words: &str| {
        let script = format!(
            "set -eu; source <(\"$1\" completion bash); COMP_WORDS=({words} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             COMP_LINE='{words} '; COMP_POINT=${{#COMP_LINE}}; COMPREPLY=(); function=$(complete -p meshctl | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
             $function meshctl '' \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["-c", &script, "bash"]).arg(mesh.program("meshctl")).output().unwrap();
        code(output.clone(), 0);
        out(&output)
    };
    let commands = complete("meshctl");
    assert!(["apply", "route", "fault", "demo"].iter().all(|c| commands.lines().any(|l| l == *c)), "{commands}");
    let route = complete("meshctl route");
    assert!(route.lines().any(|l| l == "set-weight"), "{route}");

    // Real fish completes with its own, and real zsh takes its own for a function that completes `meshctl`.
    let shell = |shell: &str, args: &[&str]| {
        let output = Command::new(shell).args(args).arg(mesh.program("meshctl")).output().unwrap();
        code(output.clone(), 0);
        out(&output)
    };
    let fish = ["--no-config", "-c", "eval $argv[1] completion fish | source; complete --do-complete 'meshctl route '"];
    let route = shell("fish", &fish);
    assert!(route.lines().any(|l| l.starts_with("set-weight")), "{route}");
    let zsh = "autoload -U compinit; compinit -D; source <(\"$1\" completion zsh); print $_comps[meshctl]; whence -w _meshctl";
    let loaded = shell("zsh", &["-f", "-c", zsh, "zsh"]);
    assert!(loaded.contains("_meshctl\n") && loaded.contains("_meshctl: function"), "{loaded}");
}

fn a_start_that_failed_leaves_nothing_and_says_once_what_to_do(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let token = mesh.token("web").unwrap().display().to_string();
    let run = || mesh.meshctl_output(&["run", "--service", "web", "--token-file", &token, "--", "/bin/true"]).unwrap();
    assert!(run().status.success());
    let used_up = run();
    let said = String::from_utf8_lossy(&used_up.stderr).into_owned();
    assert!(!used_up.status.success());
    assert_eq!(said.matches("meshctl token create").count(), 1, "{said}");
    let left: Vec<_> = std::fs::read_dir(mesh.data().join("workloads")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The host's resolver cuts off over UDP what is too long for it, and the application's own resolver asks again over TCP.
fn long_answers_of_the_hosts_resolver_arrive_whole(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let resolver = Resolver::start().unwrap();
    let ask = "import socket; print(len({it[4][0] for it in socket.getaddrinfo('many.example.', 80, socket.AF_INET)}))";
    let mut client = mesh.run_resolving(&resolver, "web", &["/usr/bin/python3", "-c", ask]).unwrap();
    assert!(client.wait(Duration::from_secs(20)).unwrap().success(), "{}", client.tail());
    assert_eq!(client.stdout().trim(), MANY.to_string());
}

fn certificates_are_shown_and_missed_renewals_told(user: User) {
    let mut mesh = Mesh::start(user).unwrap();
    mesh.environment.push(("MESH_CERTIFICATE_TTL", "12".to_owned()));
    let reviews = mesh.echo("reviews", "v1").unwrap();
    // What is said, the exit code, and the warnings.
    let certs = || {
        let output = mesh.meshctl_output(&["certs", "reviews", "-o", "json"]).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (json["workloads"][0].clone(), output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let until = |what: &dyn Fn(&serde_json::Value) -> bool| {
        eventually(Duration::from_secs(15), || {
            let (it, code, warnings) = certs();
            anyhow::ensure!(what(&it), "{it:#} {code} {warnings}");
            Ok((it, code, warnings))
        })
        .unwrap()
    };
    let (first, code_of_good, warnings) = until(&|it| it["status"] == "ok");
    assert_eq!((code_of_good, warnings.as_str()), (0, ""), "{first:#}");
    assert_eq!(first["identity"], "spiffe://mesh.local/ns/default/sa/reviews");
    assert_eq!((&first["service"], &first["version"]), (&"reviews.default.svc.cluster.local".into(), &"v1".into()));
    assert!(first["issuer"].as_str().unwrap().starts_with("CN=Mesh intermediate of mesh.local"), "{first:#}");
    // It is the one that the proxy itself says it serves.
    let (serial, _) = eventually(Duration::from_secs(5), || {
        let serial = certs().0["serial"].as_str().unwrap().to_owned();
        let own = mesh.meshctl(&["proxy", "config", "secrets", "reviews-v1", "-o", "wide"])?;
        anyhow::ensure!(own.contains(&serial), "{serial} is not in {own}");
        Ok((serial, own))
    })
    .unwrap();
    let (renewed, ..) = until(&|it| it["serial"] != serial.as_str());
    assert!(renewed["servedSince"].as_str() > first["servedSince"].as_str(), "{first:#} {renewed:#}");
    let table = mesh.meshctl(&["certs"]).unwrap();
    let row = table.lines().find(|line| line.starts_with("reviews-v1")).unwrap();
    assert!(row.contains(" reviews ") && row.contains(" ago ") && row.ends_with(" ok"), "{table}");
    for authority in ["root", "intermediate", "control plane"] {
        assert!(table.lines().any(|line| line.starts_with(authority) && line.ends_with(" ok")), "{table}");
    }

    // A proxy that cannot renew it. Its token is used up, so it also cannot once the certificate has ended.
    reviews.signal_child("mesh-proxy", Signal::SIGSTOP).unwrap();
    let (_, code_of_late, warnings) = until(&|it| it["status"] == "late" || it["status"] == "expired");
    assert!(code_of_late == 1 && warnings.contains("warning: reviews-v1"), "{code_of_late} {warnings}");
    until(&|it| it["status"] == "expired");
    reviews.signal_child("mesh-proxy", Signal::SIGCONT).unwrap();
    let (it, code_of_expired, warnings) = until(&|it| it["failure"].is_string());
    assert_eq!((&it["status"], code_of_expired), (&"expired".into(), 1));
    assert!(warnings.contains("its certificate ended") && warnings.contains("token"), "{warnings}");
    code(mesh.meshctl_output(&["certs", "nowhere"]).unwrap(), 3);
}

fn logs_and_what_a_bug_report_has(user: User) {
    let mesh = Mesh::start(user).unwrap();
    let args = ["--version", "v1", "--port", "9080:http", "--access-log", "json"];
    let mut reviews = mesh.run("reviews", &args, &["testapp", "http", "--version", "v1"]).unwrap();
    mesh.discovered("reviews", "v1").unwrap();
    let ids = mesh.meshctl(&["proxy", "status", "-o", "name"]).unwrap();
    let id = ids.trim();
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews}]
  rules:
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: authorization, value: Basic s3cret}]}
    backendRefs: [{name: reviews, port: 9080}]
";
    mesh.apply(route).unwrap();
    let load = mesh.load("web", &["--url", "http://reviews:9080/?token=s3cret", "--rate", "20"]).unwrap();
    load.flowing().unwrap();
    // There is something to hide, in the log and in the configuration of who calls.
    eventually(Duration::from_secs(10), || {
        let log = mesh.meshctl(&["logs", id, "--lines", "100000"])?;
        anyhow::ensure!(log.contains(" INFO ") && log.contains("/?token=s3cret"), "{log}");
        let routes = mesh.meshctl(&["proxy", "config", "routes", "web", "-o", "json"])?;
        anyhow::ensure!(routes.contains("Basic s3cret"), "{routes}");
        Ok(())
    })
    .unwrap();
    let file = mesh.data().join("report.tar.gz").display().to_string();
    let said = mesh.meshctl(&["bug-report", "--file", &file]).unwrap();
    // A control plane that was started by hand has its log where that was sent.
    assert!(said.contains("missing: the control plane's log: "), "{said}");
    assert_eq!(said.matches("missing: ").count(), 1, "{said}");
    let tar = |args: &[&str]| out(&Command::new("tar").args(args).output().unwrap());
    let list = tar(&["-tzf", &file]);
    for part in
        ["about.txt", "check.txt", "objects.json", &format!("proxies/{id}.json"), "changes.json", "topology.json"]
    {
        assert!(list.lines().any(|line| line.ends_with(part)), "{part} is not in {list}");
    }
    let all = tar(&["-xzOf", &file]);
    assert!(all.contains("envoy.config.listener.v3.Listener") && all.contains("/?[redacted]"), "{all}");
    assert!(!all.contains("s3cret") && !all.contains("PRIVATE KEY"), "{all}");

    // Nobody has to be there any more.
    load.stop().unwrap();
    reviews.end().unwrap();
    let mut alone = mesh.command("meshctl");
    alone.args([
        "--control",
        &format!("unix:{}", mesh.data().join("control.sock").display()),
        "logs",
        id,
        "--lines",
        "5",
    ]);
    assert_eq!(out(&alone.output().unwrap()).lines().count(), 5);
}
