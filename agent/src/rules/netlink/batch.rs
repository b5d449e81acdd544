//! A table as one transaction: the messages in order, each with the words that name it should the kernel refuse it.

use super::super::plan::{Chain, Hook, TABLE, Table};
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
        transaction.push("the new table".to_owned(), new_table(NLM_F_EXCL));
        transaction.fill(table)
    }

    /// Replaces the table. That there is one to delete is made sure of first.
    pub(super) fn replace(table: &Table) -> Self {
        let mut transaction = Self::delete_whatever_is_there();
        transaction.push("the new table".to_owned(), new_table(0));
        transaction.fill(table)
    }

    /// Removes the table, if there is one.
    pub(super) fn remove() -> Self {
        Self::delete_whatever_is_there().end()
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

    fn delete_whatever_is_there() -> Self {
        let mut transaction = Self::begin();
        transaction.push("the table to be deleted".to_owned(), new_table(0));
        let deletion = message(DELETE_TABLE, 0, our_table());
        transaction.push("the deletion of the table".to_owned(), deletion);
        transaction
    }

    fn fill(mut self, table: &Table) -> Self {
        for chain in &table.chains {
            self.push(format!("chain {}", chain.name), new_chain(chain));
        }
        let mut set = 0;
        for chain in &table.chains {
            let rules = chain.rules.iter().flat_map(|rule| {
                set += 1;
                statements(rule, set)
                    .into_iter()
                    .map(move |statement| (statement, set))
            });
            for (index, (statement, set)) in rules.enumerate() {
                self.push_rule(chain, index + 1, &statement, set);
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

    fn push_rule(&mut self, chain: &Chain, number: usize, statement: &Statement, set: u32) {
        let name = format!("rule {number} of chain {}", chain.name);
        if !statement.ports.is_empty() {
            self.push(
                format!("the ports of {name}"),
                new_set(set, statement.ports.len()),
            );
            self.push(
                format!("each port of {name}"),
                new_elements(set, &statement.ports),
            );
        }
        self.push(name, new_rule(chain, statement));
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
pub(super) fn our_table() -> Attributes {
    Attributes::new().text(TABLE_NAME, TABLE)
}

fn new_table(flags: u16) -> Message {
    const FLAGS: u16 = 2;
    message(NEW_TABLE, NLM_F_CREATE | flags, our_table().number(FLAGS, 0))
}

fn new_chain(chain: &Chain) -> Message {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const ACCEPT: u32 = 1;
    let (kind, number, priority) = hook(chain.hook);
    let hook = Attributes::new()
        .number(HOOK_NUMBER, number)
        .number(HOOK_PRIORITY, priority.cast_unsigned());
    let attributes = our_table()
        .text(NAME, chain.name)
        .text(TYPE, kind)
        .number(POLICY, ACCEPT)
        .nested(HOOK, &hook);
    message(NEW_CHAIN, NLM_F_CREATE, attributes)
}

/// Type, number of the hook, priority.
fn hook(hook: Hook) -> (&'static str, u32, i32) {
    const PREROUTING: u32 = 0;
    const OUTPUT: u32 = 3;
    const RAW: i32 = -300;
    const MANGLE: i32 = -150;
    const DESTINATION: i32 = -100;
    match hook {
        Hook::RawPrerouting => ("filter", PREROUTING, RAW),
        Hook::RawOutput => ("filter", OUTPUT, RAW),
        Hook::ManglePrerouting => ("filter", PREROUTING, MANGLE),
        Hook::MangleOutput => ("route", OUTPUT, MANGLE),
        Hook::NatPrerouting => ("nat", PREROUTING, DESTINATION),
        Hook::NatOutput => ("nat", OUTPUT, DESTINATION),
    }
}

fn new_rule(chain: &Chain, statement: &Statement) -> Message {
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let list = statement
        .expressions
        .iter()
        .fold(Attributes::new(), |list, expression| {
            list.nested(LIST_ELEMENT, &expression.encode())
        });
    let attributes = our_table().text(CHAIN, chain.name).nested(EXPRESSIONS, &list);
    message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, attributes)
}

fn new_set(id: u32, ports: usize) -> Message {
    const NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_TYPE: u16 = 4;
    const KEY_BYTES: u16 = 5;
    const DESCRIPTION: u16 = 9;
    const ID: u16 = 10;
    const SIZE: u16 = 1;
    const ANONYMOUS_AND_CONSTANT: u32 = 3;
    /// What nft calls `inet_service`; the kernel keeps it for who prints the set.
    const PORT: u32 = 13;
    let size = u32::try_from(ports).expect("ports are few");
    let attributes = our_table()
        .text(NAME, ANONYMOUS_SET)
        .number(FLAGS, ANONYMOUS_AND_CONSTANT)
        .number(KEY_TYPE, PORT)
        .number(KEY_BYTES, 2)
        .number(ID, id)
        .nested(DESCRIPTION, &Attributes::new().number(SIZE, size));
    message(NEW_SET, NLM_F_CREATE, attributes)
}

fn new_elements(set: u32, ports: &[u16]) -> Message {
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    const SET_ID: u16 = 4;
    const KEY: u16 = 1;
    let list = ports.iter().fold(Attributes::new(), |list, port| {
        let key = Attributes::new().bytes(KEY | NESTED, data(&port.to_be_bytes()).as_bytes());
        list.nested(LIST_ELEMENT, &key)
    });
    let attributes = our_table()
        .text(SET, ANONYMOUS_SET)
        .number(SET_ID, set)
        .nested(ELEMENTS, &list);
    message(NEW_ELEMENTS, NLM_F_CREATE, attributes)
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::{Variant, capture, drain};
    use super::*;

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
        assert_eq!(at("the ports of rule 4 of chain mangle-pre"), rule - 2);
        assert_eq!(at("each port of rule 4 of chain mangle-pre"), rule - 1);
    }

    #[test]
    fn removing_needs_no_table_to_be_there() {
        assert_eq!(Transaction::remove().messages.len(), 4);
    }
}
