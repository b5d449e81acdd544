//! The part of OpenTelemetry's messages (`opentelemetry.proto`) that access lines and spans need.

use prost::Message;

pub mod logs;
pub mod trace;

/// Who tells.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// What is known of it.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

impl Resource {
    /// A teller with these attributes.
    #[must_use]
    pub fn new(attributes: Vec<KeyValue>) -> Self {
        Self { attributes }
    }
}

/// `InstrumentationScope`
#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// A key and its value.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

impl KeyValue {
    /// A text.
    #[must_use]
    pub fn text(key: &str, value: &str) -> Self {
        Self {
            key: key.to_owned(),
            value: Some(AnyValue::text(value)),
        }
    }

    /// A number.
    #[must_use]
    pub fn count(key: &str, value: u64) -> Self {
        let value = Value::Int(i64::try_from(value).unwrap_or(i64::MAX));
        Self {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
        }
    }
}

/// A value of a kind that records have.
#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    /// The value.
    #[prost(oneof = "Value", tags = "1, 3")]
    pub value: Option<Value>,
}

impl AnyValue {
    /// A text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self {
            value: Some(Value::Text(text.to_owned())),
        }
    }
}

/// Its kinds.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    /// A text.
    #[prost(string, tag = "1")]
    Text(String),
    /// A number.
    #[prost(int64, tag = "3")]
    Int(i64),
}
