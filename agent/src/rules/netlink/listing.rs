//! A table as the kernel has it, in lines that can be compared: everything that is configuration, nothing that counts
//! or that the kernel numbers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;

use super::batch::{INET, TABLE_NAME, kind, named};
use crate::netlink::{Attributes, Connection, Message, attribute, attributes};

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;

/// Times a listing is begun again because the rules of the namespace changed meanwhile.
const ATTEMPTS_MAX: usize = 5;

/// How one kind of object is listed.
struct Object {
    title: &'static str,
    /// Attributes that count, or that the kernel numbers: handles, uses, positions, padding.
    left_out: &'static [u16],
    /// The attribute that holds a list of expressions.
    expressions: Option<u16>,
}

const TABLE_OBJECT: Object = Object {
    title: "table",
    left_out: &[TABLE_NAME, 3, 4, 5],
    expressions: None,
};
const CHAIN_OBJECT: Object = Object {
    title: "chain",
    left_out: &[TABLE_NAME, 2, 6, 8, 9],
    expressions: None,
};
const RULE_OBJECT: Object = Object {
    title: "rule",
    left_out: &[TABLE_NAME, 3, 6, 9],
    expressions: Some(4),
};
const SET_OBJECT: Object = Object {
    title: "set",
    left_out: &[TABLE_NAME, 14, 16],
    expressions: None,
};
const SET_NAME: u16 = 2;

/// Lists a table in the calling thread's namespace; nothing if there is none.
pub(super) fn list_here(connection: &mut Connection, table: &str) -> io::Result<Option<Vec<String>>> {
    for _ in 0..ATTEMPTS_MAX {
        let before = generation(connection)?;
        let lines = list_once(connection, table)?;
        if generation(connection)? == before {
            return Ok(lines);
        }
    }
    Err(io::Error::other(
        "the packet rules change faster than they can be read",
    ))
}

/// Whether a table is in the calling thread's namespace.
pub(super) fn is_present_here(connection: &mut Connection, table: &str) -> io::Result<bool> {
    match connection.request(&get(GET_TABLE, table)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the counters of a chain's rules have counted, in packets; nothing if there is no such chain.
pub(super) fn counted_here(connection: &mut Connection, table: &str, chain: &str) -> io::Result<u64> {
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let mut packets = 0;
    connection.dump(&get(GET_RULE, table), |body| {
        let Some(listed) = listed(body) else { return };
        let is = |number, text: &str| {
            attribute(listed, number).and_then(|name| name.strip_suffix(&[0])) == Some(text.as_bytes())
        };
        if is(TABLE_NAME, table) && is(CHAIN, chain) {
            let expressions = attribute(listed, EXPRESSIONS).unwrap_or_default();
            packets += attributes(expressions)
                .filter_map(|(_, expression)| packets_of(expression))
                .sum::<u64>();
        }
    })?;
    Ok(packets)
}

/// What a counter has counted.
fn packets_of(expression: &[u8]) -> Option<u64> {
    const NAME: u16 = 1;
    const PARAMETERS: u16 = 2;
    const PACKETS: u16 = 2;
    let is_counter = attribute(expression, NAME)? == b"counter\0";
    let packets = attribute(attribute(expression, PARAMETERS)?, PACKETS)?;
    is_counter.then_some(u64::from_be_bytes(packets.try_into().ok()?))
}

/// The elements of a set: each key, and whether it is where a range ends; nothing if there is no such set.
pub(super) fn elements_here(
    connection: &mut Connection,
    table: &str,
    set: &str,
) -> io::Result<Vec<(Vec<u8>, bool)>> {
    const ELEMENTS: u16 = 3;
    let wanted = named(table).text(SET_NAME, set);
    let mut found = Vec::new();
    let dumped = connection.dump(&Message::new(kind(GET_ELEMENTS), &INET).with(wanted), |body| {
        let list = listed(body).and_then(|listed| attribute(listed, ELEMENTS));
        found.extend(attributes(list.unwrap_or_default()).filter_map(|(_, element)| bound(element)));
    });
    match dumped {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

fn bound(element: &[u8]) -> Option<(Vec<u8>, bool)> {
    const KEY: u16 = 1;
    const FLAGS: u16 = 3;
    const VALUE: u16 = 1;
    const INTERVAL_END: u32 = 1;
    let key = attribute(attribute(element, KEY)?, VALUE)?.to_vec();
    let flags = attribute(element, FLAGS).and_then(|flags| flags.try_into().ok());
    let ends = flags.is_some_and(|flags| u32::from_be_bytes(flags) & INTERVAL_END != 0);
    Some((key, ends))
}

/// The number of the namespace's rule set; every transaction changes it.
fn generation(connection: &mut Connection) -> io::Result<Vec<u8>> {
    const NUMBER: u16 = 1;
    let mut found = Vec::new();
    connection.ask(&Message::new(kind(GET_GENERATION), &INET), |body| {
        let number = listed(body).and_then(|listed| attribute(listed, NUMBER));
        found = number.unwrap_or_default().to_vec();
    })?;
    Ok(found)
}

fn list_once(connection: &mut Connection, table: &str) -> io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    let asked = connection.ask(&get(GET_TABLE, table), |body| {
        lines.extend(line(&TABLE_OBJECT, table, body));
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        asked => asked?,
    }
    for (number, object) in [(GET_CHAIN, &CHAIN_OBJECT), (GET_RULE, &RULE_OBJECT)] {
        connection.dump(&get(number, table), |body| {
            lines.extend(line(object, table, body))
        })?;
    }
    let mut sets = Vec::new();
    connection.dump(&get(GET_SET, table), |body| {
        if let Some(line) = line(&SET_OBJECT, table, body) {
            lines.push(line);
            sets.extend(
                listed(body)
                    .and_then(|listed| attribute(listed, SET_NAME))
                    .map(<[u8]>::to_vec),
            );
        }
    })?;
    for set in &sets {
        lines.push(elements(connection, table, set)?);
    }
    Ok(Some(lines))
}

fn get(number: u16, table: &str) -> Message {
    Message::new(kind(number), &INET).with(named(table))
}

/// The elements of a set, in an order of ours: the kernel's is that of its hash table.
fn elements(connection: &mut Connection, table: &str, set: &[u8]) -> io::Result<String> {
    const ELEMENTS: u16 = 3;
    let named: Attributes = named(table).bytes(SET_NAME, set);
    let mut found = BTreeSet::new();
    connection.dump(&Message::new(kind(GET_ELEMENTS), &INET).with(named), |body| {
        let list = listed(body).and_then(|listed| attribute(listed, ELEMENTS));
        found.extend(attributes(list.unwrap_or_default()).map(|(_, element)| value(element)));
    })?;
    let elements: Vec<_> = found.into_iter().collect();
    Ok(format!("elements of {}: {}", value(set), elements.join(" ")))
}

/// What follows the fixed part of a message.
fn listed(body: &[u8]) -> Option<&[u8]> {
    body.get(INET.len()..)
}

/// One object in a line; nothing if it belongs to another table.
fn line(object: &Object, table: &str, body: &[u8]) -> Option<String> {
    let listed = listed(body)?;
    if attribute(listed, TABLE_NAME)?.strip_suffix(&[0])? != table.as_bytes() {
        return None;
    }
    let mut line = object.title.to_owned();
    for (number, payload) in attributes(listed) {
        if object.left_out.contains(&number) {
            continue;
        }
        if object.expressions == Some(number) {
            for (_, expression) in attributes(payload) {
                write_expression(&mut line, expression);
            }
        } else {
            write(&mut line, format_args!(" {number}={}", value(payload)));
        }
    }
    Some(line)
}

fn write_expression(line: &mut String, expression: &[u8]) {
    const NAME: u16 = 1;
    const PARAMETERS: u16 = 2;
    let name = attribute(expression, NAME).unwrap_or_default();
    write(line, format_args!(" [{}", text(name).unwrap_or("?")));
    // Its parameters are what it has counted.
    if name != b"counter\0" {
        for (number, payload) in attributes(attribute(expression, PARAMETERS).unwrap_or_default()) {
            write(line, format_args!(" {number}={}", value(payload)));
        }
    }
    line.push(']');
}

/// A payload as text if it is some, else in hexadecimal digits.
fn value(payload: &[u8]) -> String {
    if let Some(text) = text(payload) {
        return format!("{text:?}");
    }
    let mut digits = String::new();
    for byte in payload {
        write(&mut digits, format_args!("{byte:02x}"));
    }
    digits
}

fn text(payload: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(payload.strip_suffix(&[0])?).ok()?;
    let printable = |byte: u8| (b' '..=b'~').contains(&byte);
    (!text.is_empty() && text.bytes().all(printable)).then_some(text)
}

fn write(line: &mut String, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::super::expression::Expression;
    use super::*;

    fn rule(table: &str, handle: u64, expressions: &[Attributes]) -> Vec<u8> {
        let list = expressions
            .iter()
            .fold(Attributes::new(), |list, expression| list.nested(1, expression));
        let attributes = Attributes::new()
            .text(1, table)
            .text(2, "nat-out")
            .bytes(3, &handle.to_be_bytes())
            .nested(4, &list);
        [&INET[..], attributes.as_bytes()].concat()
    }

    fn counter(packets: u64) -> Attributes {
        let counted = Attributes::new().bytes(2, &packets.to_be_bytes());
        Attributes::new().text(1, "counter").nested(2, &counted)
    }

    #[test]
    fn handles_and_counters_make_no_difference() {
        let seen = |handle, packets| {
            let expressions = [counter(packets), Expression::Accept.encode()];
            line(&RULE_OBJECT, "tulle", &rule("tulle", handle, &expressions))
        };
        assert_eq!(
            seen(1, 2).unwrap(),
            "rule 2=\"nat-out\" [counter] [immediate 1=00000000 2=0c0002800800010000000001]"
                .replace("00000000 01", "00000001")
        );
        assert_eq!(seen(1, 2), seen(3, 4));
    }

    #[test]
    fn a_counter_is_read_and_nothing_else() {
        assert_eq!(packets_of(counter(7).as_bytes()), Some(7));
        assert_eq!(packets_of(Expression::Accept.encode().as_bytes()), None);
    }

    #[test]
    fn what_a_rule_does_makes_one() {
        let seen = |verdict: Expression| line(&RULE_OBJECT, "tulle", &rule("tulle", 1, &[verdict.encode()]));
        assert_ne!(seen(Expression::Accept), seen(Expression::Drop));
    }

    #[test]
    fn other_tables_are_left_out() {
        assert_eq!(line(&RULE_OBJECT, "tulle", &rule("tulle-host", 1, &[])), None);
        assert_eq!(line(&RULE_OBJECT, "tulle", &[1, 0]), None);
    }
}
