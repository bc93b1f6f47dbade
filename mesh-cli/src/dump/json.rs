//! Protobuf to JSON by descriptors: with Envoy's own field names, as its `/config_dump` writes them, and with the content
//! of `Any`s in place. What no descriptor is known for stays as bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MapKey, ReflectMessage, Value as Field};
use serde_json::{Map, Value, json};

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
/// What no one needs to see, whatever the control plane sends.
const PRIVATE: &[&str] = &["private_key", "session_ticket_keys", "password"];

/// All message types that are known.
pub struct Types {
    pool: DescriptorPool,
}

impl Types {
    pub fn load() -> Result<Self, prost_reflect::DescriptorError> {
        Ok(Self { pool: DescriptorPool::decode(DESCRIPTORS)? })
    }

    /// The content of an `Any`, with its type in `@type`.
    pub fn any(&self, type_url: &str, bytes: &[u8]) -> Value {
        let name = type_url.rsplit('/').next().unwrap_or(type_url);
        let message = self.pool.get_message_by_name(name).and_then(|d| DynamicMessage::decode(d, bytes).ok());
        let Some(message) = message else {
            return json!({"@type": type_url, "value": STANDARD.encode(bytes)});
        };
        match self.message(&message) {
            Value::Object(mut fields) => {
                fields.insert("@type".to_owned(), type_url.into());
                Value::Object(fields)
            }
            // A type with a JSON form of its own, such as a duration.
            value => json!({"@type": type_url, "value": value}),
        }
    }

    fn message(&self, message: &DynamicMessage) -> Value {
        if let Some(value) = self.well_known(message) {
            return value;
        }
        let mut object = Map::new();
        for (field, value) in message.fields() {
            let name = field.name();
            let value = if PRIVATE.contains(&name) { "[redacted]".into() } else { self.value(value, &field.kind()) };
            object.insert(name.to_owned(), value);
        }
        Value::Object(object)
    }

    fn value(&self, value: &Field, kind: &Kind) -> Value {
        match value {
            Field::Bool(value) => (*value).into(),
            Field::I32(value) => (*value).into(),
            Field::I64(value) => (*value).into(),
            Field::U32(value) => (*value).into(),
            Field::U64(value) => (*value).into(),
            Field::F32(value) => f64::from(*value).into(),
            Field::F64(value) => (*value).into(),
            Field::String(value) => value.as_str().into(),
            Field::Bytes(value) => STANDARD.encode(value).into(),
            Field::EnumNumber(number) => match kind {
                Kind::Enum(of) => of.get_value(*number).map(|v| v.name().into()).unwrap_or_else(|| (*number).into()),
                _ => (*number).into(),
            },
            Field::Message(message) => self.message(message),
            Field::List(values) => values.iter().map(|value| self.value(value, kind)).collect(),
            Field::Map(entries) => {
                let value_kind = match kind {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    other => other.clone(),
                };
                let entries = entries.iter().map(|(key, value)| (map_key(key), self.value(value, &value_kind)));
                Value::Object(entries.collect())
            }
        }
    }

    /// Types whose JSON is not that of their fields (protobuf's language guide, "JSON mapping").
    fn well_known(&self, message: &DynamicMessage) -> Option<Value> {
        let descriptor = message.descriptor();
        let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
        let get = |field: &str| message.get_field_by_name(field);
        let seconds = || get("seconds").and_then(|v| v.as_i64()).unwrap_or_default();
        let nanos = || get("nanos").and_then(|v| v.as_i32()).unwrap_or_default();
        match name {
            "Any" => {
                let bytes = get("value")?;
                Some(self.any(get("type_url")?.as_str()?, bytes.as_bytes()?))
            }
            "Duration" => Some(seconds_text(SignedDuration::new(seconds(), nanos())).into()),
            "Timestamp" => Timestamp::new(seconds(), nanos()).ok().map(|t| t.to_string().into()),
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
            | "BoolValue" | "StringValue" | "BytesValue" => {
                let field = descriptor.get_field_by_name("value")?;
                Some(self.value(&message.get_field(&field), &field.kind()))
            }
            "Struct" => {
                let field = descriptor.get_field_by_name("fields")?;
                Some(self.value(&message.get_field(&field), &field.kind()))
            }
            "ListValue" => {
                let field = descriptor.get_field_by_name("values")?;
                Some(self.value(&message.get_field(&field), &field.kind()))
            }
            "Value" => match message.fields().next() {
                Some((field, _)) if field.name() == "null_value" => Some(Value::Null),
                Some((field, value)) => Some(self.value(value, &field.kind())),
                None => Some(Value::Null),
            },
            _ => None,
        }
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// `1.5s`
fn seconds_text(duration: SignedDuration) -> String {
    let sign = if duration.is_negative() { "-" } else { "" };
    let duration = duration.unsigned_abs();
    let decimals = format!("{:09}", duration.subsec_nanos());
    match decimals.trim_end_matches('0') {
        "" => format!("{sign}{}s", duration.as_secs()),
        decimals => format!("{sign}{}.{decimals}s", duration.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
    use envoy_types::util::pack_any;
    use prost::Message;

    use super::*;

    fn read(message: Any) -> Value {
        Types::load().unwrap().any(&message.type_url, &message.value)
    }

    #[test]
    fn fields_have_envoys_names_and_well_known_types_their_short_form() {
        let cluster = Cluster {
            name: "reviews".into(),
            connect_timeout: Some(Duration { seconds: 1, nanos: 500_000_000 }),
            per_connection_buffer_limit_bytes: Some(UInt32Value { value: 7 }),
            lb_policy: 1,
            ..Cluster::default()
        };
        let expected = json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "reviews",
            "connect_timeout": "1.5s",
            "per_connection_buffer_limit_bytes": 7,
            "lb_policy": "LEAST_REQUEST",
        });
        assert_eq!(read(pack_any(cluster)), expected);
    }

    #[test]
    fn our_own_types_are_known_too() {
        let fault = mesh_common::proto::extensions::Fault {
            rules: vec![mesh_common::proto::extensions::FaultRule {
                name: "default/x".into(),
                parts_per_million: 500_000,
                ..Default::default()
            }],
        };
        let any = Any { type_url: "type.googleapis.com/mesh.extensions.v1.Fault".into(), value: fault.encode_to_vec() };
        assert_eq!(read(any)["rules"][0]["parts_per_million"], 500_000);
    }

    #[test]
    fn what_is_unknown_stays_as_bytes() {
        let any = Any { type_url: "type.googleapis.com/no.such.Type".into(), value: vec![1, 2] };
        assert_eq!(read(any), json!({"@type": "type.googleapis.com/no.such.Type", "value": "AQI="}));
        let garbage = Any { type_url: mesh_common::names::TYPE_CLUSTER.into(), value: vec![0xff, 0xff] };
        assert_eq!(read(garbage)["value"], "//8=");
    }

    #[test]
    fn keys_are_never_shown() {
        use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
        use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, secret};
        let key =
            DataSource { specifier: Some(Specifier::InlineString("very secret".into())), ..DataSource::default() };
        let certificate = TlsCertificate { private_key: Some(key), ..TlsCertificate::default() };
        let secret = Secret { name: "default".into(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
        let json = read(pack_any(secret));
        assert_eq!(json["tls_certificate"]["private_key"], "[redacted]");
        assert!(!json.to_string().contains("very secret"));
    }
}
