//! Clusters.

use serde_json::Value;

use super::text::{list, number, short_cluster, text, type_name, upstream_tls};
use super::{Entry, state};
use crate::output::Table;

pub fn table(entries: &[Entry]) -> Table {
    let mut table =
        Table::new(&["CLUSTER", "TYPE", "BALANCING", "SECURITY", "HTTP", "CONNECT", "STATE", "+LIMITS", "+VERSION"]);
    for entry in entries {
        let cluster = &entry.resource;
        table.row(vec![
            short_cluster(&entry.name).into(),
            // Protobuf leaves out what is zero.
            Some(text(&cluster["type"])).filter(|t| !t.is_empty()).unwrap_or("STATIC").into(),
            balancing(cluster).into(),
            security(cluster).into(),
            http(cluster).into(),
            text(&cluster["connect_timeout"]).into(),
            state(entry),
            limits(cluster).join(", ").into(),
            entry.version.clone().into(),
        ]);
    }
    table
}

fn balancing(cluster: &Value) -> String {
    let policy = &list(&cluster["load_balancing_policy"]["policies"]).first();
    if let Some(policy) = policy {
        return type_name(&policy["typed_extension_config"]["typed_config"]).to_owned();
    }
    let policy = Some(text(&cluster["lb_policy"])).filter(|p| !p.is_empty()).unwrap_or("ROUND_ROBIN");
    policy.to_lowercase().replace('_', " ")
}

/// The first match is for endpoints in the mesh; what is different for the others is said after it.
fn security(cluster: &Value) -> String {
    let matches = list(&cluster["transport_socket_matches"]);
    let mut kinds: Vec<String> = matches.iter().map(|m| upstream_tls(&m["transport_socket"])).collect();
    if matches.is_empty() {
        kinds.push(upstream_tls(&cluster["transport_socket"]));
    }
    kinds.dedup();
    kinds.join(" or ")
}

fn http(cluster: &Value) -> String {
    let options = cluster["typed_extension_protocol_options"].as_object();
    let options = options.and_then(|all| all.values().find(|o| type_name(o) == "HttpProtocolOptions"));
    let Some(options) = options else {
        return if cluster["http2_protocol_options"].is_object() { "HTTP/2".to_owned() } else { String::new() };
    };
    let explicit = &options["explicit_http_config"];
    let known = [
        (explicit["http2_protocol_options"].is_object(), "HTTP/2"),
        (explicit["http3_protocol_options"].is_object(), "HTTP/3"),
        (explicit.is_object(), "HTTP/1.1"),
        (options["use_downstream_protocol_config"].is_object(), "as called"),
        (options["auto_config"].is_object(), "by ALPN"),
    ];
    known.into_iter().find(|(is, _)| *is).map(|(_, name)| name.to_owned()).unwrap_or_default()
}

fn limits(cluster: &Value) -> Vec<String> {
    let named = [
        ("max_connections", "connections"),
        ("max_pending_requests", "pending"),
        ("max_requests", "requests"),
        ("max_retries", "retries"),
    ];
    let thresholds = list(&cluster["circuit_breakers"]["thresholds"]).iter();
    thresholds
        .flat_map(|threshold| {
            named.iter().filter_map(|(field, name)| Some(format!("{} {name}", number(&threshold[*field])?)))
        })
        .collect()
}
