//! Every field of an encoded message changed, one at a time, without knowledge of its schema.

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// A number that no enumeration, port or flag of ours has.
const NUMBER: u64 = 0x7fff_ffff;
/// A field that no message of ours has.
const UNKNOWN: u32 = 999;
/// Deepest message that is looked into.
const DEPTH_MAX: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    number: u32,
    value: Value,
}

/// A changed message, and what was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// Field numbers from the outermost message inwards, and the change.
    pub change: String,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Every mutant of a message.
#[must_use]
pub fn mutants(bytes: &[u8]) -> Vec<Mutant> {
    inside(bytes, "", 0).unwrap_or_default()
}

/// `None` when these bytes are no message.
fn inside(bytes: &[u8], path: &str, depth: usize) -> Option<Vec<Mutant>> {
    let fields = parse(bytes).filter(|_| depth < DEPTH_MAX)?;
    let mut mutants = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let path = format!("{path}.{}", field.number);
        for (change, values) in changes(field, &path, depth) {
            let mut all = fields[..index].to_vec();
            all.extend(values.into_iter().map(|value| Field {
                number: field.number,
                value,
            }));
            all.extend_from_slice(&fields[index + 1..]);
            mutants.push(Mutant {
                change,
                bytes: encode(&all),
            });
        }
    }
    let mut more = fields;
    more.push(Field {
        number: UNKNOWN,
        value: Value::Number(1),
    });
    mutants.push(Mutant {
        change: format!("{path} unknown field"),
        bytes: encode(&more),
    });
    Some(mutants)
}

/// What one field becomes: other values of its form, another form, nothing.
fn changes(field: &Field, path: &str, depth: usize) -> Vec<(String, Vec<Value>)> {
    let mut changes = vec![(format!("{path} absent"), Vec::new())];
    let mut to = |what: &str, value: Value| changes.push((format!("{path} {what}"), vec![value]));
    match &field.value {
        Value::Number(_) => {
            to("out of range", Value::Number(NUMBER));
            to("of another form", Value::Fixed32([1; 4]));
        }
        Value::Bytes(bytes) => {
            to("no text", Value::Bytes(vec![0xff; bytes.len().max(1)]));
            to(
                "cut",
                Value::Bytes(bytes[..bytes.len().saturating_sub(1)].to_vec()),
            );
            to("of another form", Value::Number(1));
            for mutant in inside(bytes, path, depth + 1).unwrap_or_default() {
                changes.push((mutant.change, vec![Value::Bytes(mutant.bytes)]));
            }
        }
        Value::Fixed64(_) | Value::Fixed32(_) => to("of another form", Value::Number(NUMBER)),
    }
    changes
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (number, form) = decode_key(&mut bytes).ok()?;
        let value = match form {
            WireType::Varint => Value::Number(decode_varint(&mut bytes).ok()?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (inner, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(inner.to_vec())
            }
            WireType::SixtyFourBit => Value::Fixed64(fixed(&mut bytes)?),
            WireType::ThirtyTwoBit => Value::Fixed32(fixed(&mut bytes)?),
            _ => return None,
        };
        fields.push(Field { number, value });
    }
    Some(fields)
}

fn fixed<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_at_checked(N)?;
    *bytes = rest;
    first.try_into().ok()
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { number, value } in fields {
        match value {
            Value::Number(value) => {
                encode_key(*number, WireType::Varint, &mut bytes);
                encode_varint(*value, &mut bytes);
            }
            Value::Bytes(value) => {
                encode_key(*number, WireType::LengthDelimited, &mut bytes);
                encode_varint(value.len() as u64, &mut bytes);
                bytes.extend_from_slice(value);
            }
            Value::Fixed64(value) => {
                encode_key(*number, WireType::SixtyFourBit, &mut bytes);
                bytes.extend_from_slice(value);
            }
            Value::Fixed32(value) => {
                encode_key(*number, WireType::ThirtyTwoBit, &mut bytes);
                bytes.extend_from_slice(value);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_changed_inner_ones_too() {
        // Field 1 is a message with field 2 as a number; field 3 is a text.
        let bytes = [10, 2, 16, 5, 26, 1, b'x'];
        let all = mutants(&bytes);
        let change = |text: &str| all.iter().any(|mutant| mutant.change == text);
        for text in [
            ".1.2 out of range",
            ".1.2 absent",
            ".1 absent",
            ".3 no text",
            ".3 of another form",
            " unknown field",
            ".1 unknown field",
        ] {
            assert!(change(text), "{text}: {all:?}");
        }
        assert!(all.iter().all(|mutant| mutant.bytes != bytes));
    }

    #[test]
    fn what_is_taken_apart_is_put_together_again() {
        let bytes = [
            10, 2, 16, 5, 26, 1, b'x', 37, 1, 2, 3, 4, 41, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        assert_eq!(encode(&parse(&bytes).unwrap()), bytes);
        assert_eq!(parse(&bytes[..5]), None);
    }
}
