//! xDS protobuf -> runtime configuration.
//!
//! What cannot be honoured is refused with the path of the field and the reason: a field or extension that is ignored
//! here would open what somebody meant to close, or send traffic where it was not meant to go. Only what neither
//! decides who gets in nor where a request goes (statistics, buffer sizes, tracing) may be ignored.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::core::v3::{ConfigSource, config_source::ConfigSourceSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration as PbDuration};
use mesh_common::proto::workload::Name as PbName;
use prost::Message;

use super::Name;
use crate::snapshot::{Resource, Type};

mod authorization;
mod cluster;
mod cors;
mod endpoint_health;
mod endpoints;
mod ext_authz;
mod fault;
mod filters;
mod jwt;
mod limit;
mod listener;
mod matching;
mod route;
mod tls;
mod tracing;
mod udp;

/// Why a resource is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{reason}", .field, if .field.is_empty() { "" } else { ": " })]
pub struct Rejected {
    /// `filter_chains[0].filters[1]`; empty when the resource as a whole is meant.
    pub field: String,
    pub reason: String,
}

impl Rejected {
    fn new(reason: impl Display) -> Self {
        Self { field: String::new(), reason: reason.to_string() }
    }

    fn field(field: impl Display, reason: impl Display) -> Self {
        Self { field: field.to_string(), reason: reason.to_string() }
    }
}

type Decoded<T> = Result<T, Rejected>;

/// Decodes a resource, `bytes` being the value of its `Any`.
pub fn decode(ty: Type, bytes: &[u8]) -> Result<Resource, Rejected> {
    Ok(match ty {
        Type::Listener => Resource::Listener(Arc::new(listener::listener(parse::<PbListener>(bytes)?)?)),
        Type::Routes => Resource::Routes(Arc::new(route::table(parse::<RouteConfiguration>(bytes)?)?)),
        Type::Cluster => Resource::Cluster(Arc::new(cluster::cluster(parse::<PbCluster>(bytes)?)?)),
        Type::Endpoints => Resource::Endpoints(Arc::new(endpoints::endpoints(parse::<ClusterLoadAssignment>(bytes)?)?)),
        Type::Name => {
            let name = parse::<PbName>(bytes)?;
            Resource::Name(name.name.clone(), Arc::new(dns_name(name)?))
        }
    })
}

fn dns_name(pb: PbName) -> Decoded<Name> {
    let question = &pb.name;
    if question.is_empty() || question.ends_with('.') || question.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(Rejected::field("name", format!("{question:?} is not a lower-case name without a trailing dot")));
    }
    let address = |(index, text): (usize, &String)| {
        let reason = || format!("{text:?} is not an IP address");
        text.parse().map_err(|_| Rejected::field(format_args!("addresses[{index}]"), reason()))
    };
    let addresses = pb.addresses.iter().enumerate().map(address).collect::<Result<_, _>>()?;
    let alias = match pb.alias.as_str() {
        "" => None,
        text => {
            let mut name =
                hickory_proto::rr::Name::from_ascii(text).map_err(|error| Rejected::field("alias", error))?;
            name.set_fqdn(true);
            Some(name)
        }
    };
    Ok(Name { addresses, ttl_seconds: pb.ttl_seconds, canonical: pb.canonical, alias })
}

fn parse<T: Message + Default>(bytes: &[u8]) -> Decoded<T> {
    T::decode(bytes).map_err(|e| Rejected::new(format_args!("not a protobuf message of its type: {e}")))
}

/// Adds the way to where something was refused.
trait At<T> {
    fn at(self, field: impl Display) -> Decoded<T>;
}

impl<T> At<T> for Decoded<T> {
    fn at(self, field: impl Display) -> Self {
        self.map_err(|mut e| {
            let dot = if e.field.is_empty() || e.field.starts_with('[') { "" } else { "." };
            e.field = format!("{field}{dot}{}", e.field);
            e
        })
    }
}

/// Each of a repeated field.
fn each<P, T>(field: &str, all: impl IntoIterator<Item = P>, decode: impl Fn(P) -> Decoded<T>) -> Decoded<Vec<T>> {
    all.into_iter().enumerate().map(|(i, pb)| decode(pb).at(format_args!("{field}[{i}]"))).collect()
}

/// Refuses a field that says something which the proxy cannot do.
fn unless(unsupported: bool, field: &str, reason: &str) -> Decoded<()> {
    if unsupported { Err(Rejected::field(field, reason)) } else { Ok(()) }
}

/// The message in an `Any`, if it is of that type.
fn unpack<T: Message + Default + prost::Name>(any: &Any) -> Option<Decoded<T>> {
    is::<T>(any).then(|| parse(&any.value))
}

/// The type is what follows the last slash of the URL, whatever is before it.
fn is<T: prost::Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(T::full_name().as_str())
}

fn unsupported_type(any: &Any) -> Rejected {
    Rejected::new(format_args!("the extension {:?} is not supported", any.type_url))
}

fn is_true(value: &Option<BoolValue>) -> bool {
    value.as_ref().is_some_and(|it| it.value)
}

fn duration(pb: &PbDuration) -> Decoded<Duration> {
    let seconds = u64::try_from(pb.seconds);
    let nanos = u32::try_from(pb.nanos);
    match (seconds, nanos) {
        // Protobuf's own bound, about 10,000 years.
        (Ok(seconds), Ok(nanos)) if seconds <= 315_576_000_000 && nanos < 1_000_000_000 => {
            Ok(Duration::new(seconds, nanos))
        }
        _ => Err(Rejected::new(format_args!("{}s {}ns is not a duration", pb.seconds, pb.nanos))),
    }
}

fn duration_or(field: &str, pb: &Option<PbDuration>, default: Duration) -> Decoded<Duration> {
    pb.as_ref().map_or(Ok(default), |pb| duration(pb).at(field))
}

fn parts_per_million(pb: &FractionalPercent) -> Decoded<u32> {
    let factor = match DenominatorType::try_from(pb.denominator) {
        Ok(DenominatorType::Hundred) => 10_000,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Million) => 1,
        Err(_) => return Err(Rejected::field("denominator", format_args!("{} is not known", pb.denominator))),
    };
    // More than all is all, as Envoy has it.
    Ok(pb.numerator.saturating_mul(factor).min(1_000_000))
}

/// Refuses sources other than the stream that this resource came on.
fn from_ads(source: &Option<ConfigSource>) -> Decoded<()> {
    match source.as_ref().and_then(|it| it.config_source_specifier.as_ref()) {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        None => Err(Rejected::new("a configuration source is needed; only `ads` and `self` are supported")),
        Some(_) => Err(Rejected::new("only the configuration sources `ads` and `self` are supported")),
    }
}

#[cfg(test)]
mod tests;
