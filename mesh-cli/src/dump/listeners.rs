//! Listeners: a row for each filter chain.

use serde_json::Value;

use super::text::{address, downstream_tls, list, number, short_cluster, text, texts, type_name, weighted};
use super::{Entry, state};
use crate::output::Table;

pub fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(&["LISTENER", "CONNECTIONS", "SECURITY", "TO", "STATE", "+ADDRESS", "+VERSION"]);
    for entry in entries {
        let listener = &entry.resource;
        let chains = list(&listener["filter_chains"]).iter();
        let default = Some(&listener["default_filter_chain"]).filter(|chain| chain.is_object());
        let several = chains.len() + usize::from(default.is_some()) > 1;
        let mut rows: Vec<(String, &Value)> =
            chains.map(|chain| (conditions(&chain["filter_chain_match"], several), chain)).collect();
        rows.extend(default.map(|chain| ("all others".to_owned(), chain)));
        // The listener of a gRPC client has no chains.
        let api = &listener["api_listener"]["api_listener"];
        let mut row = |connections: String, security: &str, to: String| {
            table.row(vec![
                entry.name.clone().into(),
                connections.into(),
                security.into(),
                to.into(),
                state(entry),
                address(&listener["address"]).into(),
                entry.version.clone().into(),
            ]);
        };
        if rows.is_empty() {
            let to = if api.is_object() { destination(api) } else { entry.error.clone().unwrap_or_default() };
            row("all".to_owned(), "", to);
        }
        for (connections, chain) in rows {
            let filters: Vec<String> =
                list(&chain["filters"]).iter().map(|f| destination(&f["typed_config"])).collect();
            row(connections, downstream_tls(&chain["transport_socket"]), filters.join(" -> "));
        }
    }
    table
}

/// `port 9080, tls, mesh-h2`
fn conditions(matched: &Value, several: bool) -> String {
    let mut parts = Vec::new();
    parts.extend(number(&matched["destination_port"]).map(|port| format!("port {port}")));
    let ranges = list(&matched["prefix_ranges"]).iter().map(|range| {
        format!("to {}/{}", text(&range["address_prefix"]), number(&range["prefix_len"]).unwrap_or_default())
    });
    parts.extend(ranges);
    match text(&matched["transport_protocol"]) {
        "" => {}
        "raw_buffer" => parts.push("plaintext".to_owned()),
        other => parts.push(other.to_owned()),
    }
    parts.extend(Some(texts(&matched["server_names"]).join("|")).filter(|t| !t.is_empty()));
    parts.extend(Some(texts(&matched["application_protocols"]).join("|")).filter(|t| !t.is_empty()));
    match parts.is_empty() {
        true if several => "all others".to_owned(),
        true => "all".to_owned(),
        false => parts.join(", "),
    }
}

/// What a filter does with the connection.
fn destination(filter: &Value) -> String {
    match type_name(filter) {
        "HttpConnectionManager" => http(filter),
        "TcpProxy" => {
            let weighted_clusters = &filter["weighted_clusters"]["clusters"];
            match text(&filter["cluster"]) {
                "" => format!("TCP to {}", weighted(weighted_clusters)),
                cluster => format!("TCP to {}", short_cluster(cluster)),
            }
        }
        "Fault" => format!("{} faults", list(&filter["rules"]).len()),
        "" => "?".to_owned(),
        other => other.to_owned(),
    }
}

fn http(manager: &Value) -> String {
    let name = text(&manager["rds"]["route_config_name"]);
    if !name.is_empty() {
        return format!("HTTP by routes {}", short_cluster(name));
    }
    let hosts = list(&manager["route_config"]["virtual_hosts"]).iter();
    let routes: Vec<&Value> = hosts.flat_map(|host| list(&host["routes"])).collect();
    let cluster = |route: &&Value| text(&route["route"]["cluster"]).to_owned();
    let mut clusters: Vec<String> = routes.iter().map(cluster).collect();
    clusters.dedup();
    match clusters.as_slice() {
        [only] if !only.is_empty() => format!("HTTP to {}", short_cluster(only)),
        _ => format!("HTTP by {} own routes", routes.len()),
    }
}
