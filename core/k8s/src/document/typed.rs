//! A tree into a typed object; an error names the innermost place it belongs to.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::Fault;
use super::node::{Field, Node, Place, Value};

impl Node {
    /// Reads this value as a `T`. Null fields count as absent; fields that `T` does not have are passed over.
    ///
    /// # Errors
    /// The fault of the first value that does not fit.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        T::deserialize(Reader(self)).map_err(|Misfit { place, cause }| {
            let fix = fix_for(&cause);
            Fault::new(place.unwrap_or(self.place), cause, fix)
        })
    }
}

fn fix_for(cause: &str) -> &'static str {
    let number_for_text = (cause.contains("type: integer") || cause.contains("type: floating point"))
        && cause.contains("expected a string");
    if number_for_text || (cause.contains("type: boolean") && cause.contains("expected a string")) {
        "put the value in quotes"
    } else if cause.starts_with("missing field") {
        "add the field"
    } else {
        "correct the value"
    }
}

/// What did not fit, and where once that is known.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
struct Misfit {
    place: Option<Place>,
    cause: String,
}

impl serde::de::Error for Misfit {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self {
            place: None,
            cause: message.to_string(),
        }
    }
}

impl Misfit {
    fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    fn within(mut self, field: &str) -> Self {
        self.cause = match self.cause.strip_prefix('`') {
            Some(path) if path.contains("`: ") => {
                let dot = if path.starts_with('[') { "" } else { "." };
                format!("`{field}{dot}{path}")
            }
            _ => format!("`{field}`: {}", self.cause),
        };
        self
    }
}

struct Reader<'a>(&'a Node);

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let read = match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::Sequence(items) => visitor.visit_seq(Items {
                items: items.iter(),
                index: 0,
            }),
            Value::Mapping(fields) => visitor.visit_map(Fields {
                fields: fields.iter(),
                value: None,
            }),
        };
        read.map_err(|misfit| misfit.at(self.0.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if self.0.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let Value::Text(text) = &self.0.value else {
            return self.deserialize_any(visitor);
        };
        let variant: StrDeserializer<'_, Misfit> = text.as_str().into_deserializer();
        visitor
            .visit_enum(variant)
            .map_err(|misfit| misfit.at(self.0.place))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.items.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        let name = || format!("[{index}]");
        seed.deserialize(Reader(item))
            .map(Some)
            .map_err(|misfit| misfit.within(&name()).at(item.place))
    }
}

struct Fields<'a> {
    fields: std::slice::Iter<'a, (Field, Node)>,
    value: Option<(&'a Field, &'a Node)>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((field, node)) = self.fields.find(|(_, node)| !node.is_null()) else {
            return Ok(None);
        };
        self.value = Some((field, node));
        let name: StrDeserializer<'_, Misfit> = field.name.as_str().into_deserializer();
        seed.deserialize(name)
            .map(Some)
            .map_err(|misfit| misfit.at(field.place))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let (field, node) = self.value.take().expect("a value is asked for after its key");
        seed.deserialize(Reader(node))
            .map_err(|misfit| misfit.within(&field.name).at(node.place))
    }
}
