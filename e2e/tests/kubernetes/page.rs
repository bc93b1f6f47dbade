//! Who follows docs/kubernetes.md gets what it says: its commands are run as they stand there, from an empty namespace to a
//! canary and a fault.

use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use mesh_e2e::app::load::Report;
use mesh_e2e::cluster::{Cluster, Namespace, apps, repository};
use mesh_e2e::process::eventually;
use serde_json::Value;

const PAGE: &str = include_str!("../../../docs/kubernetes.md");
/// As the page's commands name it.
const EXAMPLE: &str = "docs/examples/reviews.yaml";
/// Sections of the page, with what their commands begin with.
const APPLICATION: (&str, [&str; 5]) = (
    "Put an application into the mesh",
    [
        "kubectl create namespace shop",
        "kubectl label namespace shop ",
        "kubectl apply -n shop -f docs/examples/reviews.yaml",
        "kubectl wait -n shop ",
        "meshctl inject -f docs/examples/reviews.yaml | kubectl apply -n shop ",
    ],
);
const CANARY: (&str, [&str; 2]) =
    ("Canary", ["meshctl -n shop route set-weight reviews ", "kubectl exec -n shop deploy/web -- "]);
const FAULTS: (&str, [&str; 4]) = (
    "Faults, proxies, checks",
    [
        "meshctl -n shop fault abort reviews --percent 10 --from web ",
        "meshctl -n shop proxy status",
        "meshctl -n shop proxy config routes web",
        "meshctl check",
    ],
);
/// What the page runs in the pod of `web`, whose image has neither a shell nor curl here.
const LOOP: &str = "sh -c 'for i in $(seq 100); do curl -s http://reviews:9080/; done' | sort | uniq -c";
const SAME: &str = "/testapp load --url http://reviews:9080/ --requests 100";

pub fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let mut example = tempfile::NamedTempFile::new()?;
    example.write_all(with_images_of_the_tests()?.as_bytes())?;
    let example = example.path().display().to_string();
    let run = |command: &str| cluster.shell(&command.replace(EXAMPLE, &example));
    let namespace = application(cluster, &run)?;
    canary(&namespace, &run)?;
    faults(&namespace, &run)
}

/// Types a command, and gives what is answered.
type Run<'a> = &'a dyn Fn(&str) -> anyhow::Result<String>;

fn application<'a>(cluster: &'a Cluster, run: Run) -> anyhow::Result<Namespace<'a>> {
    let [create, label, apply, wait, inject] = Section::of(APPLICATION.0)?.commands(APPLICATION.1)?;
    // If there is one already, it is not ours, and this fails.
    run(create)?;
    let namespace = cluster.adopt("shop")?;
    for command in [label, apply, wait] {
        run(command)?;
    }
    // It has waited.
    let deployments = namespace.get(&["deployments"])?;
    let deployments = deployments["items"].as_array().context("no list of deployments")?;
    let ready = deployments.iter().filter(|it| it["status"]["availableReplicas"] == 1).count();
    ensure!((ready, deployments.len()) == (3, 3), "{deployments:?}");
    one_proxy_each(&namespace)?;

    // By the webhook until now. It leaves alone what has a proxy already.
    let template = || anyhow::Ok(proxies(&namespace.get(&["deployment/web"])?["spec"]["template"]));
    ensure!(template()? == 0, "the Deployment has a proxy before anybody has given it one");
    run(inject)?;
    ensure!(template()? == 1, "the Deployment has no proxy");
    for deployment in ["reviews-v1", "reviews-v2", "web"] {
        namespace.rolled_out(deployment)?;
    }
    one_proxy_each(&namespace)?;
    Ok(namespace)
}

/// Of the three pods, once those before them are gone.
fn one_proxy_each(namespace: &Namespace) -> anyhow::Result<()> {
    eventually(Duration::from_secs(60), || {
        let pods = namespace.get(&["pods"])?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        let counts: Vec<usize> = pods.iter().map(proxies).collect();
        ensure!(counts == [1, 1, 1], "proxies by pod: {counts:?}");
        Ok(())
    })
}

/// In a pod, or in a template of pods.
fn proxies(pod: &Value) -> usize {
    let spec = &pod["spec"];
    let containers = ["initContainers", "containers"].map(|field| spec[field].as_array());
    containers.into_iter().flatten().flatten().filter(|container| container["name"] == "mesh-proxy").count()
}

fn canary(namespace: &Namespace, run: Run) -> anyhow::Result<()> {
    let section = Section::of(CANARY.0)?;
    let [set_weight, ask] = section.commands(CANARY.1)?;
    let exec = asked(&section, ask)?;
    let nine_of_ten = || {
        let said = run(&format!("{exec}{SAME}"))?;
        // kubectl and the client say something beside it.
        let report = said.lines().find(|line| line.starts_with('{')).with_context(|| format!("no report: {said}"))?;
        let report: Report = serde_json::from_str(report)?;
        let expected = [("v1".to_owned(), 90), ("v2".to_owned(), 10)].into();
        ensure!(report.by_version == expected && (report.good(), report.failed) == (100, 0), "{report:?}");
        anyhow::Ok(())
    };
    run(set_weight)?;
    nine_of_ten()?;

    let made = namespace.get(&["httproute/reviews"])?;
    namespace.cluster.apply(the_same(&section)?)?;
    for condition in ["Accepted", "ResolvedRefs"] {
        namespace.condition("httproute/reviews", condition, "True")?;
    }
    let applied = namespace.get(&["httproute/reviews"])?;
    ensure!(made["spec"] == applied["spec"], "not the same: {} and {}", made["spec"], applied["spec"]);
    nine_of_ten()
}

/// How the page calls from the pod of `web`: all but the program, which the test has another one for.
fn asked(section: &Section, command: &'static str) -> anyhow::Result<&'static str> {
    ensure!(section.text.contains("and nine of ten answers are `v1`:"), "what the page promises: {}", section.text);
    command.strip_suffix(LOOP).with_context(|| format!("not what the test does instead: {command}"))
}

/// The one block of the section.
fn the_same(section: &Section) -> anyhow::Result<&'static str> {
    let [route] = section.blocks.as_slice() else { bail!("not one block: {:?}", section.blocks) };
    route.strip_prefix("yaml\n").context("the route is not in YAML")
}

fn faults(namespace: &Namespace, run: Run) -> anyhow::Result<()> {
    let [fault, status, config, check] = Section::of(FAULTS.0)?.commands(FAULTS.1)?;
    run(fault)?;
    let load = ["--url", "http://reviews:9080/", "--connections", "4", "--requests", "1000"];
    eventually(Duration::from_secs(20), || {
        let report = namespace.load("web", &load)?;
        ensure!((report.by_status.get(&503), report.good(), report.failed) == (Some(&100), 900, 0), "{report:?}");
        Ok(())
    })?;
    let spared = namespace.load("reviews-v1", &load)?;
    ensure!((spared.good(), spared.failed) == (1000, 0), "somebody else was hit: {spared:?}");

    let said = run(status)?;
    for pod in ["web-", "reviews-v1-", "reviews-v2-"] {
        ensure!(said.lines().any(|line| line.starts_with(pod)), "no {pod}: {said}");
    }
    let said = run(config)?;
    ensure!(said.contains("reviews-v1") && said.contains("reviews-v2"), "{said}");
    // Of the whole mesh, where the namespace of the check before may still be ending.
    eventually(Duration::from_secs(60), || run(check)).map(drop)
}

/// The example with the test's own application in the place of its images, which are in a registry. The rest is as it stands.
fn with_images_of_the_tests() -> anyhow::Result<String> {
    let example = fs::read_to_string(repository().join(EXAMPLE))?;
    let image = format!("image: {}", apps::IMAGE);
    // What serves, each time for one of two versions, and then what calls.
    let others = [
        ("image: hashicorp/http-echo:1.0", image.as_str()),
        (r#"args: ["-listen=:9080", "-text=v1"]"#, "args: [http, --version, v1]"),
        ("image: hashicorp/http-echo:1.0", &image),
        (r#"args: ["-listen=:9080", "-text=v2"]"#, "args: [http, --version, v2]"),
        ("image: curlimages/curl:8.11.1", &image),
        ("command: [sleep, infinity]", "args: [idle]"),
    ];
    let is_of_image = |line: &str| ["image:", "args:", "command:"].iter().any(|field| line.trim().starts_with(field));
    let mut others = others.iter();
    let lines = example.lines().map(|line| {
        if !is_of_image(line) {
            return Ok(line.to_owned());
        }
        let (there, instead) = others.next().with_context(|| format!("{line:?} is not known here"))?;
        ensure!(line.trim() == *there, "{line:?} is not {there:?}");
        Ok(line.replace(there, instead))
    });
    let copy = lines.collect::<anyhow::Result<Vec<String>>>()?.join("\n");
    ensure!(others.next().is_none(), "something is no longer in {EXAMPLE}");
    let same = example.lines().zip(copy.lines()).filter(|(line, of_copy)| line == of_copy).count();
    ensure!(same + 6 == example.lines().count(), "more is different than six lines:\n{copy}");
    Ok(copy)
}

/// Without a cluster: what the check does not know is no surprise of an hour later.
#[test]
fn the_page_has_what_is_checked() {
    Section::of(APPLICATION.0).unwrap().commands(APPLICATION.1).unwrap();
    Section::of(FAULTS.0).unwrap().commands(FAULTS.1).unwrap();
    let canary = Section::of(CANARY.0).unwrap();
    let [_, ask] = canary.commands(CANARY.1).unwrap();
    assert_eq!(asked(&canary, ask).unwrap(), "kubectl exec -n shop deploy/web -- ");
    assert!(the_same(&canary).unwrap().starts_with("apiVersion: "));
    let copy = with_images_of_the_tests().unwrap();
    assert_eq!(copy.matches(apps::IMAGE).count(), 3, "{copy}");
}

/// A part of the page, with what it shows to be typed and to be applied.
struct Section {
    text: &'static str,
    typed: Vec<&'static str>,
    blocks: Vec<&'static str>,
}

impl Section {
    fn of(title: &str) -> anyhow::Result<Self> {
        let (_, after) = PAGE.split_once(&format!("\n## {title}\n")).with_context(|| format!("no section {title}"))?;
        let text = after.split("\n## ").next().unwrap_or(after);
        let (mut typed, mut blocks) = (Vec::new(), Vec::new());
        // Between two fences there is a block.
        for (index, part) in text.split("```").enumerate() {
            match index % 2 {
                0 => typed.extend(part.lines().filter_map(|line| line.strip_prefix("    "))),
                _ => blocks.push(part),
            }
        }
        Ok(Self { text, typed, blocks })
    }

    /// Its commands, which are these and no others.
    fn commands<const N: usize>(&self, beginnings: [&str; N]) -> anyhow::Result<[&'static str; N]> {
        let typed = &self.typed;
        let known = typed.len() == N && typed.iter().zip(beginnings).all(|(line, begins)| line.starts_with(begins));
        ensure!(known, "the page's commands {typed:#?} are not those that are checked: {beginnings:#?}");
        self.typed.as_slice().try_into().context("not as many")
    }
}
