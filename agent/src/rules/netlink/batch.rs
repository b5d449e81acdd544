//! A table as one transaction: the messages in order, each with the words that name it should the kernel refuse it.

use super::super::table::{Chain, Elements, Hook, Set, Table};
use super::expression::{ANONYMOUS_SET, data};
use super::translate::{Statement, statements};
use crate::netlink::{Attributes, Message, NESTED, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The number of nf_tables among the subsystems of netfilter.
const SUBSYSTEM: u8 = 10;
/// `struct nfgenmsg` of a batch: no family, version 0, the subsystem as a big-endian number.
const BATCH: [u8; 4] = [0, 0, 0, SUBSYSTEM];
/// `struct nfgenmsg` of our table: family `inet`, version 0, no resource.
pub(super) const INET: [u8; 4] = [1, 0, 0, 0];

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;

/// Attributes that name the table are number 1 everywhere.
pub(super) const TABLE_NAME: u16 = 1;
const LIST_ELEMENT: u16 = 1;

/// One value of an anonymous set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A port.
    Port(u16),
    /// A type of ICMPv6's messages.
    Icmp6Type(u8),
}

impl Key {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Port(port) => port.to_be_bytes().to_vec(),
            Self::Icmp6Type(number) => vec![number],
        }
    }

    /// What nft calls the type of the set; the kernel keeps it for who prints the set.
    fn kind(self) -> u32 {
        match self {
            Self::Port(_) => 13,
            Self::Icmp6Type(_) => 29,
        }
    }
}

/// Messages that are carried out together or not at all.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    messages: Vec<Message>,
    names: Vec<String>,
}

impl Transaction {
    /// Makes the table; the kernel refuses if there is one.
    pub(super) fn create(table: &Table) -> Self {
        let mut transaction = Self::begin();
        transaction.push("the new table".to_owned(), new_table(table.name, NLM_F_EXCL));
        transaction.fill(table)
    }

    /// Replaces the table. That there is one to delete is made sure of first.
    pub(super) fn replace(table: &Table) -> Self {
        Self::replace_with(table, Vec::new())
    }

    /// Replaces the table, and carries out what others ask for in the same transaction.
    pub(super) fn replace_with(table: &Table, others: Vec<(String, Message)>) -> Self {
        let mut transaction = Self::delete_whatever_is_there(table.name);
        for (name, message) in others {
            transaction.push(name, message);
        }
        transaction.push("the new table".to_owned(), new_table(table.name, 0));
        transaction.fill(table)
    }

    /// Removes the table, if there is one.
    pub(super) fn remove(table: &str) -> Self {
        Self::delete_whatever_is_there(table).end()
    }

    /// The messages, in order.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What a message is about. The kernel lays what it finds only at the end to the first.
    pub(super) fn name(&self, message: usize) -> &str {
        self.names
            .get(message)
            .map_or("an unknown message", String::as_str)
    }

    fn begin() -> Self {
        let mut transaction = Self {
            messages: Vec::new(),
            names: Vec::new(),
        };
        transaction.push(
            "the transaction as a whole".to_owned(),
            Message::new(BATCH_BEGIN, &BATCH),
        );
        transaction
    }

    fn delete_whatever_is_there(table: &str) -> Self {
        let mut transaction = Self::begin();
        transaction.push("the table to be deleted".to_owned(), new_table(table, 0));
        let deletion = message(DELETE_TABLE, 0, named(table));
        transaction.push("the deletion of the table".to_owned(), deletion);
        transaction
    }

    fn fill(mut self, table: &Table) -> Self {
        for set in &table.sets {
            self.push(format!("set {}", set.name), new_set(table.name, set));
            for elements in new_elements(table.name, set) {
                self.push(format!("the elements of set {}", set.name), elements);
            }
        }
        for chain in &table.chains {
            self.push(format!("chain {}", chain.name), new_chain(table.name, chain));
        }
        let mut set = 0;
        for chain in &table.chains {
            let rules = chain.rules.iter().flat_map(|rule| {
                set += 1;
                statements(rule, table.mark, set)
                    .into_iter()
                    .map(move |statement| (statement, set))
            });
            for (index, (statement, set)) in rules.enumerate() {
                self.push_rule(table.name, chain, index + 1, &statement, set);
            }
        }
        self.end()
    }

    fn end(mut self) -> Self {
        self.push(
            "the end of the transaction".to_owned(),
            Message::new(BATCH_END, &BATCH),
        );
        self
    }

    fn push(&mut self, name: String, message: Message) {
        self.names.push(name);
        self.messages.push(message);
    }

    fn push_rule(&mut self, table: &str, chain: &Chain, number: usize, statement: &Statement, set: u32) {
        let name = format!("rule {number} of chain {}", chain.name);
        if let Some(first) = statement.keys.first() {
            let keys = &statement.keys;
            self.push(
                format!("the set of {name}"),
                anonymous_set(table, set, *first, keys.len()),
            );
            self.push(
                format!("each element of the set of {name}"),
                anonymous_elements(table, set, keys),
            );
        }
        self.push(name, new_rule(table, chain, statement));
    }
}

/// The type of a message of nf_tables.
pub(super) fn kind(number: u16) -> u16 {
    u16::from(SUBSYSTEM) << 8 | number
}

fn message(number: u16, flags: u16, attributes: Attributes) -> Message {
    Message::new(kind(number), &INET).flags(flags).with(attributes)
}

/// The start of every message's attributes.
pub(super) fn named(table: &str) -> Attributes {
    Attributes::new().text(TABLE_NAME, table)
}

fn new_table(table: &str, flags: u16) -> Message {
    const FLAGS: u16 = 2;
    message(NEW_TABLE, NLM_F_CREATE | flags, named(table).number(FLAGS, 0))
}

fn new_chain(table: &str, chain: &Chain) -> Message {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const ACCEPT: u32 = 1;
    let attributes = named(table).text(NAME, chain.name);
    let Some(place) = chain.hook else {
        return message(NEW_CHAIN, NLM_F_CREATE, attributes);
    };
    let (kind, number, priority) = hook(place);
    let hook = Attributes::new()
        .number(HOOK_NUMBER, number)
        .number(HOOK_PRIORITY, priority.cast_unsigned());
    let attributes = attributes
        .text(TYPE, kind)
        .number(POLICY, ACCEPT)
        .nested(HOOK, &hook);
    message(NEW_CHAIN, NLM_F_CREATE, attributes)
}

/// Type, number of the hook, priority.
fn hook(hook: Hook) -> (&'static str, u32, i32) {
    const PREROUTING: u32 = 0;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    const RAW: i32 = -300;
    const MANGLE: i32 = -150;
    const DESTINATION: i32 = -100;
    const SOURCE: i32 = 100;
    match hook {
        Hook::RawPrerouting => ("filter", PREROUTING, RAW),
        Hook::RawOutput => ("filter", OUTPUT, RAW),
        Hook::ManglePrerouting => ("filter", PREROUTING, MANGLE),
        Hook::BeforeMangleOutput => ("route", OUTPUT, MANGLE - 1),
        Hook::MangleOutput => ("route", OUTPUT, MANGLE),
        Hook::ManglePostrouting => ("filter", POSTROUTING, MANGLE),
        Hook::NatPrerouting => ("nat", PREROUTING, DESTINATION),
        Hook::NatOutput => ("nat", OUTPUT, DESTINATION),
        Hook::NatPostrouting => ("nat", POSTROUTING, SOURCE - 1),
    }
}

fn new_rule(table: &str, chain: &Chain, statement: &Statement) -> Message {
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let list = statement
        .expressions
        .iter()
        .fold(Attributes::new(), |list, expression| {
            list.nested(LIST_ELEMENT, &expression.encode())
        });
    let attributes = named(table).text(CHAIN, chain.name).nested(EXPRESSIONS, &list);
    message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, attributes)
}

/// Attributes of sets, and of their elements.
mod set {
    pub(super) const NAME: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const KEY_TYPE: u16 = 4;
    pub(super) const KEY_BYTES: u16 = 5;
    pub(super) const DESCRIPTION: u16 = 9;
    pub(super) const ID: u16 = 10;
    pub(super) const SIZE: u16 = 1;
    pub(super) const ELEMENTS: u16 = 3;
    pub(super) const ELEMENTS_SET_ID: u16 = 4;
    pub(super) const ELEMENT_KEY: u16 = 1;
    pub(super) const ELEMENT_FLAGS: u16 = 3;
}

fn anonymous_set(table: &str, id: u32, first: Key, keys: usize) -> Message {
    const ANONYMOUS_AND_CONSTANT: u32 = 3;
    let size = u32::try_from(keys).expect("anonymous sets are small");
    let bytes = u32::try_from(first.bytes().len()).expect("keys are short");
    let attributes = named(table)
        .text(set::NAME, ANONYMOUS_SET)
        .number(set::FLAGS, ANONYMOUS_AND_CONSTANT)
        .number(set::KEY_TYPE, first.kind())
        .number(set::KEY_BYTES, bytes)
        .number(set::ID, id)
        .nested(set::DESCRIPTION, &Attributes::new().number(set::SIZE, size));
    message(NEW_SET, NLM_F_CREATE, attributes)
}

fn anonymous_elements(table: &str, id: u32, keys: &[Key]) -> Message {
    let list = keys.iter().fold(Attributes::new(), |list, key| {
        list.nested(LIST_ELEMENT, &element(&key.bytes()))
    });
    let attributes = named(table)
        .text(set::NAME, ANONYMOUS_SET)
        .number(set::ELEMENTS_SET_ID, id)
        .nested(set::ELEMENTS, &list);
    message(NEW_ELEMENTS, NLM_F_CREATE, attributes)
}

fn element(key: &[u8]) -> Attributes {
    Attributes::new().bytes(set::ELEMENT_KEY | NESTED, data(key).as_bytes())
}

fn new_set(table: &str, set: &Set) -> Message {
    const INTERVAL: u32 = 4;
    const ADDRESS4: (u32, u32) = (7, 4);
    const ADDRESS6: (u32, u32) = (8, 16);
    let ((kind, bytes), flags) = match &set.elements {
        Elements::V4(_) => (ADDRESS4, 0),
        Elements::V6(_) => (ADDRESS6, 0),
        Elements::Ranges4(_) => (ADDRESS4, INTERVAL),
        Elements::Ranges6(_) => (ADDRESS6, INTERVAL),
    };
    // An id of its own is no use, a set with a name is found by that; but the kernel wants one.
    let attributes = named(table)
        .text(set::NAME, set.name)
        .number(set::FLAGS, flags)
        .number(set::KEY_TYPE, kind)
        .number(set::KEY_BYTES, bytes)
        .number(set::ID, u32::MAX);
    message(NEW_SET, NLM_F_CREATE, attributes)
}

/// The elements of a set, in as many messages as it takes: an attribute is at most 64 KiB long.
fn new_elements(table: &str, set: &Set) -> Vec<Message> {
    const ELEMENTS_PER_MESSAGE: usize = 512;
    let elements: Vec<Attributes> = match &set.elements {
        Elements::V4(addresses) => addresses
            .iter()
            .map(|address| element(&address.octets()))
            .collect(),
        Elements::V6(addresses) => addresses
            .iter()
            .map(|address| element(&address.octets()))
            .collect(),
        Elements::Ranges4(ranges) => bounds(ranges.iter().map(|(first, last)| {
            let next = last
                .to_bits()
                .checked_add(1)
                .map(|next| next.to_be_bytes().to_vec());
            (first.octets().to_vec(), next)
        })),
        Elements::Ranges6(ranges) => bounds(ranges.iter().map(|(first, last)| {
            let next = last
                .to_bits()
                .checked_add(1)
                .map(|next| next.to_be_bytes().to_vec());
            (first.octets().to_vec(), next)
        })),
    };
    let message = |elements: &[Attributes]| {
        let list = elements.iter().fold(Attributes::new(), |list, element| {
            list.nested(LIST_ELEMENT, element)
        });
        let attributes = named(table)
            .text(set::NAME, set.name)
            .nested(set::ELEMENTS, &list);
        message(NEW_ELEMENTS, NLM_F_CREATE, attributes)
    };
    elements.chunks(ELEMENTS_PER_MESSAGE).map(message).collect()
}

/// A range is where it begins, and where what is not in it begins: nothing if it reaches to the end. The space before
/// the first range is said not to be in it.
fn bounds(ranges: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Vec<Attributes> {
    const INTERVAL_END: u32 = 1;
    let end = |key: &[u8]| element(key).number(set::ELEMENT_FLAGS, INTERVAL_END);
    let mut bounds = Vec::new();
    for (first, next) in ranges {
        if bounds.is_empty() && first.iter().any(|byte| *byte != 0) {
            bounds.push(end(&vec![0; first.len()]));
        }
        bounds.push(element(&first));
        bounds.extend(next.map(|next| end(&next)));
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::{ProxyMark, Variant, capture};
    use super::*;

    fn drain() -> Table {
        super::super::super::plan::drain(ProxyMark::WellKnown)
    }

    #[test]
    fn a_table_is_deleted_and_made_anew_in_one_transaction() {
        let transaction = Transaction::replace(&drain());
        assert_eq!(
            transaction.names,
            [
                "the transaction as a whole",
                "the table to be deleted",
                "the deletion of the table",
                "the new table",
                "chain mangle-pre",
                "chain mangle-out",
                "chain nat-keep",
                "rule 1 of chain mangle-pre",
                "rule 1 of chain mangle-out",
                "the end of the transaction",
            ]
        );
        assert_eq!(transaction.messages.len(), transaction.names.len());
    }

    #[test]
    fn a_table_that_is_made_where_there_is_none_deletes_nothing() {
        let names = Transaction::create(&drain()).names;
        assert_eq!(names[..2], ["the transaction as a whole", "the new table"]);
        assert_eq!(names[2..], Transaction::replace(&drain()).names[4..]);
    }

    #[test]
    fn a_set_comes_before_the_rule_that_looks_into_it() {
        let transaction = Transaction::replace(&capture(&Variant::default()));
        let at = |name: &str| transaction.names.iter().position(|found| found == name).unwrap();
        let rule = at("rule 4 of chain mangle-pre");
        assert_eq!(at("the set of rule 4 of chain mangle-pre"), rule - 2);
        assert_eq!(
            at("each element of the set of rule 4 of chain mangle-pre"),
            rule - 1
        );
    }

    #[test]
    fn removing_needs_no_table_to_be_there() {
        assert_eq!(Transaction::remove("tulle").messages.len(), 4);
    }
}
