//! Small parts that resources are made of.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, HeaderValue, HeaderValueOption, SocketAddress, address,
    socket_address,
};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf as pb;
use mesh_common::resource::{Header, HeaderFilter, MatchType};

pub(super) use envoy_types::util::pack_any as any;

/// Our own messages, whose `Any` has a type of its own.
pub(super) fn own_any<T: prost::Message + prost::Name>(message: &T) -> pb::Any {
    pb::Any { type_url: format!("type.googleapis.com/{}", T::full_name()), value: message.encode_to_vec() }
}

/// A map with one key; see [`ordered`] for more.
pub(super) fn one<V>(key: &str, value: V) -> HashMap<String, V> {
    HashMap::from([(key.to_owned(), value)])
}

/// A map whose encoding is always the same: a map is written in the order in which it is walked, which differs from one
/// map to the next and stays with a map's copies.
pub(super) fn ordered<V>(entries: Vec<(&str, V)>) -> HashMap<String, V> {
    let mut map: HashMap<String, V> = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    // Of few keys, soon some map has this order; that none of so many has it does not happen.
    for _ in 0..ORDERS {
        if map.keys().is_sorted() {
            break;
        }
        // A new hasher for each.
        map = map.into_iter().collect();
    }
    map
}

/// How many maps are made at most; each has the right order with a chance of one in two where there are two keys.
const ORDERS: usize = 256;

pub(super) fn duration(duration: Duration) -> Option<pb::Duration> {
    // Durations come from at most 5-digit numbers of hours, so both fit.
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Some(pb::Duration { seconds, nanos: duration.subsec_nanos() as i32 })
}

pub(super) fn uint32(value: u32) -> Option<pb::UInt32Value> {
    Some(pb::UInt32Value { value })
}

pub(super) fn boolean(value: bool) -> Option<pb::BoolValue> {
    Some(pb::BoolValue { value })
}

pub(super) fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

pub(super) fn address(ip: IpAddr, port: u16) -> Option<Address> {
    let socket = SocketAddress {
        address: ip.to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

pub(super) fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_owned(), ..RegexMatcher::default() }
}

pub(super) fn string_match(match_type: Option<MatchType>, value: &str) -> StringMatcher {
    let pattern = match match_type.unwrap_or_default() {
        MatchType::Exact => MatchPattern::Exact(value.to_owned()),
        MatchType::RegularExpression => MatchPattern::SafeRegex(regex(value)),
    };
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

pub(super) fn exact(value: &str) -> StringMatcher {
    string_match(Some(MatchType::Exact), value)
}

pub(super) fn fraction(parts_per_million: u32) -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator: parts_per_million, denominator: DenominatorType::Million as i32 })
}

pub(super) fn header_changes(filter: &HeaderFilter) -> Vec<HeaderValueOption> {
    let change = |header: &Header, action: HeaderAppendAction| HeaderValueOption {
        // Envoy reads `%...%` as a command.
        header: Some(HeaderValue { key: header.name.clone(), value: literal(&header.value), ..HeaderValue::default() }),
        append_action: action as i32,
        keep_empty_value: true,
        ..HeaderValueOption::default()
    };
    let set = filter.set.iter().map(|header| change(header, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = filter.add.iter().map(|header| change(header, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

/// Text in a field where Envoy knows commands.
fn literal(text: &str) -> String {
    text.replace('%', "%%")
}
