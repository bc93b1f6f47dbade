use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::core::v3::address::Address as AnyAddress;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::health_check::{HealthChecker, HttpHealthCheck};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType as SocketConfig;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, HeaderValue, HeaderValueOption, HealthCheck as PbCheck, HealthStatus, Locality,
    Metadata, RuntimeFractionalPercent, SocketAddress, TransportSocket,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{Endpoint as PbEndpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType as FilterConfig;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType as ListenerFilterConfig;
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain as PbChain, FilterChainMatch, ListenerFilter};
use envoy_types::pb::envoy::config::route::v3::rate_limit::Action as LimitAction;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, RequestHeaders};
use envoy_types::pb::envoy::config::route::v3::route::Action as PbAction;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, HedgePolicy, RateLimit, RetryPolicy as PbRetry, Route as PbRoute, RouteAction,
    RouteMatch as PbMatch, VirtualHost as PbHost, WeightedCluster as PbWeighted,
};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::FaultRateLimit;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{FixedLimit, LimitType};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy as PbTcp;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as TcpCluster;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::TokenBucket;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Int64Range};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, UInt32Value, UInt64Value, Value};
use envoy_types::util::pack_any;
use mesh_common::proto::extensions::{
    Abort, AtATime as PbAtATime, Bandwidth as PbBandwidth, Fault as PbFault, FaultRule as PbRule, Limits as PbLimits,
    Throttle, WorkloadInfo, fault_rule,
};
use proptest::prelude::*;

use super::*;
use crate::config::*;
use crate::fuzzing::damaged::damaged;
use crate::limit::Rate;

fn ads() -> Option<ConfigSource> {
    let config_source_specifier = Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {}));
    Some(ConfigSource { config_source_specifier, ..Default::default() })
}

fn uint(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn address(ip: &str, port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: ip.into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(Address { address: Some(AnyAddress::SocketAddress(socket)) })
}

fn mesh_mode() -> Struct {
    let mesh = Value { kind: Some(Kind::StringValue("mesh".into())) };
    Struct { fields: [("tlsMode".to_owned(), mesh)].into() }
}

fn lb_endpoint(ip: &str, port: u32) -> LbEndpoint {
    let endpoint = PbEndpoint { address: address(ip, port), ..Default::default() };
    LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..Default::default() }
}

fn common_tls(identities: &[&str]) -> CommonTlsContext {
    let secret = |name: &str| SdsSecretConfig { name: name.into(), sds_config: ads() };
    let exact = |id: &&str| SubjectAltNameMatcher {
        san_type: 3,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact((*id).to_owned())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names: identities.iter().map(exact).collect(),
        ..Default::default()
    };
    CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        alpn_protocols: vec!["mesh-h2".into()],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(validation),
                validation_context_sds_secret_config: Some(secret("ROOTCA")),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn socket(any: Any) -> TransportSocket {
    TransportSocket { name: "s".into(), config_type: Some(SocketConfig::TypedConfig(any)) }
}

const REVIEWS: &str = "spiffe://mesh.local/ns/shop/sa/reviews";

fn upstream_tls() -> TransportSocket {
    let context = UpstreamTlsContext { common_tls_context: Some(common_tls(&[REVIEWS])), ..Default::default() };
    socket(pack_any(context))
}

fn eds_cluster() -> PbCluster {
    let socket_match = |name: &str, criteria, transport_socket| TransportSocketMatch {
        name: name.into(),
        r#match: Some(criteria),
        transport_socket: Some(transport_socket),
    };
    PbCluster {
        name: "reviews:80".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), service_name: String::new() }),
        transport_socket_matches: vec![
            socket_match("mesh", mesh_mode(), upstream_tls()),
            socket_match("rest", Struct::default(), socket(pack_any(RawBuffer {}))),
        ],
        lb_policy: LbPolicy::LeastRequest as i32,
        ..Default::default()
    }
}

fn prefix(path: &str) -> Option<PbMatch> {
    Some(PbMatch { path_specifier: Some(PathSpecifier::Prefix(path.into())), ..Default::default() })
}

fn to_cluster(name: &str) -> RouteAction {
    RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster(name.into())), ..Default::default() }
}

fn route_to(name: &str) -> PbRoute {
    PbRoute { r#match: prefix("/"), action: Some(PbAction::Route(to_cluster(name))), ..Default::default() }
}

fn table_of(routes: Vec<PbRoute>) -> RouteConfiguration {
    let host = PbHost { name: "h".into(), domains: vec!["*".into()], routes, ..Default::default() };
    RouteConfiguration { name: "reviews:80".into(), virtual_hosts: vec![host], ..Default::default() }
}

pub(super) fn router() -> HttpFilter {
    http_filter("router", pack_any(Router::default()))
}

pub(super) fn http_filter(name: &str, any: Any) -> HttpFilter {
    HttpFilter { name: name.into(), config_type: Some(ConfigType::TypedConfig(any)), ..Default::default() }
}

pub(super) fn manager() -> HttpConnectionManager {
    let rds = Rds { config_source: ads(), route_config_name: "reviews:80".into() };
    HttpConnectionManager {
        stat_prefix: "reviews:80".into(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: vec![router()],
        ..Default::default()
    }
}

pub(super) fn network_filter(any: Any) -> Filter {
    Filter { name: "f".into(), config_type: Some(FilterConfig::TypedConfig(any)) }
}

fn tcp() -> Any {
    let specifier = Some(TcpCluster::Cluster("inbound:80".into()));
    pack_any(PbTcp { stat_prefix: "t".into(), cluster_specifier: specifier, ..Default::default() })
}

pub(super) fn chain_of(filters: Vec<Filter>) -> PbChain {
    PbChain { filters, ..Default::default() }
}

fn inbound() -> PbListener {
    let tls = DownstreamTlsContext {
        common_tls_context: Some(common_tls(&[])),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let inspector = ListenerFilter {
        name: "tls".into(),
        config_type: Some(ListenerFilterConfig::TypedConfig(pack_any(TlsInspector::default()))),
        ..Default::default()
    };
    let matches = FilterChainMatch {
        destination_port: uint(80),
        transport_protocol: "tls".into(),
        application_protocols: vec!["mesh-h2".into()],
        ..Default::default()
    };
    PbListener {
        name: "inbound".into(),
        listener_filters: vec![inspector],
        filter_chains: vec![PbChain {
            filter_chain_match: Some(matches),
            transport_socket: Some(socket(pack_any(tls))),
            ..chain_of(vec![network_filter(pack_any(manager()))])
        }],
        default_filter_chain: Some(chain_of(vec![network_filter(tcp())])),
        ..Default::default()
    }
}

fn refused(ty: Type, pb: impl Message) -> String {
    decode(ty, &pb.encode_to_vec()).unwrap_err().to_string()
}

macro_rules! decoded {
    ($ty:ident, $pb:expr) => {
        match decode(Type::$ty, &$pb.encode_to_vec()).unwrap() {
            Resource::$ty(it) => it,
            other => panic!("{other:?}"),
        }
    };
}

#[test]
fn listeners() {
    let listener = decoded!(Listener, inbound());
    let chain = &listener.chains[0];
    assert_eq!(chain.matches.destination_port, Some(80));
    assert_eq!(chain.matches.transport, Some(Transport::Tls));
    assert_eq!(chain.tls, Some(DownstreamTls { require_client_certificate: true, alpn: vec![b"mesh-h2".to_vec()] }));
    let NetworkFilter::Http(http) = &chain.filter else { panic!() };
    assert!(matches!(&http.routes, RouteSource::Rds(name) if name == "reviews:80"));
    assert_eq!((http.idle_timeout.as_secs(), http.stream_idle_timeout.as_secs()), (3600, 300));
    let NetworkFilter::Tcp(tcp) = &listener.default_chain.as_ref().unwrap().filter else { panic!() };
    assert_eq!(&*tcp.clusters.pick().unwrap().cluster, "inbound:80");
}

#[test]
fn listeners_say_where_they_are_wrong() {
    let mut pb = inbound();
    pb.filter_chains[0].filters[0] =
        network_filter(Any { type_url: "type.googleapis.com/x.Rbac".into(), ..Default::default() });
    assert_eq!(
        refused(Type::Listener, pb),
        "filter_chains[0].filters[0]: the extension \"type.googleapis.com/x.Rbac\" is not supported"
    );
    let mut pb = inbound();
    let mut http = manager();
    http.http_filters
        .insert(0, http_filter("ext_authz", Any { type_url: "t/x.ExtAuthz".into(), ..Default::default() }));
    pb.filter_chains[0].filters = vec![network_filter(pack_any(http.clone()))];
    assert_eq!(
        refused(Type::Listener, pb.clone()),
        "filter_chains[0].filters[0].typed_config.http_filters[0]: the extension \"t/x.ExtAuthz\" is not supported"
    );
    // What says of itself that it may be left out is.
    http.http_filters[0].is_optional = true;
    pb.filter_chains[0].filters = vec![network_filter(pack_any(http))];
    decode(Type::Listener, &pb.encode_to_vec()).unwrap();

    let mut pb = inbound();
    pb.filter_chains[0].filter_chain_match.as_mut().unwrap().source_ports = vec![1];
    assert_eq!(refused(Type::Listener, pb), "filter_chains[0].filter_chain_match.source_ports: is not supported");
    let mut pb = inbound();
    pb.filter_chains[0].filters.clear();
    assert_eq!(refused(Type::Listener, pb), "filter_chains[0].filters: must not be empty");
    let mut pb = inbound();
    pb.listener_filters[0].config_type =
        Some(ListenerFilterConfig::TypedConfig(Any { type_url: "t/x.Y".into(), ..Default::default() }));
    assert!(refused(Type::Listener, pb).starts_with("listener_filters[0]: the extension"));
    let mut pb = inbound();
    pb.name.clear();
    assert_eq!(refused(Type::Listener, pb), "name: must not be empty");
}

#[test]
fn a_chain_that_limits_who_may_connect_is_not_opened_to_all() {
    let mut pb = inbound();
    let tls = DownstreamTlsContext { common_tls_context: Some(common_tls(&[REVIEWS])), ..Default::default() };
    pb.filter_chains[0].transport_socket = Some(socket(pack_any(tls)));
    assert!(refused(Type::Listener, pb).contains("limiting which identities may connect"));
    let mut pb = inbound();
    let mut http = manager();
    http.http_filters.clear();
    pb.filter_chains[0].filters = vec![network_filter(pack_any(http))];
    assert!(refused(Type::Listener, pb).ends_with("http_filters: must end in the router"));
}

#[test]
fn faults_of_tcp() {
    let fault = PbFault {
        rules: vec![PbRule {
            name: "ns/f".into(),
            parts_per_million: 500_000,
            kind: Some(fault_rule::Kind::Reset(Default::default())),
            expires_unix_ms: 7,
            headers: vec![],
        }],
    };
    let any = Any { type_url: "type.googleapis.com/mesh.extensions.v1.Fault".into(), value: fault.encode_to_vec() };
    let mut pb = inbound();
    pb.filter_chains[0].filters = vec![network_filter(any.clone()), network_filter(tcp())];
    let listener = decoded!(Listener, pb);
    let NetworkFilter::Tcp(proxy) = &listener.chains[0].filter else { panic!() };
    let rule = &proxy.fault.as_ref().unwrap().rules[0];
    assert_eq!((rule.kind.clone(), rule.parts_per_million, rule.expires_unix_ms), (FaultKind::Reset, 500_000, 7));
    let mut pb = inbound();
    pb.filter_chains[0].filters = vec![network_filter(tcp()), network_filter(any)];
    assert!(refused(Type::Listener, pb).starts_with("filter_chains[0].filters[0]"));
}

#[test]
fn routes() {
    let mut first = route_to("a");
    first.name = "HTTPRoute/shop/reviews/0".into();
    first.r#match = Some(PbMatch {
        path_specifier: Some(PathSpecifier::PathSeparatedPrefix("/api/".into())),
        headers: vec![HeaderMatcher { name: "End-User".into(), ..Default::default() }],
        ..Default::default()
    });
    first.request_headers_to_add = vec![header("x-a", "100%%", HeaderAppendAction::OverwriteIfExistsOrAdd)];
    let weights = |name: &str, weight| ClusterWeight { name: name.into(), weight: uint(weight), ..Default::default() };
    let second = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(PbWeighted {
            clusters: vec![weights("v1", 90), weights("v2", 10), weights("v3", 0)],
            ..Default::default()
        })),
        timeout: Some(PbDuration { seconds: 0, nanos: 0 }),
        retry_policy: Some(PbRetry {
            retry_on: "connect-failure,refused-stream,reset-before-request,unavailable,retriable-status-codes".into(),
            num_retries: uint(2),
            retriable_status_codes: vec![418],
            ..Default::default()
        }),
        prefix_rewrite: "/new".into(),
        ..Default::default()
    };
    let second = PbRoute { action: Some(PbAction::Route(second)), ..route_to("") };
    let table = decoded!(Routes, table_of(vec![first, second]));
    let routes = &table.virtual_hosts[0].routes;
    assert!(matches!(&routes[0].matches.path, PathMatch::SegmentPrefix(it) if it == "/api"));
    assert_eq!(routes[0].matches.headers[0].name, "end-user");
    assert_eq!(routes[0].request_headers.set[0].1, "100%");
    let (Action::Forward(first), Action::Forward(second)) = (&routes[0].action, &routes[1].action) else { panic!() };
    assert_eq!(first.timeout, Duration::from_secs(15));
    assert_eq!(first.retry.retries, 0);
    assert_eq!(second.clusters.choices().len(), 2);
    assert_eq!(second.timeout, Duration::ZERO);
    assert!(second.retry.on.connect_failure && second.retry.on.reset_before_request && !second.retry.on.reset);
    assert_eq!((second.retry.retries, &second.retry.on.grpc[..]), (2, &[14][..]));
    assert_eq!(second.retry.on.statuses, [http::StatusCode::IM_A_TEAPOT]);
    assert!(matches!(&second.rewrite_path, Some(PathRewrite::Prefix(it)) if it == "/new"));
}

fn header(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    let header = HeaderValue { key: name.into(), value: value.into(), ..Default::default() };
    HeaderValueOption { header: Some(header), append_action: action as i32, ..Default::default() }
}

#[test]
fn header_changes_of_all_levels_end_up_on_the_route() {
    use HeaderAppendAction::{AppendIfExistsOrAdd as Add, OverwriteIfExistsOrAdd as Set};
    let mut pb = table_of(vec![route_to("a")]);
    pb.virtual_hosts[0].routes[0].request_headers_to_add = vec![header("x", "route", Set), header("y", "route", Add)];
    pb.virtual_hosts[0].request_headers_to_add = vec![header("y", "host", Add)];
    pb.request_headers_to_add = vec![header("x", "table", Set)];
    pb.request_headers_to_remove = vec!["z".into()];
    let values = |pb: RouteConfiguration| {
        let table = decoded!(Routes, pb);
        let headers = table.virtual_hosts[0].routes[0].request_headers.clone();
        let text = |all: &[(http::HeaderName, http::HeaderValue)]| -> Vec<String> {
            all.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect()
        };
        (text(&headers.set), text(&headers.add), headers.remove.len())
    };
    assert_eq!(values(pb.clone()), (vec!["x=table".into()], vec!["y=route".into(), "y=host".into()], 1));
    pb.most_specific_header_mutations_wins = true;
    assert_eq!(values(pb), (vec!["x=route".into()], vec!["y=host".into(), "y=route".into()], 1));
}

#[test]
fn routes_say_where_they_are_wrong() {
    let wrong = |change: &dyn Fn(&mut PbRoute)| {
        let mut route = route_to("a");
        change(&mut route);
        refused(Type::Routes, table_of(vec![route_to("ok"), route]))
    };
    let at = "virtual_hosts[0].routes[1]";
    assert_eq!(wrong(&|it| it.r#match = None), format!("{at}.match: is needed"));
    assert!(wrong(&|it| it.action = None).starts_with(&format!("{at}: one of route")));
    let regex = |it: &mut PbRoute| {
        let pb = RegexMatcher { regex: "a)|(b".into(), ..Default::default() };
        it.r#match.as_mut().unwrap().path_specifier = Some(PathSpecifier::SafeRegex(pb));
    };
    assert!(wrong(&regex).starts_with(&format!("{at}.match.safe_regex.regex: \"a)|(b\" is not a regular expression")));
    let filter = |it: &mut PbRoute| {
        let any = Any { type_url: "t/x.RBACPerRoute".into(), ..Default::default() };
        it.typed_per_filter_config.insert("rbac".into(), any);
    };
    assert_eq!(
        wrong(&filter),
        format!("{at}.typed_per_filter_config[\"rbac\"]: the extension \"t/x.RBACPerRoute\" is not supported")
    );
    let command = |it: &mut PbRoute| {
        it.request_headers_to_add = vec![header("x", "%REQ(y)%", HeaderAppendAction::AppendIfExistsOrAdd)];
    };
    assert!(wrong(&command).starts_with(&format!("{at}.request_headers_to_add[0].header.value: \"%REQ(y)%\" has")));
    let duration = |it: &mut PbRoute| {
        let mut action = to_cluster("a");
        action.timeout = Some(PbDuration { seconds: -1, nanos: 0 });
        it.action = Some(PbAction::Route(action));
    };
    assert_eq!(wrong(&duration), format!("{at}.route.timeout: -1s 0ns is not a duration"));
    let mut twice = table_of(vec![]);
    twice.virtual_hosts.push(twice.virtual_hosts[0].clone());
    assert!(refused(Type::Routes, twice).starts_with("virtual_hosts: the domain \"*\" is there twice"));
}

#[test]
fn faults_of_routes() {
    let rule = |http_status, grpc_status| PbRule {
        name: "ns/f".into(),
        parts_per_million: 1,
        kind: Some(fault_rule::Kind::Abort(Abort { http_status, grpc_status })),
        ..Default::default()
    };
    let decode_fault = |rules| {
        let any = Any { type_url: "/mesh.extensions.v1.Fault".into(), value: PbFault { rules }.encode_to_vec() };
        let mut route = route_to("a");
        route.typed_per_filter_config.insert("envoy.filters.http.fault".into(), any);
        decode(Type::Routes, &table_of(vec![route]).encode_to_vec())
    };
    let Resource::Routes(table) = decode_fault(vec![rule(503, 0), rule(200, 5)]).unwrap() else { panic!() };
    let fault = table.virtual_hosts[0].routes[0].fault.clone().unwrap();
    assert_eq!(fault.rules[0].kind, FaultKind::Abort { http: http::StatusCode::SERVICE_UNAVAILABLE, grpc: 14 });
    assert_eq!(fault.rules[1].kind, FaultKind::Abort { http: http::StatusCode::OK, grpc: 5 });
    let reason = decode_fault(vec![rule(42, 0)]).unwrap_err();
    assert!(reason.field.ends_with("rules[0].abort.http_status"), "{reason}");
    let throttle = |bytes_per_second| PbRule {
        kind: Some(fault_rule::Kind::Throttle(Throttle { bytes_per_second })),
        ..rule(503, 0)
    };
    let Resource::Routes(table) = decode_fault(vec![throttle(1000)]).unwrap() else { panic!() };
    let fault = table.virtual_hosts[0].routes[0].fault.clone().unwrap();
    assert_eq!(fault.rules[0].kind, FaultKind::Throttle(crate::pace::Rate::new(1000).unwrap()));
    let reason = decode_fault(vec![throttle(0)]).unwrap_err();
    assert!(reason.field.ends_with("rules[0].throttle.bytes_per_second"), "{reason}");
}

#[test]
fn a_throttle_of_envoys() {
    let decoded = |limit: FaultRateLimit| {
        let pb = HttpFault { response_rate_limit: Some(limit), ..Default::default() };
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault".into(),
            value: pb.encode_to_vec(),
        };
        let mut route = route_to("a");
        route.typed_per_filter_config.insert("envoy.filters.http.fault".into(), any);
        decode(Type::Routes, &table_of(vec![route]).encode_to_vec())
    };
    let percentage = Some(FractionalPercent { numerator: 25, ..Default::default() });
    let limit =
        |limit_kbps| FaultRateLimit { percentage, limit_type: Some(LimitType::FixedLimit(FixedLimit { limit_kbps })) };
    let Resource::Routes(table) = decoded(limit(64)).unwrap() else { panic!() };
    let rule = &table.virtual_hosts[0].routes[0].fault.as_ref().unwrap().rules[0];
    let expected = FaultKind::Throttle(crate::pace::Rate::new(65_536).unwrap());
    assert_eq!((rule.parts_per_million, &rule.kind, rule.expires_unix_ms), (250_000, &expected, 0));
    for limit in [limit(0), limit(u64::MAX), FaultRateLimit { percentage, limit_type: None }] {
        let reason = decoded(limit).unwrap_err();
        assert!(reason.field.contains("response_rate_limit"), "{reason}");
    }
}

#[test]
fn cors_policies() {
    let decoded = |pb: CorsPolicy| {
        let any = Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy".into(),
            value: pb.encode_to_vec(),
        };
        let mut route = route_to("a");
        route.typed_per_filter_config.insert("envoy.filters.http.cors".into(), any);
        decode(Type::Routes, &table_of(vec![route]).encode_to_vec())
    };
    let origin =
        |text: &str| StringMatcher { match_pattern: Some(MatchPattern::Exact(text.into())), ..Default::default() };
    let pb = CorsPolicy {
        allow_origin_string_match: vec![origin("https://a"), origin("*")],
        allow_methods: "*".into(),
        allow_headers: "a, b".into(),
        ..Default::default()
    };
    let Resource::Routes(table) = decoded(pb).unwrap() else { panic!() };
    let cors = table.virtual_hosts[0].routes[0].cors.clone().unwrap();
    assert!(cors.any_origin && !cors.credentials && cors.forwards_others);
    assert!(matches!((&cors.methods, &cors.headers), (CorsList::All, CorsList::These(these)) if these == "a, b"));
    assert_eq!((&cors.exposed, &cors.max_age), (&None, &None));
    for pb in [
        CorsPolicy { allow_methods: "a\nb".into(), ..Default::default() },
        CorsPolicy { allow_private_network_access: Some(BoolValue { value: true }), ..Default::default() },
        CorsPolicy { allow_origin_string_match: vec![StringMatcher::default()], ..Default::default() },
    ] {
        let reason = decoded(pb).unwrap_err();
        assert!(reason.field.contains("typed_per_filter_config[\"envoy.filters.http.cors\"]"), "{reason}");
    }
}

#[test]
fn hedging_is_that_of_tries_which_take_too_long() {
    let decoded = |hedge: HedgePolicy| {
        let mut action = to_cluster("a");
        let per_try_timeout = Some(PbDuration { seconds: 1, nanos: 0 });
        action.retry_policy = Some(PbRetry { per_try_timeout, ..Default::default() });
        action.hedge_policy = Some(hedge);
        let route = PbRoute { action: Some(PbAction::Route(action)), ..route_to("a") };
        decode(Type::Routes, &table_of(vec![route]).encode_to_vec())
    };
    for on in [true, false] {
        let pb = HedgePolicy { hedge_on_per_try_timeout: on, ..Default::default() };
        let Resource::Routes(table) = decoded(pb).unwrap() else { panic!() };
        let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!() };
        assert_eq!((forward.retry.hedges, forward.retry.per_try_timeout.as_secs()), (on, 1));
    }
    let more = HedgePolicy { initial_requests: Some(UInt32Value { value: 2 }), ..Default::default() };
    let reason = decoded(more).unwrap_err().to_string();
    assert!(reason.contains("route.hedge_policy.initial_requests"), "{reason}");
}

#[test]
fn cookies_are_matched_whole() {
    let pattern = Some(MatchPattern::Exact("jason".into()));
    let cookie = envoy_types::pb::envoy::config::route::v3::CookieMatcher {
        name: "user".into(),
        string_match: Some(StringMatcher { match_pattern: pattern, ..Default::default() }),
        invert_match: false,
    };
    let StringMatch::Regex(regex) = matching::cookie(cookie).unwrap().matcher else { panic!() };
    for yes in ["user=jason", "a=b; user=jason", "user=jason; a=b", "a=b;user=jason;c=d"] {
        assert!(regex.is_match(yes), "{yes}");
    }
    for no in ["user=jasonx", "xuser=jason", "a=user=jason", "user=", ""] {
        assert!(!regex.is_match(no), "{no}");
    }
}

#[test]
fn clusters() {
    let cluster = decoded!(Cluster, eds_cluster());
    assert!(matches!(&cluster.discovery, Discovery::Eds(name) if name == "reviews:80"));
    assert_eq!(cluster.balancer, Balancer::LeastRequest);
    assert_eq!(cluster.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.limits.max_requests, 1024);
    let tls = cluster.tls.clone().unwrap();
    assert_eq!((tls.identities, tls.alpn), (vec![REVIEWS.parse().unwrap()], vec![b"mesh-h2".to_vec()]));
    assert!(!cluster.tls_always);

    let mut pb = eds_cluster();
    pb.transport_socket_matches.clear();
    pb.transport_socket = Some(upstream_tls());
    let cluster = decoded!(Cluster, pb);
    assert!(cluster.tls_always && cluster.tls.is_some());

    let pb = PbCluster {
        name: "inbound:80".into(),
        load_assignment: Some(ClusterLoadAssignment {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![lb_endpoint("127.0.0.1", 80)],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    let cluster = decoded!(Cluster, pb);
    assert!(matches!(&cluster.discovery, Discovery::Static(it) if it.endpoints[0].address.port() == 80));
}

fn http_check() -> PbCheck {
    let http = HttpHealthCheck { path: "/healthz".into(), ..Default::default() };
    let seconds = |seconds| Some(PbDuration { seconds, nanos: 0 });
    PbCheck {
        timeout: seconds(1),
        interval: seconds(10),
        interval_jitter_percent: 10,
        unhealthy_threshold: Some(UInt32Value { value: 3 }),
        healthy_threshold: Some(UInt32Value { value: 2 }),
        health_checker: Some(HealthChecker::HttpHealthCheck(http)),
        ..Default::default()
    }
}

#[test]
fn the_health_of_endpoints() {
    let mut pb = eds_cluster();
    let cluster = decoded!(Cluster, pb.clone());
    assert_eq!(cluster.health, EndpointHealth::default());
    pb.outlier_detection = Some(OutlierDetection::default());
    pb.health_checks = vec![http_check()];
    let cluster = decoded!(Cluster, pb.clone());
    // Envoy's defaults.
    let outliers = cluster.health.outliers.as_ref().unwrap();
    assert_eq!((outliers.consecutive_5xx, outliers.consecutive_gateway_failures), (Some(5), None));
    let rate = outliers.success_rate.unwrap();
    assert_eq!((rate.deviations, rate.min_hosts, rate.min_requests), (1.9, 5, 100));
    assert_eq!((outliers.max_ejection_percent, outliers.ends_with_check), (10, true));
    assert_eq!((outliers.base_ejection_time.as_secs(), outliers.max_ejection_time.as_secs()), (30, 300));
    let check = cluster.health.check.as_ref().unwrap();
    assert_eq!(check.jitter.as_millis(), 1000);
    let CheckKind::Http(http) = &check.kind else { panic!("{check:?}") };
    assert_eq!((http.path.as_str(), http.host.as_str(), http.http2), ("/healthz", "reviews:80", false));
    assert_eq!((http.expected.len(), &http.expected[0]), (1, &(200..201)));
    // With every detector off, there is nothing to do.
    let off = Some(UInt32Value { value: 0 });
    pb.outlier_detection =
        Some(OutlierDetection { enforcing_consecutive_5xx: off, enforcing_success_rate: off, ..Default::default() });
    assert_eq!(decoded!(Cluster, pb).health.outliers, None);
}

#[test]
fn clusters_say_where_they_are_wrong() {
    let wrong = |change: &dyn Fn(&mut PbCluster)| {
        let mut pb = eds_cluster();
        change(&mut pb);
        refused(Type::Cluster, pb)
    };
    assert!(
        wrong(&|it| it.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32)))
            .starts_with("type: STRICT_DNS is not supported")
    );
    assert!(wrong(&|it| it.eds_cluster_config = None).starts_with("eds_cluster_config.eds_config: "));
    assert_eq!(
        wrong(&|it| it.lb_policy = LbPolicy::LoadBalancingPolicyConfig as i32),
        "lb_policy: LOAD_BALANCING_POLICY_CONFIG is not supported"
    );
    let outliers = |change: fn(&mut OutlierDetection)| {
        wrong(&|it| change(it.outlier_detection.insert(OutlierDetection::default())))
    };
    assert_eq!(
        outliers(|it| it.split_external_local_origin_errors = true),
        "outlier_detection.split_external_local_origin_errors: is not supported"
    );
    assert_eq!(
        outliers(|it| it.enforcing_success_rate = Some(UInt32Value { value: 50 })),
        "outlier_detection.enforcing_success_rate: only 0 and 100 are supported"
    );
    assert_eq!(
        outliers(|it| it.max_ejection_percent = Some(UInt32Value { value: 101 })),
        "outlier_detection.max_ejection_percent: must not be more than 100"
    );
    assert_eq!(
        outliers(|it| it.max_ejection_time = Some(PbDuration { seconds: 1, nanos: 0 })),
        "outlier_detection.max_ejection_time: must not be less than base_ejection_time"
    );
    assert_eq!(
        outliers(|it| it.interval = Some(PbDuration::default())),
        "outlier_detection.interval: must be more than zero"
    );
    let checks = |change: fn(&mut PbCheck)| {
        let mut check = http_check();
        change(&mut check);
        wrong(&|it| it.health_checks = vec![check.clone()])
    };
    assert_eq!(wrong(&|it| it.health_checks = vec![http_check(); 2]), "health_checks: only one is supported");
    assert_eq!(checks(|it| it.timeout = None), "health_checks[0].timeout: must be more than zero");
    assert_eq!(checks(|it| it.healthy_threshold = None), "health_checks[0].healthy_threshold: must be more than zero");
    assert!(checks(|it| it.health_checker = None).starts_with("health_checks[0]: one of http_health_check"));
    let http = |it: &mut PbCheck, change: fn(&mut HttpHealthCheck)| match &mut it.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => change(http),
        _ => unreachable!(),
    };
    let of_http = |change: fn(&mut HttpHealthCheck)| {
        let mut check = http_check();
        http(&mut check, change);
        wrong(&|it| it.health_checks = vec![check.clone()])
    };
    assert_eq!(of_http(|it| it.path = "no path".into()), "health_checks[0].http_health_check.path: is not a path");
    assert_eq!(
        of_http(|it| it.receive = vec![Default::default()]),
        "health_checks[0].http_health_check.receive: is not supported"
    );
    assert_eq!(
        of_http(|it| it.expected_statuses = vec![Int64Range { start: 200, end: 200 }]),
        "health_checks[0].http_health_check.expected_statuses[0]: 200..200 is not a range of statuses"
    );
    // A second TLS for the rest must not become plaintext.
    assert!(
        wrong(&|it| {
            let other = UpstreamTlsContext { common_tls_context: Some(common_tls(&[])), ..Default::default() };
            it.transport_socket_matches[1].transport_socket = Some(socket(pack_any(other)));
        })
        .contains("only these are supported")
    );
    let partial = |it: &mut PbCluster| {
        let mut tls = common_tls(&[REVIEWS]);
        if let Some(ValidationContextType::CombinedValidationContext(it)) = &mut tls.validation_context_type {
            let names = &mut it.default_validation_context.as_mut().unwrap().match_typed_subject_alt_names;
            names[0].matcher.as_mut().unwrap().match_pattern = Some(MatchPattern::Prefix("spiffe://".into()));
        }
        let context = UpstreamTlsContext { common_tls_context: Some(tls), ..Default::default() };
        it.transport_socket_matches[0].transport_socket = Some(socket(pack_any(context)));
    };
    assert!(wrong(&partial).contains("match_typed_subject_alt_names[0].matcher: must be `exact`"));
}

#[test]
fn endpoints() {
    let info = WorkloadInfo { workload: "reviews-v1-x".into(), version: "v1".into(), ..Default::default() };
    let mut mesh = lb_endpoint("10.0.0.1", 9080);
    mesh.load_balancing_weight = uint(3);
    mesh.metadata = Some(Metadata {
        filter_metadata: [("envoy.transport_socket_match".to_owned(), mesh_mode())].into(),
        typed_filter_metadata: [(
            "mesh".to_owned(),
            Any { type_url: "type.googleapis.com/mesh.extensions.v1.WorkloadInfo".into(), value: info.encode_to_vec() },
        )]
        .into(),
    });
    let mut sick = lb_endpoint("fd00::1", 9080);
    sick.health_status = HealthStatus::Unhealthy as i32;
    let pb = ClusterLoadAssignment {
        cluster_name: "reviews:80".into(),
        endpoints: vec![LocalityLbEndpoints {
            locality: Some(Locality { region: "r".into(), zone: "z".into(), ..Default::default() }),
            lb_endpoints: vec![mesh, sick],
            ..Default::default()
        }],
        ..Default::default()
    };
    let all = decoded!(Endpoints, pb.clone());
    let [mesh, sick] = &all.endpoints[..] else { panic!() };
    assert!(mesh.mesh && mesh.healthy && mesh.weight == 3 && mesh.locality == "r/z");
    assert_eq!(mesh.workload.as_ref().unwrap().version, "v1");
    assert!(!sick.mesh && !sick.healthy && sick.workload.is_none());

    let mut named = pb.clone();
    named.endpoints[0].lb_endpoints[1] = lb_endpoint("reviews.example", 80);
    assert_eq!(
        refused(Type::Endpoints, named),
        "endpoints[0].lb_endpoints[1].endpoint.address.socket_address.address: \"reviews.example\" is not an IP address; names are not resolved here"
    );
    let mut zero = pb;
    zero.endpoints[0].lb_endpoints[0] = lb_endpoint("10.0.0.1", 0);
    assert!(refused(Type::Endpoints, zero).ends_with("port_value: must be 1 to 65535"));
}

#[test]
fn names() {
    let pb = PbName {
        name: "reviews.shop".into(),
        addresses: vec!["240.240.0.5".into(), "fd00::5".into()],
        ttl_seconds: 30,
        canonical: "reviews.shop.svc.cluster.local".into(),
        alias: String::new(),
    };
    let Resource::Name(question, name) = decode(Type::Name, &pb.encode_to_vec()).unwrap() else { panic!() };
    assert_eq!((question.as_str(), name.addresses.len(), name.ttl_seconds), ("reviews.shop", 2, 30));
    let with = |name: &str| PbName { name: name.into(), ..pb.clone() };
    assert!(refused(Type::Name, with("Reviews")).starts_with("name: "));
    assert!(refused(Type::Name, PbName { addresses: vec!["x".into()], ..pb.clone() }).starts_with("addresses[0]: "));
    let alias = |alias: &str| PbName { addresses: vec![], alias: alias.into(), ..pb.clone() };
    assert!(refused(Type::Name, alias("a..b")).starts_with("alias: "));
    let Resource::Name(_, name) = decode(Type::Name, &alias("db.example.com").encode_to_vec()).unwrap() else {
        panic!()
    };
    assert_eq!(name.alias.clone().unwrap().to_ascii(), "db.example.com.");
}

#[test]
fn garbage_is_refused_as_such() {
    let reason = decode(Type::Cluster, &[0xff; 16]).unwrap_err();
    assert!(reason.field.is_empty() && reason.reason.starts_with("not a protobuf message"), "{reason}");
}

proptest! {
    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        for ty in Type::ALL {
            let _ = decode(ty, &bytes);
        }
    }

    #[test]
    fn decoding_damaged_resources_never_panics(
        bytes in damaged(vec![
            inbound().encode_to_vec(),
            PbListener {
                name: "l".into(),
                filter_chains: vec![chain_of(vec![network_filter(pack_any(limited(by_header())))])],
                ..Default::default()
            }.encode_to_vec(),
            eds_cluster().encode_to_vec(),
            table_of(vec![route_to("a")]).encode_to_vec(),
            ClusterLoadAssignment {
                cluster_name: "a".into(),
                endpoints: vec![LocalityLbEndpoints {
                    lb_endpoints: vec![lb_endpoint("10.0.0.1", 80)],
                    ..Default::default()
                }],
                ..Default::default()
            }.encode_to_vec(),
        ]),
    ) {
        crate::fuzzing::xds(&bytes);
    }
}

fn limited(limit: LocalRateLimit) -> HttpConnectionManager {
    let mut manager = manager();
    manager.http_filters.insert(0, http_filter("l", pack_any(limit)));
    manager
}

fn ten_a_minute() -> LocalRateLimit {
    let all = || {
        let default_value = Some(FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred as i32 });
        Some(RuntimeFractionalPercent { default_value, ..Default::default() })
    };
    let fill_interval = Some(PbDuration { seconds: 60, nanos: 0 });
    LocalRateLimit {
        token_bucket: Some(TokenBucket { max_tokens: 3, tokens_per_fill: uint(10), fill_interval }),
        filter_enabled: all(),
        filter_enforced: all(),
        ..Default::default()
    }
}

/// By the values of a header.
fn by_header() -> LocalRateLimit {
    let action = RequestHeaders { header_name: "X-User".into(), descriptor_key: "k".into(), ..Default::default() };
    let action = LimitAction { action_specifier: Some(ActionSpecifier::RequestHeaders(action)) };
    let base = ten_a_minute();
    LocalRateLimit {
        always_consume_default_token_bucket: Some(BoolValue { value: false }),
        rate_limits: vec![RateLimit { actions: vec![action], ..Default::default() }],
        descriptors: vec![LocalRateLimitDescriptor {
            entries: vec![Entry { key: "k".into(), value: String::new() }],
            token_bucket: base.token_bucket,
            ..Default::default()
        }],
        ..base
    }
}

fn decoded_limit(limit: LocalRateLimit) -> Option<RequestLimit> {
    let listener = PbListener {
        name: "l".into(),
        filter_chains: vec![chain_of(vec![network_filter(pack_any(limited(limit)))])],
        ..Default::default()
    };
    match decode(Type::Listener, &listener.encode_to_vec()) {
        Ok(Resource::Listener(listener)) => match &listener.chains[0].filter {
            NetworkFilter::Http(manager) => manager.limit.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_of_requests() {
    let rate = Rate::new(10, Duration::from_secs(60), 3).unwrap();
    assert_eq!(decoded_limit(ten_a_minute()), Some(RequestLimit { rate, by: LimitBy::Nobody }));
    let by = LimitBy::Header("x-user".parse().unwrap());
    assert_eq!(decoded_limit(by_header()), Some(RequestLimit { rate, by }));
    // Envoy's default is that it is for no request.
    assert_eq!(decoded_limit(LocalRateLimit { filter_enforced: None, ..ten_a_minute() }), None);
}

#[test]
fn limits_that_would_not_hold_are_refused() {
    let without_bucket = LocalRateLimit { token_bucket: None, ..ten_a_minute() };
    let empty =
        LocalRateLimit { token_bucket: Some(TokenBucket { max_tokens: 0, ..Default::default() }), ..ten_a_minute() };
    let by_connection = LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..ten_a_minute() };
    let both = LocalRateLimit { always_consume_default_token_bucket: None, ..by_header() };
    let mut one_value = by_header();
    one_value.descriptors[0].entries[0].value = "admin".into();
    let mut other_bucket = by_header();
    other_bucket.descriptors[0].token_bucket.as_mut().unwrap().max_tokens = 1;
    let alone = LocalRateLimit { descriptors: vec![], ..by_header() };
    for (limit, says) in [
        (without_bucket, "token_bucket"),
        (empty, "fill_interval"),
        (by_connection, "local_rate_limit_per_downstream_connection"),
        (both, "always_consume_default_token_bucket"),
        (one_value, "descriptors[0]"),
        (other_bucket, "descriptors[0].token_bucket"),
        (alone, "descriptors"),
    ] {
        let chain = chain_of(vec![network_filter(pack_any(limited(limit)))]);
        let listener = PbListener { name: "l".into(), filter_chains: vec![chain], ..Default::default() };
        let reason = refused(Type::Listener, listener);
        assert!(reason.contains("http_filters[0].typed_config") && reason.contains(says), "{says}: {reason}");
    }
}

/// In front of what takes the connection.
fn before(first: Vec<Any>) -> PbListener {
    let filters = first.into_iter().chain([pack_any(limited(ten_a_minute()))]).map(network_filter).collect();
    PbListener { name: "l".into(), filter_chains: vec![chain_of(filters)], ..Default::default() }
}

fn own_limits(limits: PbLimits) -> Any {
    Any { type_url: "type.googleapis.com/mesh.extensions.v1.Limits".into(), value: limits.encode_to_vec() }
}

#[test]
fn what_a_port_takes_at_a_time() {
    let limits =
        |listener: PbListener| decoded!(Listener, listener).chains[0].filter.limits().map(|it| PortLimits::clone(it));
    let at_a_time = |max, per_caller| Some(PbAtATime { max, per_caller });
    let bandwidth = |max, per_caller| Some(PbBandwidth { max, per_caller });
    let own = PbLimits {
        name: "inbound:80".into(),
        connections: at_a_time(7, 0),
        requests: at_a_time(0, 2),
        up: bandwidth(0, 0),
        down: bandwidth(1000, 0),
        max_head: 0,
        max_body: 4096,
    };
    let expected = PortLimits {
        name: "inbound:80".into(),
        connections: Some(AtATime { max: Some(7), per_caller: None }),
        requests: Some(AtATime { max: None, per_caller: Some(2) }),
        up: None,
        down: Some(PortRate { max: crate::pace::Rate::new(1000), per_caller: None }),
        max_head: None,
        max_body: Some(4096),
    };
    assert_eq!(limits(before(vec![own_limits(own.clone())])), Some(expected.clone()));
    assert_eq!(limits(before(vec![])), None);
    let envoy = ConnectionLimit {
        stat_prefix: "inbound:80".into(),
        max_connections: Some(UInt64Value { value: 7 }),
        ..Default::default()
    };
    assert_eq!(
        limits(before(vec![pack_any(envoy.clone())])),
        Some(PortLimits { requests: None, down: None, max_body: None, ..expected })
    );
    let unnamed = own_limits(PbLimits { name: String::new(), ..own.clone() });
    let slow = ConnectionLimit { delay: Some(Default::default()), ..envoy.clone() };
    let none = ConnectionLimit { max_connections: None, ..envoy };
    for (filters, says) in [
        (vec![unnamed], "filters[0].typed_config.name"),
        (vec![own_limits(own.clone()), own_limits(own)], "filters[1].typed_config"),
        (vec![pack_any(slow)], "filters[0].typed_config.delay"),
        (vec![pack_any(none)], "filters[0].typed_config.max_connections"),
    ] {
        let reason = refused(Type::Listener, before(filters));
        assert!(reason.contains(says), "{says}: {reason}");
    }
}

#[test]
fn server_names_are_whole_or_begin_with_a_wildcard() {
    let named = |names: &[&str]| {
        let mut listener = inbound();
        let matched = listener.filter_chains[0].filter_chain_match.as_mut().unwrap();
        matched.server_names = names.iter().map(|name| (*name).to_owned()).collect();
        listener
    };
    let decoded = decoded!(Listener, named(&["WWW.example.com", "*.example.com"]));
    let expected = [ServerName::Exact("www.example.com".into()), ServerName::Suffix(".example.com".into())];
    assert_eq!(decoded.chains[0].matches.server_names, expected);
    for wrong in ["", "*", "*.", "*w.example.com", "a.*.com"] {
        assert!(refused(Type::Listener, named(&[wrong])).contains("server_names[0]"), "{wrong}");
    }
}
