//! TLS contexts. The proxy has one certificate and one trust bundle, its SVID's; what asks for others is refused.

use envoy_types::pb::envoy::config::core::v3::TransportSocket;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::identity::Identity;
use mesh_common::names::{SECRET_IDENTITY, SECRET_ROOTS};

use super::{At, Decoded, Rejected, each, from_ads, is, is_true, unless, unpack, unsupported_type};
use crate::config::{DownstreamTls, UpstreamTls};

/// `None` for plaintext.
pub(super) fn downstream(socket: &TransportSocket) -> Decoded<Option<DownstreamTls>> {
    let Some(any) = config(socket)? else { return Ok(None) };
    let pb = unpack::<DownstreamTlsContext>(any).ok_or_else(|| unsupported_type(any))?.at("typed_config")?;
    unless(is_true(&pb.require_sni), "typed_config.require_sni", "is not supported")?;
    unless(pb.session_ticket_keys_type.is_some(), "typed_config.session_ticket_keys_type", "is not supported")?;
    let (identities, alpn) = common(pb.common_tls_context.unwrap_or_default()).at("typed_config.common_tls_context")?;
    if !identities.is_empty() {
        let field = "typed_config.common_tls_context.validation_context_type";
        return Err(Rejected::field(field, "limiting which identities may connect is not supported here"));
    }
    Ok(Some(DownstreamTls { require_client_certificate: is_true(&pb.require_client_certificate), alpn }))
}

/// `None` for plaintext.
pub(super) fn upstream(socket: &TransportSocket) -> Decoded<Option<UpstreamTls>> {
    let Some(any) = config(socket)? else { return Ok(None) };
    let pb = unpack::<UpstreamTlsContext>(any).ok_or_else(|| unsupported_type(any))?.at("typed_config")?;
    unless(pb.auto_sni_san_validation, "typed_config.auto_sni_san_validation", "is not supported")?;
    let (identities, alpn) = common(pb.common_tls_context.unwrap_or_default()).at("typed_config.common_tls_context")?;
    Ok(Some(UpstreamTls { identities, alpn, sni: pb.sni }))
}

/// `None` for a plaintext socket.
fn config(socket: &TransportSocket) -> Decoded<Option<&Any>> {
    match &socket.config_type {
        Some(ConfigType::TypedConfig(any)) if is::<RawBuffer>(any) => Ok(None),
        Some(ConfigType::TypedConfig(any)) => Ok(Some(any)),
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(Rejected::field("typed_config", "is needed")),
    }
}

/// The identities that the peer may have (empty: any of the trust domain) and the ALPN protocols.
fn common(pb: CommonTlsContext) -> Decoded<(Vec<Identity>, Vec<Vec<u8>>)> {
    if let Some(params) = &pb.tls_params {
        let newest = TlsProtocol::try_from(params.tls_maximum_protocol_version);
        if !matches!(newest, Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13)) {
            return Err(Rejected::field("tls_params.tls_maximum_protocol_version", "must allow TLS 1.3"));
        }
    }
    let own = !pb.tls_certificates.is_empty()
        || pb.tls_certificate_provider_instance.is_some()
        || pb.custom_tls_certificate_selector.is_some();
    unless(own, "tls_certificates", "the proxy's certificate comes from the SDS secret `default` only")?;
    unless(pb.custom_handshaker.is_some(), "custom_handshaker", "is not supported")?;
    each("tls_certificate_sds_secret_configs", &pb.tls_certificate_sds_secret_configs, |it| {
        secret(it, SECRET_IDENTITY)
    })?;
    let identities = match pb.validation_context_type {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(it)) => {
            secret(&it, SECRET_ROOTS).at("validation_context_sds_secret_config")?;
            Vec::new()
        }
        Some(ValidationContextType::CombinedValidationContext(it)) => {
            let secret_config = it.validation_context_sds_secret_config.unwrap_or_default();
            secret(&secret_config, SECRET_ROOTS)
                .at("combined_validation_context.validation_context_sds_secret_config")?;
            validation(it.default_validation_context.unwrap_or_default())
                .at("combined_validation_context.default_validation_context")?
        }
        // The trust bundle is always the SVID's, so that saying nothing about it means just that.
        None => Vec::new(),
        Some(_) => {
            let reason = "peers are verified with the SDS secret `ROOTCA` only";
            return Err(Rejected::field("validation_context_type", reason));
        }
    };
    Ok((identities, pb.alpn_protocols.into_iter().map(String::into_bytes).collect()))
}

fn secret(pb: &SdsSecretConfig, name: &str) -> Decoded<()> {
    if pb.name != name {
        return Err(Rejected::field("name", format_args!("the secret must be {name:?}, not {:?}", pb.name)));
    }
    from_ads(&pb.sds_config).at("sds_config")
}

fn validation(pb: CertificateValidationContext) -> Decoded<Vec<Identity>> {
    unless(pb.trusted_ca.is_some(), "trusted_ca", "roots come from the SDS secret `ROOTCA` only")?;
    unless(pb.ca_certificate_provider_instance.is_some(), "ca_certificate_provider_instance", "is not supported")?;
    unless(pb.system_root_certs.is_some(), "system_root_certs", "is not supported")?;
    unless(!pb.verify_certificate_spki.is_empty(), "verify_certificate_spki", "is not supported")?;
    unless(!pb.verify_certificate_hash.is_empty(), "verify_certificate_hash", "is not supported")?;
    unless(pb.crl.is_some(), "crl", "is not supported")?;
    unless(pb.allow_expired_certificate, "allow_expired_certificate", "is not supported")?;
    unless(pb.trust_chain_verification != 0, "trust_chain_verification", "must be VERIFY_TRUST_CHAIN")?;
    unless(pb.custom_validator_config.is_some(), "custom_validator_config", "is not supported")?;
    #[allow(deprecated)]
    let untyped = !pb.match_subject_alt_names.is_empty();
    unless(untyped, "match_subject_alt_names", "is not supported; use match_typed_subject_alt_names")?;
    each("match_typed_subject_alt_names", pb.match_typed_subject_alt_names, spiffe_id)
}

fn spiffe_id(pb: SubjectAltNameMatcher) -> Decoded<Identity> {
    if pb.san_type != SanType::Uri as i32 {
        return Err(Rejected::field("san_type", "must be URI"));
    }
    match pb.matcher.and_then(|it| it.match_pattern) {
        Some(MatchPattern::Exact(text)) => text.parse().map_err(|e| Rejected::field("matcher.exact", e)),
        _ => Err(Rejected::field("matcher", "must be `exact`: a SPIFFE ID is never matched in part")),
    }
}
