//! Keeps `docs/reference` true: the command reference is made from the command tree itself, and the reference of objects must
//! name every field that can be read. `MESH_WRITE_DOCS=1 cargo test -p mesh-cli reference` writes the former anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use mesh_common::resource::{Kind, parse_yaml};

use crate::args::Cli;
use crate::failure::Exit;

const BEGIN: &str = "<!-- From here on made by `MESH_WRITE_DOCS=1 cargo test -p mesh-cli reference`. -->\n";

#[test]
fn the_command_reference_is_that_of_the_command_tree() {
    let file = folder().join("cli.md");
    let written = fs::read_to_string(&file).unwrap();
    let (head, _) = written.split_once(BEGIN).expect("the marker is missing");
    let expected = format!("{head}{BEGIN}{}", commands());
    if std::env::var_os("MESH_WRITE_DOCS").is_some() {
        fs::write(&file, &expected).unwrap();
    } else {
        assert!(written == expected, "docs/reference/cli.md is not what the commands are; see the top of this file");
    }
}

#[test]
fn all_exit_codes_are_documented() {
    let text = fs::read_to_string(folder().join("cli.md")).unwrap();
    for exit in
        [Exit::Quiet, Exit::Failed, Exit::Usage, Exit::NotFound, Exit::Refused, Exit::Unreachable, Exit::TimedOut]
    {
        assert!(text.contains(&format!("| {} |", exit.code())), "{exit:?} is not documented");
    }
}

/// An object of each kind that uses every nested structure. A field that does not exist is put into each of these, and the
/// error lists those that do.
const OBJECTS: [(Kind, &str); 16] = [
    (Kind::Service, "{ports: [{port: 80}]}"),
    (
        Kind::HttpRoute,
        "{parentRefs: [{name: x}], rules: [{matches: [{path: {}, headers: [{name: x, value: x}], queryParams: []}], \
         filters: [{type: RequestRedirect, requestHeaderModifier: {set: [{name: x, value: x}]}, \
         requestMirror: {backendRef: {name: x}, fraction: {numerator: 1}}, \
         requestRedirect: {path: {type: ReplaceFullPath}}, urlRewrite: {}, cors: {}, \
         extensionRef: {group: x, kind: x, name: x}}], \
         backendRefs: [{name: x}], timeouts: {}, retry: {}}]}",
    ),
    (Kind::GrpcRoute, "{rules: [{matches: [{method: {}}], filters: [{type: RequestMirror}]}]}"),
    (Kind::TcpRoute, "{rules: [{backendRefs: [{name: x}]}]}"),
    (Kind::TlsRoute, "{hostnames: [x], rules: [{backendRefs: [{name: x}]}]}"),
    (Kind::UdpRoute, "{rules: [{backendRefs: [{name: x}]}]}"),
    (Kind::ReferenceGrant, "{from: [{group: x, kind: x, namespace: x}], to: [{kind: x}]}"),
    (
        Kind::TrafficPolicy,
        "{targetRefs: [{kind: x, name: x}], loadBalancer: {hash: [{cookie: {name: x}}], slowStart: {window: 1s}, \
         locality: {failover: [{from: x, to: []}], weights: [{from: x, to: [{locality: x, weight: 1}]}]}}, timeouts: {}, \
         retries: {backoff: {base: 1s}, budget: {percent: 1}, hedge: {after: 1s}}, connectionPool: {}, limits: {requests: {rate: 1}, \
         bandwidth: {perCaller: {}}}, \
         outlierDetection: {successRate: {}}, healthCheck: {http: {path: /}, grpc: {}, tcp: {}}}",
    ),
    (
        Kind::FaultInjection,
        "{targetRefs: [], from: [{}], faults: [{percent: 1, delay: {duration: 1s}, abort: {httpStatus: 503}, \
         throttle: {rate: 1Ki}, match: {headers: []}}]}",
    ),
    (Kind::DirectResponse, "{status: 200}"),
    (Kind::PeerAuthentication, "{targetRefs: []}"),
    (
        Kind::RequestAuthentication,
        "{targetRefs: [], jwtRules: [{issuer: x, fromHeaders: [{name: x}], \
         outputClaimToHeaders: [{header: x, claim: x}]}]}",
    ),
    (Kind::AuthorizationPolicy, "{targetRefs: [], rules: [{from: [{claims: [{path: []}]}], to: [{headers: [{}]}]}]}"),
    (Kind::Telemetry, "{targetRefs: [], tracing: {backend: {name: x, port: 1}}}"),
    (Kind::WorkloadEntry, "{ports: [{port: 1}]}"),
    (Kind::MeshConfig, "{retries: {}}"),
];

#[test]
fn the_reference_of_objects_names_every_field() {
    let text = fs::read_to_string(folder().join("resources.md")).unwrap();
    for (kind, spec) in OBJECTS {
        let heading = format!("\n## {kind}\n");
        let (_, section) = text.split_once(&heading).unwrap_or_else(|| panic!("there is no heading {kind}"));
        let section = section.split("\n## ").next().unwrap();
        let fields = fields(kind, spec);
        assert!(fields.len() >= 2, "{kind}: {fields:?}");
        // Code is between backticks: every second part.
        let code = section.split('`').skip(1).step_by(2);
        let words: BTreeSet<&str> = code.flat_map(|code| code.split(|c: char| !c.is_alphanumeric())).collect();
        for field in fields {
            assert!(words.contains(field.as_str()), "{kind}: the field {field} is not documented");
        }
    }
}

#[test]
fn the_help_of_get_names_every_kind() {
    let tree = Cli::command();
    let about = tree.find_subcommand("get").and_then(Command::get_long_about).unwrap().to_string();
    for kind in Kind::ALL {
        assert!(about.contains(&format!("`{}`", kind.singular())), "{kind} is not in: {about}");
    }
}

/// The names of all fields in all structures of the spec, as the errors about an unknown one tell them.
fn fields(kind: Kind, spec: &str) -> BTreeSet<String> {
    let spec = spec.replace('{', "{nosuchfield: 1, ").replace(", }", "}");
    let yaml =
        format!("{{apiVersion: {}, kind: {kind}, metadata: {{name: default}}, spec: {spec}}}", kind.api_version());
    let errors = parse_yaml("test", &yaml).unwrap_err();
    let listed = errors.iter().filter_map(|e| e.message.split_once("the fields here are ").map(|(_, fields)| fields));
    listed.flat_map(|fields| fields.split(", ")).map(|field| field.trim_matches(['`', '.']).to_owned()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference")
}

fn commands() -> String {
    let mut tree = Cli::command().term_width(0);
    tree.build();
    let mut out = String::new();
    document(&mut out, &tree, "meshctl");
    for command in tree.get_subcommands() {
        with_subcommands(&mut out, command, "meshctl");
    }
    out
}

fn with_subcommands(out: &mut String, command: &Command, parent: &str) {
    if command.get_name() == "help" || command.is_hide_set() {
        return;
    }
    let name = format!("{parent} {}", command.get_name());
    document(out, command, &name);
    for command in command.get_subcommands() {
        with_subcommands(out, command, &name);
    }
}

fn document(out: &mut String, command: &Command, name: &str) {
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    out.push_str(&format!("\n## {name}\n\n{about}\n\n    {usage}\n"));
    let own = |arg: &&Arg| !matches!(arg.get_id().as_str(), "help" | "version_flag") && !arg.is_hide_set();
    // Global ones are documented once.
    let arguments: Vec<&Arg> =
        command.get_arguments().filter(own).filter(|arg| name == "meshctl" || !arg.is_global_set()).collect();
    if !arguments.is_empty() {
        out.push_str("\n| Argument | |\n|---|---|\n");
        arguments.iter().for_each(|arg| out.push_str(&argument(arg)));
    }
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    if let Some(examples) = after.strip_prefix("Examples:\n").or_else(|| after.strip_prefix("Example:\n")) {
        let lines: Vec<String> = examples.lines().map(|line| format!("    {}", line.trim_start())).collect();
        out.push_str(&format!("\nExamples:\n\n{}\n", lines.join("\n")));
    }
}

/// A row: how it is written, what it is for, its values and default.
fn argument(arg: &Arg) -> String {
    let values: Vec<String> = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let takes_value = arg.get_action().takes_values();
    let value = match takes_value && !values.is_empty() {
        true if arg.is_require_equals_set() => format!("[={}]", values.join(" ")),
        true => format!(" {}", values.join(" ")),
        false => String::new(),
    };
    let written = match (arg.get_short(), arg.get_long()) {
        (None, None) => values.join(" "),
        (Some(short), Some(long)) => format!("-{short}, --{long}{value}"),
        (Some(short), None) => format!("-{short}{value}"),
        (None, Some(long)) => format!("--{long}{value}"),
    };
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<_> = arg.get_possible_values();
    if takes_value && !possible.is_empty() && !arg.is_hide_possible_values_set() {
        let one = |v: &clap::builder::PossibleValue| match v.get_help() {
            Some(help) => format!("`{}`: {help}", v.get_name()),
            None => format!("`{}`", v.get_name()),
        };
        text.push_str(&format!(". One of {}", possible.iter().map(one).collect::<Vec<_>>().join("; ")));
    }
    let default: Vec<String> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    if takes_value && !default.is_empty() && !default.iter().all(String::is_empty) {
        text.push_str(&format!(". Default: `{}`", default.join(" ")));
    }
    if let Some(variable) = arg.get_env() {
        text.push_str(&format!(". Environment: `{}`", variable.to_string_lossy()));
    }
    format!("| `{}` | {} |\n", written.replace('|', "\\|"), text.replace('|', "\\|").replace('\n', " "))
}
