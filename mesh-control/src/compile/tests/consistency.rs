//! Properties of whole sets: names lead to resources, references to what there is, and bytes are stable.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use proptest::prelude::*;

use super::*;
use crate::compile::names;

pub(super) const CLIENTS: [ClientKind; 3] = [ClientKind::Mesh, ClientKind::Envoy, ClientKind::Grpc];

/// Something of everything.
pub(super) fn full() -> String {
    let routes = http_route(
        "r",
        "  - {matches: [{path: {type: Exact, value: /x}, method: GET, headers: [{name: a, value: b}], queryParams: [{name: q, value: '.*', type: RegularExpression}]}, {method: CONNECT}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: '%'}], add: [{name: c, value: d}], remove: [e]}}, {type: URLRewrite, urlRewrite: {hostname: h, path: {type: ReplaceFullPath, replaceFullPath: /y}}}, {type: RequestMirror, requestMirror: {backendRef: {name: reviews-v2, port: 9080}, percent: 10}}], backendRefs: [{name: reviews-v1, port: 9080, weight: 90}, {name: reviews-v2, port: 9080, weight: 10}], timeouts: {request: 5s, backendRequest: 1s}, retry: {codes: [503], attempts: 3}}
  - {matches: [{path: {value: /strip}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}], backendRefs: [{name: reviews, port: 9080}]}
  - {matches: [{path: {value: /gone}}], filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: h, port: 8443, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]}
  - {matches: [{path: {value: /answer}}], filters: [{type: ExtensionRef, extensionRef: {group: meshctl.dev, kind: DirectResponse, name: later}}, {type: CORS, cors: {allowOrigins: ['*']}}]}
  - {matches: [{path: {value: /shared}, method: PUT}], filters: [{type: CORS, cors: {allowOrigins: ['https://a.example.com', 'https://*.example.com:8443', 'http://*'], allowCredentials: true, allowMethods: ['*'], allowHeaders: [x-a], exposeHeaders: [x-b, x-c], maxAge: 60}}], backendRefs: [{name: reviews, port: 9080}]}
  - {matches: [{path: {type: RegularExpression, value: '/a[0-9]+'}}], backendRefs: [{name: nobody, port: 1}]}
  - {backendRefs: [{name: reviews, port: 9080}]}",
    );
    let rest = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: g}
spec:
  parentRefs: [{group: '', kind: Service, name: ratings}]
  rules: [{matches: [{method: {service: shop.Ratings, method: Get}}, {method: {method: Put}}], backendRefs: [{name: ratings, port: 9081}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: t}
spec:
  parentRefs: [{group: '', kind: Service, name: db}]
  rules: [{backendRefs: [{name: db, port: 5432, weight: 3}, {name: misc, port: 7000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: t}
spec:
  parentRefs: [{group: '', kind: Service, name: misc}, {group: '', kind: Service, name: db}]
  hostnames: [a.example.com, '*.example.com']
  rules: [{backendRefs: [{name: db, port: 5432, weight: 3}, {name: misc, port: 7000}, {name: nobody, port: 1}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: zero}
spec:
  parentRefs: [{group: '', kind: Service, name: misc}]
  hostnames: [zero.example.org]
  rules: [{backendRefs: [{name: db, port: 5432, weight: 0}]}]
---
apiVersion: meshctl.dev/v1alpha1
kind: DirectResponse
metadata: {name: later}
spec: {status: 503, body: 'later, 100%', contentType: text/html}
---
apiVersion: meshctl.dev/v1alpha1
kind: FaultInjection
metadata: {name: f}
spec: {targetRefs: [{kind: Service, name: reviews}, {kind: Service, name: db}], faults: [{percent: 1, delay: {duration: 1s}}, {percent: 1, abort: {httpStatus: 500}}, {percent: 1, reset: {}}]}
---
apiVersion: meshctl.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: p}
spec: {mode: PERMISSIVE}
---
apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: p}
spec: {loadBalancer: {policy: Random}, timeouts: {request: 9s, idle: 60s, connect: 2s}, retries: {on: [5xx, '429'], budget: {percent: 30}}, connectionPool: {maxConnections: 10, maxPending: 10, maxRequests: 10}, outlierDetection: {consecutive5xx: 5, consecutiveGatewayFailures: 3, successRate: {}}, healthCheck: {http: {path: /healthz, statuses: [200, 204]}}}
---
apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: ring}
spec:
  targetRefs: [{kind: Service, name: reviews}]
  loadBalancer:
    policy: RingHash
    hash: [{header: x-user}, {cookie: {name: s, ttl: 1h, path: /}}, {cookie: {name: t}}, {sourceAddress: true}]
    panicThresholdPercent: 30
    locality: {weights: [{from: '*', to: [{locality: eu/a, weight: 1}]}]}
---
apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: maglev}
spec: {targetRefs: [{kind: Service, name: db}], loadBalancer: {policy: Maglev, hash: [{sourceAddress: true}], locality: {}}}
---
apiVersion: meshctl.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: slow}
spec: {targetRefs: [{kind: Service, name: ratings}], loadBalancer: {policy: PeakEwma, slowStart: {window: 30s, aggression: 1.5, minWeightPercent: 20}}}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: ratings}, ports: [{port: 9081, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: fixed}
spec: {clusterIP: 10.99.0.1, selector: {app: misc}, ports: [{name: a, port: 80, targetPort: 7000}, {name: b, port: 81, protocol: UDP}]}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: echo-v1-a, labels: {meshctl.dev/registered: 'true'}}
spec: {service: echo, version: v1, addresses: [10.0.0.7], ports: [{port: 9000, protocol: udp}, {port: 9000, protocol: http}], serviceAccount: echo}
---
apiVersion: meshctl.dev/v1alpha1
kind: WorkloadEntry
metadata: {name: echo-v2-a}
spec: {service: echo, version: v2, addresses: ['fd01::8'], ports: [{port: 9000, protocol: udp}]}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: UDPRoute
metadata: {name: u}
spec:
  parentRefs: [{group: '', kind: Service, name: echo}]
  rules: [{backendRefs: [{name: echo-v1, port: 9000, weight: 90}, {name: echo-v2, port: 9000, weight: 9}, {name: nobody, port: 1}]}]
";
    format!("{routes}{rest}")
}

/// Every resource that a wildcard gets.
pub(super) fn all(model: &Model, scope: &Scope) -> Vec<(ResourceType, String, Any)> {
    let of_type = |ty: ResourceType| {
        let each = move |name: String| {
            let any =
                resource(model, scope, ty, &name).unwrap_or_else(|| panic!("{ty:?} {name} is listed but isn't there"));
            (ty, name, any)
        };
        names(model, scope, ty).into_iter().map(each)
    };
    ResourceType::ALL.into_iter().flat_map(of_type).collect()
}

#[test]
fn every_name_is_there_once_and_has_its_type() {
    let model = shop(&full());
    for client in CLIENTS {
        let mut seen = BTreeSet::new();
        for (ty, name, any) in all(&model, &scope(client)) {
            assert_eq!(any.type_url, ty.type_url(), "{name}");
            assert!(seen.insert((ty, name.clone())), "{ty:?} {name} is listed twice");
        }
        assert!(seen.len() > 20);
    }
}

#[test]
fn what_is_referred_to_is_there() {
    let model = shop(&full());
    for client in [ClientKind::Mesh, ClientKind::Envoy] {
        let scope = scope(client);
        let clusters: BTreeSet<String> = names(&model, &scope, ResourceType::Cluster).into_iter().collect();
        let routes: BTreeSet<String> = names(&model, &scope, ResourceType::Route).into_iter().collect();
        let endpoints: BTreeSet<String> = names(&model, &scope, ResourceType::Endpoints).into_iter().collect();
        for (ty, name, any) in all(&model, &scope) {
            match ty {
                ResourceType::Listener | ResourceType::Route => {
                    let text = String::from_utf8_lossy(&any.value).into_owned();
                    for prefix in ["direct:", "inbound:"] {
                        for part in text.split(prefix).skip(1) {
                            let end = part.find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c)));
                            let found = format!("{prefix}{}", &part[..end.unwrap_or(part.len())]);
                            assert!(clusters.iter().any(|c| found.starts_with(c.as_str())), "{name}: {found}");
                        }
                    }
                }
                ResourceType::Cluster => {
                    let cluster: Cluster = decode(&any);
                    assert_eq!(cluster.eds_cluster_config.is_some(), endpoints.contains(&name), "{name}");
                }
                _ => {}
            }
        }
        assert!(routes.iter().all(|route| clusters.contains(route)));
    }
}

/// Maps are hashed with a new seed each time, so a map of two keys would show as other bytes in one of the rounds.
#[test]
fn equal_objects_make_equal_bytes() {
    let text = full();
    for client in CLIENTS {
        let first = all(&shop(&text), &scope(client));
        for _ in 0..8 {
            assert_eq!(all(&shop(&text), &scope(client)), first);
        }
    }
}

#[test]
fn what_did_not_change_keeps_its_bytes() {
    let before = shop(&full());
    let more = format!(
        "{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: new, namespace: elsewhere}}\nspec: {{ports: [{{port: 80}}]}}",
        full()
    );
    let after = build(&objects(&format!("{SHOP}---\n{more}")), &settings(), before.addresses());
    let scope = mesh();
    let after: BTreeSet<_> = all(&after, &scope).into_iter().map(|(_, name, any)| (name, any.value)).collect();
    for (_, name, any) in all(&before, &scope) {
        assert!(after.contains(&(name.clone(), any.value)), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is there, lists and lookups agree, and nothing that isn't listed to a wildcard breaks anything.
    #[test]
    fn any_workloads(
        entries in prop::collection::btree_map("[a-c]{1,2}(-v[12])?", ("[a-c](-v1)?", "(v1|v2)?", 1_u8..5, prop::sample::select(vec!["", "http", "tcp", "grpc"]), 1_u16..4), 0..12),
        question in "[a-c.:v0-9-]{0,12}",
    ) {
        let text: String = entries.iter().enumerate().map(|(i, (name, (service, version, host, protocol, port)))| format!(
            "apiVersion: meshctl.dev/v1alpha1\nkind: WorkloadEntry\nmetadata: {{name: {name}, labels: {{meshctl.dev/registered: 'true'}}}}\nspec: {{service: {service}, version: '{version}', addresses: [10.0.{i}.{host}], ports: [{{port: {port}, protocol: '{protocol}'}}], serviceAccount: a}}\n---\n"
        )).collect();
        let model = build(&objects(&text), &settings(), &Default::default());
        for client in CLIENTS {
            all(&model, &scope(client));
            for ty in ResourceType::ALL {
                let listed = names(&model, &scope(client), ty).contains(&question);
                prop_assert!(!listed || resource(&model, &scope(client), ty, &question).is_some());
            }
        }
    }
}
