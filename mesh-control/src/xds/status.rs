//! The client status discovery service: what each client has, as the control plane knows it.

use std::time::Instant;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use envoy_types::pb::google::protobuf::Timestamp;
use tonic::Status;

use super::registry::{Connection, Registry, unix_ms};
use super::secrets::redacted;
use super::track::Track;
use super::types::Type;
use super::view::{Nack, Status as Progress};

/// The configuration of all clients that the request's matchers name; of all clients if there is no matcher.
pub(super) fn client_status(
    registry: &Registry,
    request: &ClientStatusRequest,
    now: Instant,
) -> Result<ClientStatusResponse, Status> {
    for matcher in &request.node_matchers {
        check(matcher)?;
    }
    let wanted = |connection: &Connection| {
        let id = &connection.client.node.id;
        request.node_matchers.is_empty() || request.node_matchers.iter().any(|matcher| matches(matcher, id))
    };
    let connections = registry.connections();
    let wanted = connections.iter().filter(|connection| wanted(connection));
    Ok(ClientStatusResponse {
        config: wanted.map(|c| client_config(c, !request.exclude_resource_contents, now)).collect(),
    })
}

fn client_config(connection: &Connection, contents: bool, now: Instant) -> ClientConfig {
    let session = connection.session();
    let generic_xds_configs = session.tracks().iter().flat_map(|track| resources(track, contents, now)).collect();
    ClientConfig { node: Some(connection.client.node.clone()), generic_xds_configs, ..ClientConfig::default() }
}

fn resources(track: &Track, contents: bool, now: Instant) -> Vec<GenericXdsConfig> {
    let resource = |(name, (encoded, progress)): (&str, (&std::sync::Arc<crate::snapshot::Encoded>, Progress))| {
        let any = contents.then(|| match track.ty() {
            Type::Secret => redacted(&encoded.any),
            _ => encoded.any.clone(),
        });
        let (config_status, client_status) = match progress {
            Progress::Synced => (ConfigStatus::Synced, ClientResourceStatus::Acked),
            Progress::NotSent => (ConfigStatus::NotSent, ClientResourceStatus::Requested),
            Progress::Stale => (ConfigStatus::Stale, ClientResourceStatus::Requested),
            Progress::Error => (ConfigStatus::Error, ClientResourceStatus::Nacked),
        };
        let nack = track.nack().filter(|_| progress == Progress::Error);
        GenericXdsConfig {
            type_url: track.ty().url().to_owned(),
            name: name.to_owned(),
            version_info: encoded.version.clone(),
            xds_config: any,
            config_status: config_status.into(),
            client_status: client_status.into(),
            error_state: nack.map(|nack| failure(nack, &encoded.version, now)),
            ..GenericXdsConfig::default()
        }
    };
    track.resources().into_iter().map(resource).collect()
}

fn failure(nack: &Nack, version: &str, now: Instant) -> UpdateFailureState {
    let at = unix_ms(nack.at, now);
    let nanos = i32::try_from(at.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    UpdateFailureState {
        details: nack.message.clone(),
        version_info: version.to_owned(),
        last_update_attempt: Some(Timestamp { seconds: at.div_euclid(1000), nanos }),
        ..UpdateFailureState::default()
    }
}

/// Refuses matchers that would be misunderstood.
fn check(matcher: &NodeMatcher) -> Result<(), Status> {
    if !matcher.node_metadatas.is_empty() {
        return Err(Status::invalid_argument("node_metadatas is not supported: name the proxy with node_id"));
    }
    match matcher.node_id.as_ref().and_then(|id| id.match_pattern.as_ref()) {
        None => Err(Status::invalid_argument("a node matcher must have a node_id")),
        Some(MatchPattern::SafeRegex(_) | MatchPattern::Custom(_)) => {
            Err(Status::invalid_argument("node_id must be exact, prefix, suffix or contains"))
        }
        Some(_) => Ok(()),
    }
}

fn matches(matcher: &NodeMatcher, id: &str) -> bool {
    let Some(StringMatcher { ignore_case, match_pattern: Some(pattern) }) = &matcher.node_id else { return false };
    let fold = |text: &str| if *ignore_case { text.to_lowercase() } else { text.to_owned() };
    let id = fold(id);
    match pattern {
        MatchPattern::Exact(text) => id == fold(text),
        MatchPattern::Prefix(text) => id.starts_with(&fold(text)),
        MatchPattern::Suffix(text) => id.ends_with(&fold(text)),
        MatchPattern::Contains(text) => id.contains(&fold(text)),
        MatchPattern::SafeRegex(_) | MatchPattern::Custom(_) => false,
    }
}
