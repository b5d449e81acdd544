//! Extensions with a text as value, as ours are.

use prost::Message as _;

use crate::names::STRING_VALUE_TYPE;
use crate::workload as wire;

/// An extension with this text.
pub(super) fn text(name: &str, value: &str) -> wire::Extension {
    let config = prost_types::Any {
        type_url: STRING_VALUE_TYPE.into(),
        value: value.to_owned().encode_to_vec(),
    };
    wire::Extension {
        name: name.into(),
        config: Some(config),
    }
}

/// The text of an extension, if that is what it carries.
pub(super) fn text_of(config: Option<&prost_types::Any>) -> Option<String> {
    let config = config.filter(|config| config.type_url == STRING_VALUE_TYPE)?;
    String::decode(config.value.as_slice()).ok()
}
