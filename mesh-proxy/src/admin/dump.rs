//! The configuration in force as JSON, for people. It holds no keys: a snapshot has none, and of the SVID only what peers see
//! is shown, in the form in which an Envoy shows the same secrets.

use std::net::SocketAddr;

use mesh_common::names::{SECRET_IDENTITY, SECRET_ROOTS};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::config::{
    Action, Cluster, Discovery, Endpoint, Endpoints, FilterChain, Forward, HeaderMatch, Listener, Name, NetworkFilter,
    PathMatch, Route, RouteMatch, RouteSource, RouteTable, StringMatch, Transport, WeightedClusters,
};
use crate::identity::pem;
use crate::snapshot::{Snapshot, Type};
use crate::tls::Tls;
use crate::upstream::{Shunned, Upstreams};

pub(super) fn config(snapshot: &Snapshot, upstreams: &Upstreams, tls: &Tls) -> Value {
    json!({
        "identity": tls.identity().map(|it| it.to_string()),
        "certificate_expires": tls.expires().and_then(|it| jiff::Timestamp::from_second(it).ok()).map(|it| it.to_string()),
        "secrets": secrets(tls),
        "listeners": all(snapshot, Type::Listener, |name| snapshot.listener(name).map(|it| listener(it))),
        "routes": all(snapshot, Type::Routes, |name| snapshot.routes(name).map(|it| routes(it))),
        "clusters": all(snapshot, Type::Cluster, |name| snapshot.cluster(name).map(|it| cluster(it, upstreams))),
        "endpoints": all(snapshot, Type::Endpoints, |name| snapshot.endpoints(name).map(|it| endpoints(it))),
        "names": all(snapshot, Type::Name, |question| snapshot.name(question).map(|it| name(question, it))),
    })
}

fn secrets(tls: &Tls) -> Vec<Value> {
    let inline = |certificates: &[CertificateDer<'_>]| json!({ "inline_string": pem(certificates) });
    let own =
        |chain: Vec<_>| json!({ "name": SECRET_IDENTITY, "tls_certificate": { "certificate_chain": inline(&chain) } });
    let roots = |roots: &[_]| json!({ "name": SECRET_ROOTS, "validation_context": { "trusted_ca": inline(roots) } });
    let bundle = tls.bundle();
    tls.chain().map(own).into_iter().chain(bundle.map(|it| roots(it.roots()))).collect()
}

/// In the order of their names, so that two dumps can be compared.
fn all(snapshot: &Snapshot, ty: Type, one: impl Fn(&str) -> Option<Value>) -> Vec<Value> {
    let mut names = snapshot.held(ty);
    names.sort_unstable();
    names.iter().filter_map(|name| one(name)).collect()
}

fn listener(it: &Listener) -> Value {
    json!({
        "name": it.name,
        "filter_chains": it.chains.iter().map(chain).collect::<Vec<_>>(),
        "default_filter_chain": it.default_chain.as_ref().map(chain),
        "udp": it.udp.as_ref().map(|udp| json!({
            "clusters": weighted(&udp.clusters),
            "idle_timeout": seconds(udp.idle_timeout),
        })),
    })
}

fn chain(it: &FilterChain) -> Value {
    let filter = match &it.filter {
        NetworkFilter::Http(manager) => json!({
            "http": {
                "routes": match &manager.routes {
                    RouteSource::Rds(name) => json!({ "rds": name }),
                    RouteSource::Inline(table) => routes(table),
                },
                "idle_timeout": seconds(manager.idle_timeout),
                "stream_idle_timeout": seconds(manager.stream_idle_timeout),
            }
        }),
        NetworkFilter::Tcp(filter) => json!({
            "tcp": {
                "clusters": weighted(&filter.clusters),
                "idle_timeout": seconds(filter.idle_timeout),
                "faults": filter.fault.as_ref().map(|it| faults(it)),
            }
        }),
    };
    json!({
        "destination_port": it.matches.destination_port,
        "transport_protocol": it.matches.transport.map(|it| match it {
            Transport::Raw => "raw_buffer",
            Transport::Tls => "tls",
        }),
        "application_protocols": it.matches.application_protocols,
        "mutual_tls": it.tls.as_ref().map(|it| it.require_client_certificate),
        "filter": filter,
    })
}

fn routes(it: &RouteTable) -> Value {
    let host = |it: &crate::config::VirtualHost| {
        json!({
            "name": it.name,
            "domains": it.domains,
            "routes": it.routes.iter().map(|it| route(it)).collect::<Vec<_>>(),
        })
    };
    json!({ "name": it.name, "virtual_hosts": it.virtual_hosts.iter().map(host).collect::<Vec<_>>() })
}

fn route(it: &Route) -> Value {
    json!({
        "name": it.name,
        "match": matches(&it.matches),
        "action": match &it.action {
            Action::Forward(forward) => forwarding(forward),
            Action::Redirect(redirect) => json!({ "redirect": redirect.status.as_u16() }),
            Action::Direct { status, .. } => json!({ "direct_response": status.as_u16() }),
        },
        "faults": it.fault.as_ref().map(|it| faults(it)),
    })
}

fn matches(it: &RouteMatch) -> Value {
    json!({
        "path": match &it.path {
            PathMatch::Prefix(path) => json!({ "prefix": path }),
            PathMatch::SegmentPrefix(path) => json!({ "path_separated_prefix": path }),
            PathMatch::Exact(path) => json!({ "exact": path }),
            PathMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        },
        "method": it.method.as_ref().map(|it| it.as_str()),
        "headers": it.headers.iter().map(header).collect::<Vec<_>>(),
        "query": it.query.iter().map(|it| json!({ "name": it.name, "match": string(&it.matcher) })).collect::<Vec<_>>(),
        "grpc": it.grpc,
    })
}

fn header(it: &HeaderMatch) -> Value {
    json!({ "name": it.name, "match": string(&it.matcher), "invert": it.invert })
}

fn string(it: &StringMatch) -> Value {
    match it {
        StringMatch::Exact(text) => json!({ "exact": text }),
        StringMatch::Prefix(text) => json!({ "prefix": text }),
        StringMatch::Suffix(text) => json!({ "suffix": text }),
        StringMatch::Contains(text) => json!({ "contains": text }),
        StringMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        StringMatch::Present(present) => json!({ "present": present }),
    }
}

fn forwarding(it: &Forward) -> Value {
    json!({
        "clusters": weighted(&it.clusters),
        "timeout": seconds(it.timeout),
        "retries": it.retry.retries,
        "per_try_timeout": seconds(it.retry.per_try_timeout),
        "mirrors": it.mirrors.iter().map(|it| json!({ "cluster": &*it.cluster, "parts_per_million": it.parts_per_million })).collect::<Vec<_>>(),
    })
}

fn faults(it: &crate::config::Fault) -> Value {
    let rule = |it: &crate::config::FaultRule| {
        json!({
            "name": it.name,
            "parts_per_million": it.parts_per_million,
            "kind": format!("{:?}", it.kind),
            "expires_unix_ms": it.expires_unix_ms,
            "headers": it.headers.iter().map(header).collect::<Vec<_>>(),
        })
    };
    it.rules.iter().map(rule).collect()
}

fn weighted(it: &WeightedClusters) -> Value {
    it.choices().iter().map(|it| json!({ "cluster": &*it.cluster, "weight": it.weight })).collect()
}

fn cluster(it: &Cluster, upstreams: &Upstreams) -> Value {
    let passed_over = upstreams.passed_over(&it.name);
    let shunned =
        |(address, why): &(SocketAddr, Shunned)| json!({ "address": address.to_string(), "why": why.as_str() });
    json!({
        "name": it.name,
        "endpoints": match &it.discovery {
            Discovery::Eds(name) => json!({ "eds": name }),
            Discovery::Static(list) => endpoints(list),
            Discovery::OriginalDestination => json!("original destination"),
        },
        "balancer": format!("{:?}", it.balancer),
        "connect_timeout": seconds(it.connect_timeout),
        "tls": it.tls.as_ref().map(|it| json!({
            "identities": it.identities.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "alpn": it.alpn.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect::<Vec<_>>(),
        })),
        "http": format!("{:?}", it.http),
        "max_connections": it.limits.max_connections,
        "max_pending": it.limits.max_pending,
        "max_requests": it.limits.max_requests,
        "outlier_detection": it.health.outliers.as_ref().map(|it| format!("{it:?}")),
        "health_check": it.health.check.as_ref().map(|it| format!("{it:?}")),
        "passed_over": passed_over.iter().map(shunned).collect::<Vec<_>>(),
    })
}

fn endpoints(it: &Endpoints) -> Value {
    json!({ "name": it.name, "endpoints": it.endpoints.iter().map(|it| endpoint(it)).collect::<Vec<_>>() })
}

fn endpoint(it: &Endpoint) -> Value {
    json!({
        "address": it.address.to_string(),
        "weight": it.weight,
        "healthy": it.healthy,
        "mesh": it.mesh,
        "priority": it.priority,
        "locality": it.locality,
        "workload": it.workload.as_ref().map(|it| json!({
            "workload": it.workload,
            "namespace": it.namespace,
            "service": it.service,
            "version": it.version,
            "identity": it.identity,
        })),
    })
}

fn name(question: &str, it: &Name) -> Value {
    json!({
        "name": question,
        "canonical": it.canonical,
        "addresses": it.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "alias": it.alias.as_ref().map(ToString::to_string),
        "ttl_seconds": it.ttl_seconds,
    })
}

fn seconds(it: std::time::Duration) -> f64 {
    it.as_secs_f64()
}
