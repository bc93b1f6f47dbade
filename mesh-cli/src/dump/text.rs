//! Short words for parts of Envoy's configuration, read from its JSON. What is not understood is named, never left out.

use serde_json::Value;

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

pub fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

/// `Fault` of `type.googleapis.com/mesh.extensions.v1.Fault`.
pub fn type_name(value: &Value) -> &str {
    let url = text(&value["@type"]);
    url.rsplit(['.', '/']).next().unwrap_or(url)
}

/// `10.0.0.1:80`, `[::1]:80` or a path.
pub fn address(value: &Value) -> String {
    let socket = &value["socket_address"];
    if socket.is_object() {
        let host = text(&socket["address"]);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        return format!("{host}:{}", number(&socket["port_value"]).unwrap_or_default());
    }
    match text(&value["pipe"]["path"]) {
        "" => String::new(),
        path => format!("unix:{path}"),
    }
}

/// A cluster's name without what is the same for all: `reviews-v2.default:9080`.
pub fn short_cluster(name: &str) -> String {
    name.replace(&format!(".svc.{}", mesh_common::names::CLUSTER_DOMAIN), "")
}

/// `reviews-v1.default:9080 90 %, reviews-v2.default:9080 10 %`
pub fn weighted(clusters: &Value) -> String {
    let weight = |c: &Value| number(&c["weight"]).unwrap_or_default();
    let total: u64 = list(clusters).iter().map(weight).sum();
    let one = |c: &Value| {
        let share = crate::routes::shares::percent(u32::try_from(weight(c)).unwrap_or(u32::MAX), total);
        format!("{} {share}", short_cluster(text(&c["name"])))
    };
    list(clusters).iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What a string is compared with: `jason`, `/api*`, `~regex`.
pub fn string_match(value: &Value) -> String {
    let known = [("exact", "", ""), ("prefix", "", "*"), ("suffix", "*", ""), ("contains", "*", "*")];
    for (name, before, after) in known {
        if let Some(pattern) = value[name].as_str() {
            return format!("{before}{pattern}{after}");
        }
    }
    match value["safe_regex"]["regex"].as_str() {
        Some(regex) => format!("~{regex}"),
        None => "?".to_owned(),
    }
}

/// What the socket's TLS is: `mutual TLS`, `TLS`, `plaintext`.
pub fn downstream_tls(socket: &Value) -> &'static str {
    let config = &socket["typed_config"];
    match (type_name(config), config["require_client_certificate"].as_bool()) {
        ("DownstreamTlsContext", Some(true)) => "mutual TLS",
        ("DownstreamTlsContext", _) => "TLS",
        _ => "plaintext",
    }
}

/// The same for connections that the proxy opens.
pub fn upstream_tls(socket: &Value) -> String {
    let config = &socket["typed_config"];
    if type_name(config) != "UpstreamTlsContext" {
        return "plaintext".to_owned();
    }
    let common = &config["common_tls_context"];
    let own = !list(&common["tls_certificate_sds_secret_configs"]).is_empty()
        || !list(&common["tls_certificates"]).is_empty();
    let alpn = texts(&common["alpn_protocols"]).join(",");
    let kind = if own { "mutual TLS" } else { "TLS" };
    if alpn.is_empty() { kind.to_owned() } else { format!("{kind} ({alpn})") }
}
