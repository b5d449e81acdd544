//! What an unquoted word of YAML is: nothing, a boolean, a number or text.

use super::node::Value;

/// Resolves a plain scalar as YAML 1.2's core schema does.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Text(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Value> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x") {
        return i128::from_str_radix(hex, 16).ok().map(Value::Integer);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return i128::from_str_radix(octal, 8).ok().map(Value::Integer);
    }
    if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Value::Integer);
    }
    let is_float = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if is_float {
        text.parse().ok().map(Value::Float)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_resolve_as_the_core_schema_says() {
        let cases = [
            ("~", Value::Null),
            ("true", Value::Bool(true)),
            ("yes", Value::Text("yes".into())),
            ("8080", Value::Integer(8080)),
            ("-1", Value::Integer(-1)),
            ("0x1F", Value::Integer(31)),
            ("1.5", Value::Float(1.5)),
            ("10.0.0.1", Value::Text("10.0.0.1".into())),
            ("2026-01-01T00:00:00Z", Value::Text("2026-01-01T00:00:00Z".into())),
            (".", Value::Text(".".into())),
            ("v1", Value::Text("v1".into())),
            ("1e3", Value::Float(1000.0)),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text), expected, "{text}");
        }
    }
}
