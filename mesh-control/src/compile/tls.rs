//! Mutual TLS between proxies. Keys and certificates are secrets of their own, named `default` and `ROOTCA`.

use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsParameters, UpstreamTlsContext,
};
use envoy_types::pb::google::protobuf::Any;
use mesh_common::identity::Identity;
use mesh_common::names;

use super::build::{ads, any, boolean, exact};

/// The caller's side. The peer must be one of `identities`.
pub(super) fn upstream(identities: &[&Identity], alpn: &[u8], sni: &str) -> TransportSocket {
    let identity = |identity: &&Identity| SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(exact(&identity.to_string())),
        ..SubjectAltNameMatcher::default()
    };
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: identities.iter().map(identity).collect(),
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret(names::SECRET_ROOTS)),
        ..CombinedCertificateValidationContext::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(&[alpn], ValidationContextType::CombinedValidationContext(validation))),
        sni: sni.to_owned(),
        ..UpstreamTlsContext::default()
    };
    socket("envoy.transport_sockets.tls", any(context))
}

/// The side of the workload that is called. Any certificate of the mesh is taken.
pub(super) fn downstream(alpn: &[&[u8]]) -> TransportSocket {
    let validation = ValidationContextType::ValidationContextSdsSecretConfig(secret(names::SECRET_ROOTS));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(alpn, validation)),
        require_client_certificate: boolean(true),
        ..DownstreamTlsContext::default()
    };
    socket("envoy.transport_sockets.tls", any(context))
}

pub(super) fn plaintext() -> TransportSocket {
    socket("envoy.transport_sockets.raw_buffer", any(RawBuffer {}))
}

fn common(alpn: &[&[u8]], validation: ValidationContextType) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..TlsParameters::default()
        }),
        alpn_protocols: alpn.iter().map(|protocol| String::from_utf8_lossy(protocol).into_owned()).collect(),
        tls_certificate_sds_secret_configs: vec![secret(names::SECRET_IDENTITY)],
        validation_context_type: Some(validation),
        ..CommonTlsContext::default()
    }
}

fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: ads() }
}

fn socket(name: &str, config: Any) -> TransportSocket {
    let config_type = Some(transport_socket::ConfigType::TypedConfig(config));
    TransportSocket { name: name.to_owned(), config_type }
}
