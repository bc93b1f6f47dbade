//! Route configurations: a row for each route.

use serde_json::Value;

use super::text::{list, number, short_cluster, string_match, text, texts, type_name, weighted};
use super::{Entry, state};
use crate::output::Table;

pub fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(&[
        "ROUTES",
        "REQUESTS",
        "TO",
        "TIMEOUT",
        "RETRIES",
        "ALSO",
        "STATE",
        "+RETRY ON",
        "+HOSTS",
        "+ROUTE",
        "+VERSION",
    ]);
    for entry in entries {
        let hosts = list(&entry.resource["virtual_hosts"]);
        let routes = hosts.iter().flat_map(|host| list(&host["routes"]).iter().map(move |route| (host, route)));
        let mut none = true;
        for (host, route) in routes {
            none = false;
            let (timeout, retries, retry_on) = limits(&route["route"]);
            table.row(vec![
                short_cluster(&entry.name).into(),
                conditions(&route["match"]).into(),
                action(route).into(),
                timeout.into(),
                retries.into(),
                extras(route).join(", ").into(),
                state(entry),
                retry_on.into(),
                texts(&host["domains"]).join(", ").into(),
                text(&route["name"]).into(),
                entry.version.clone().into(),
            ]);
        }
        if none {
            let mut cells = vec![short_cluster(&entry.name).into(), "none".into()];
            cells.extend((0..4).map(|_| "".into()));
            cells.push(state(entry));
            cells.extend(["".into(), "".into(), "".into(), entry.version.clone().into()]);
            table.row(cells);
        }
    }
    table
}

fn conditions(matched: &Value) -> String {
    let mut parts = Vec::new();
    let prefix = text(&matched["path_separated_prefix"]);
    let path = match (text(&matched["prefix"]), text(&matched["path"]), text(&matched["safe_regex"]["regex"])) {
        ("", "", "") if !prefix.is_empty() => Some(format!("path {prefix}/*")),
        ("" | "/", "", "") => None,
        ("", "", regex) => Some(format!("path ~{regex}")),
        ("", path, _) => Some(format!("path {path}")),
        (prefix, _, _) => Some(format!("path {prefix}*")),
    };
    parts.extend(path);
    if matched["connect_matcher"].is_object() {
        parts.push("CONNECT".to_owned());
    }
    if matched["grpc"].is_object() {
        parts.push("gRPC".to_owned());
    }
    parts.extend(list(&matched["headers"]).iter().map(header));
    parts.extend(list(&matched["query_parameters"]).iter().map(|query| {
        let name = text(&query["name"]);
        match query["string_match"].is_object() {
            true => format!("query {name}={}", string_match(&query["string_match"])),
            false => format!("query {name}"),
        }
    }));
    if parts.is_empty() { "all".to_owned() } else { parts.join(", ") }
}

fn header(matched: &Value) -> String {
    let name = text(&matched["name"]);
    let not = if matched["invert_match"] == true { "not " } else { "" };
    let value = match &matched["string_match"] {
        pattern if pattern.is_object() => Some(string_match(pattern)),
        _ => ["exact_match", "prefix_match"].iter().find_map(|k| matched[k].as_str()).map(str::to_owned),
    };
    match (name, value) {
        (":method", Some(method)) => format!("{not}{method}"),
        (name, Some(value)) => format!("{not}header {name}={value}"),
        (name, None) => format!("{not}header {name}"),
    }
}

fn action(route: &Value) -> String {
    let action = &route["route"];
    if action.is_object() {
        return match text(&action["cluster"]) {
            "" if action["weighted_clusters"].is_object() => weighted(&action["weighted_clusters"]["clusters"]),
            "" => "?".to_owned(),
            cluster => short_cluster(cluster),
        };
    }
    let answer = &route["direct_response"];
    if answer.is_object() {
        return format!("answer {}", number(&answer["status"]).unwrap_or_default());
    }
    let redirect = &route["redirect"];
    if redirect.is_object() {
        let parts = [
            text(&redirect["scheme_redirect"]),
            text(&redirect["host_redirect"]),
            text(&redirect["path_redirect"]),
            text(&redirect["prefix_rewrite"]),
        ];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        return format!("redirect to {}", parts.join(" "));
    }
    "?".to_owned()
}

/// Timeout, number of retries, and on what.
fn limits(action: &Value) -> (String, String, String) {
    let timeout = match text(&action["timeout"]) {
        "0s" => "none",
        other => other,
    };
    let retry = &action["retry_policy"];
    let (count, on) = match (number(&retry["num_retries"]), text(&retry["retry_on"])) {
        (Some(0), _) | (None, "") => (String::new(), ""),
        (count, on) => (count.unwrap_or(1).to_string(), on),
    };
    (timeout.to_owned(), count, on.to_owned())
}

/// Faults, mirrors and rewrites.
fn extras(route: &Value) -> Vec<String> {
    let mut extras = Vec::new();
    let filters = route["typed_per_filter_config"].as_object();
    for config in filters.into_iter().flat_map(|filters| filters.values()) {
        match type_name(config) {
            "Fault" => extras.extend(list(&config["rules"]).iter().map(fault)),
            "HTTPFault" => extras.push("fault".to_owned()),
            other => extras.push(other.to_owned()),
        }
    }
    let action = &route["route"];
    extras.extend(
        list(&action["request_mirror_policies"])
            .iter()
            .map(|m| format!("mirror to {}", short_cluster(text(&m["cluster"])))),
    );
    if ["prefix_rewrite", "regex_rewrite", "host_rewrite_literal"].iter().any(|field| !action[*field].is_null()) {
        extras.push("rewrite".to_owned());
    }
    let headers = [
        "request_headers_to_add",
        "request_headers_to_remove",
        "response_headers_to_add",
        "response_headers_to_remove",
    ];
    if headers.iter().any(|field| !list(&route[*field]).is_empty()) {
        extras.push("headers".to_owned());
    }
    extras
}

/// `fault delay 50 %`
fn fault(rule: &Value) -> String {
    let kind = ["delay", "abort", "reset", "throttle"].into_iter().find(|kind| rule[kind].is_object()).unwrap_or("?");
    let percent = number(&rule["parts_per_million"]).unwrap_or_default() as f64 / 10_000.0;
    format!("fault {kind} {percent} %")
}
