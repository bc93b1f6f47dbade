//! Whom a `CUSTOM` policy asks, as Envoy's external authorization filter. The RBAC filter before it finds out whether the
//! policy's rules match, and leaves that in its metadata.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use envoy_types::pb::envoy::config::core::v3::{ApiVersion, GrpcService, HttpUri};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationResponse, BufferSettings, ExtAuthz, HttpService,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{ListStringMatcher, MetadataMatcher, ValueMatcher};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use mesh_common::names::{self, FILTER_EXT_AUTHZ, FILTER_RBAC, SHADOW_POLICY};
use mesh_common::resource::{AuthorizationProtocol, AuthorizationProvider};

use super::authorization::pattern;
use super::build::{any, duration};
use super::http;
use crate::model::Authorization;

const TIMEOUT: Duration = Duration::from_secs(1);
const STATUS: u16 = 403;

/// Somebody who is asked.
pub(super) struct Asks<'a> {
    provider: &'a AuthorizationProvider,
    /// Of a service's port, the cluster and the authority have the same name.
    cluster: String,
    /// Tells those of a proxy apart.
    index: usize,
}

impl<'a> Asks<'a> {
    pub fn new(policy: &'a Authorization, index: usize) -> Option<Self> {
        let provider = policy.spec.provider.as_ref()?;
        let (service, port) = policy.asks()?;
        Some(Self { provider, cluster: names::service_port(&service.name, &service.namespace, port), index })
    }

    /// Of what the RBAC filter before it leaves.
    pub fn prefix(&self) -> String {
        format!("ext_authz_{}_", self.index)
    }
}

pub(super) fn filter(asks: &Asks<'_>) -> HttpFilter {
    let provider = asks.provider;
    let http = provider.protocol == AuthorizationProtocol::Http;
    let of_http = provider.http.clone().unwrap_or_default();
    let body = |it: &mesh_common::resource::AuthorizationBody| BufferSettings {
        max_request_bytes: it.max_bytes,
        allow_partial_message: it.allow_partial,
        pack_as_bytes: it.as_bytes,
    };
    let config = ExtAuthz {
        services: Some(if http { by_http(asks) } else { by_grpc(asks) }),
        transport_api_version: ApiVersion::V3 as i32,
        failure_mode_allow: provider.fail_open,
        failure_mode_allow_header_add: provider.fail_open,
        with_request_body: provider.include_body.as_ref().map(body),
        status_on_error: Some(HttpStatus { code: i32::from(provider.status_on_error.unwrap_or(STATUS)) }),
        filter_enabled_metadata: Some(if_matched(asks)),
        // Over gRPC all are told.
        allowed_headers: names_of(&of_http.include_headers),
        stat_prefix: asks.prefix(),
        ..ExtAuthz::default()
    };
    http::filter(FILTER_EXT_AUTHZ, any(config))
}

fn by_grpc(asks: &Asks<'_>) -> Services {
    let (cluster_name, authority) = (asks.cluster.clone(), asks.cluster.clone());
    Services::GrpcService(GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name,
            authority,
            ..EnvoyGrpc::default()
        })),
        timeout: duration(timeout(asks.provider)),
        ..GrpcService::default()
    })
}

fn by_http(asks: &Asks<'_>) -> Services {
    let of_http = asks.provider.http.clone().unwrap_or_default();
    let server_uri = HttpUri {
        uri: format!("http://{}", asks.cluster),
        timeout: duration(timeout(asks.provider)),
        http_upstream_type: Some(HttpUpstreamType::Cluster(asks.cluster.clone())),
    };
    Services::HttpService(HttpService {
        server_uri: Some(server_uri),
        path_prefix: of_http.path_prefix,
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: names_of(&of_http.headers_to_upstream),
            allowed_client_headers: names_of(&of_http.headers_to_downstream),
            ..AuthorizationResponse::default()
        }),
        ..HttpService::default()
    })
}

fn timeout(provider: &AuthorizationProvider) -> Duration {
    provider.timeout.map_or(TIMEOUT, mesh_common::resource::Duration::get)
}

/// `None` where nothing is said.
fn names_of(headers: &[String]) -> Option<ListStringMatcher> {
    let patterns: Vec<_> = headers.iter().map(|it| pattern(&it.to_ascii_lowercase())).collect();
    (!patterns.is_empty()).then_some(ListStringMatcher { patterns })
}

/// One of the policy's rules matches.
fn if_matched(asks: &Asks<'_>) -> MetadataMatcher {
    let key = Segment::Key(format!("{}{SHADOW_POLICY}", asks.prefix()));
    MetadataMatcher {
        filter: FILTER_RBAC.to_owned(),
        path: vec![PathSegment { segment: Some(key) }],
        value: Some(ValueMatcher { match_pattern: Some(MatchPattern::PresentMatch(true)) }),
        ..MetadataMatcher::default()
    }
}
