//! Rules of others in a namespace: what another mesh captures with, to be removed in our own transaction, and rules
//! that would break a pod's old connections once conntrack no longer takes them up in mid-stream.

use std::io;

use super::batch::{TABLE_NAME, kind};
use crate::netlink::{Attributes, Connection, Message, attribute, attributes};

const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;

const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;

/// Tables of Istio's own rules for nftables.
const FOREIGN_TABLES: &str = "istio-ambient-";
/// Chains of Istio's rules in the tables that iptables keeps.
const FOREIGN_CHAINS: &str = "ISTIO_";
/// Our own tables begin so.
const OUR_TABLES: &str = "tulle";

/// A rule of anyone's.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    family: u8,
    table: String,
    chain: String,
    handle: Vec<u8>,
    leads_to: Option<String>,
    drops_invalid: bool,
}

/// What removes another mesh's capture, in order, each with its name; empty when there is none.
pub(super) fn removal_here(connection: &mut Connection) -> io::Result<Vec<(String, Message)>> {
    let mut tables = Vec::new();
    connection.dump(&every(GET_TABLE), |body| {
        tables.extend(object(body, TABLE_NAME).filter(|(_, table, _)| table.starts_with(FOREIGN_TABLES)));
    })?;
    let mut chains = Vec::new();
    connection.dump(&every(GET_CHAIN), |body| {
        chains.extend(object(body, CHAIN_NAME).filter(|(_, table, chain)| {
            chain.starts_with(FOREIGN_CHAINS) && !table.starts_with(FOREIGN_TABLES)
        }));
    })?;
    if tables.is_empty() && chains.is_empty() {
        return Ok(Vec::new());
    }
    let rules = rules(connection)?;
    let mut removal: Vec<_> = tables
        .into_iter()
        .map(|(family, table, _)| {
            let message = delete(DELETE_TABLE, family, &table, Attributes::new());
            (format!("the deletion of table {table}"), message)
        })
        .collect();
    removal.extend(chains_removal(&chains, &rules));
    Ok(removal)
}

/// Whether a rule drops packets that conntrack takes for invalid.
pub(super) fn drops_invalid_here(connection: &mut Connection) -> io::Result<bool> {
    let is_theirs = |rule: &Rule| !rule.table.starts_with(OUR_TABLES);
    Ok(rules(connection)?
        .iter()
        .any(|rule| is_theirs(rule) && rule.drops_invalid))
}

/// Rules that lead there first, then what is in the chains, then the chains.
fn chains_removal(chains: &[(u8, String, String)], rules: &[Rule]) -> Vec<(String, Message)> {
    let leads_there = |rule: &&Rule| {
        let target = rule.leads_to.as_deref().unwrap_or_default();
        target.starts_with(FOREIGN_CHAINS) && !rule.chain.starts_with(FOREIGN_CHAINS)
    };
    let jumps = rules.iter().filter(leads_there).map(|rule| {
        let which = Attributes::new()
            .text(RULE_CHAIN, &rule.chain)
            .bytes(RULE_HANDLE, &rule.handle);
        let name = format!("the deletion of a rule of {}/{}", rule.table, rule.chain);
        (name, delete(DELETE_RULE, rule.family, &rule.table, which))
    });
    let emptied = chains.iter().map(|(family, table, chain)| {
        let which = Attributes::new().text(RULE_CHAIN, chain);
        let name = format!("the deletion of the rules of {table}/{chain}");
        (name, delete(DELETE_RULE, *family, table, which))
    });
    let deleted = chains.iter().map(|(family, table, chain)| {
        let which = Attributes::new().text(CHAIN_NAME, chain);
        let name = format!("the deletion of chain {table}/{chain}");
        (name, delete(DELETE_CHAIN, *family, table, which))
    });
    jumps.chain(emptied).chain(deleted).collect()
}

fn rules(connection: &mut Connection) -> io::Result<Vec<Rule>> {
    let mut rules = Vec::new();
    connection.dump(&every(GET_RULE), |body| rules.extend(Rule::parse(body)))?;
    Ok(rules)
}

/// A listing of all families and tables.
fn every(number: u16) -> Message {
    Message::new(kind(number), &[0; 4])
}

fn delete(number: u16, family: u8, table: &str, which: Attributes) -> Message {
    let named = Attributes::new().text(TABLE_NAME, table).and(which);
    Message::new(kind(number), &[family, 0, 0, 0]).with(named)
}

/// Family, table, and the name that stands in another attribute.
fn object(body: &[u8], name: u16) -> Option<(u8, String, String)> {
    let (&[family, ..], listed) = body.split_first_chunk::<4>()?;
    Some((family, text(listed, TABLE_NAME)?, text(listed, name)?))
}

fn text(listed: &[u8], number: u16) -> Option<String> {
    let text = attribute(listed, number)?.strip_suffix(&[0])?;
    String::from_utf8(text.to_vec()).ok()
}

impl Rule {
    fn parse(body: &[u8]) -> Option<Self> {
        let (family, table, chain) = object(body, RULE_CHAIN)?;
        let listed = body.get(4..)?;
        let steps: Vec<_> = attributes(attribute(listed, RULE_EXPRESSIONS).unwrap_or_default())
            .filter_map(|(_, step)| Step::parse(step))
            .collect();
        let verdict = steps.iter().rev().find_map(|step| match step {
            Step::Verdict(code, chain) => Some((*code, chain.clone())),
            _ => None,
        });
        let (code, leads_to) = verdict.unwrap_or((ACCEPT, None));
        Some(Self {
            family,
            table,
            chain,
            handle: attribute(listed, RULE_HANDLE)?.to_vec(),
            leads_to,
            drops_invalid: looks_for_invalid(&steps) && (code == DROP || steps.contains(&Step::Reject)),
        })
    }
}

const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// What is of interest among the steps of a rule.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Loads conntrack's state.
    LoadState,
    /// Masks what is loaded.
    Mask(u32),
    /// Compares what is loaded.
    Equal(u32),
    /// iptables' own match of conntrack states.
    States(u32),
    /// Ends, or leads to a chain.
    Verdict(u32, Option<String>),
    /// Refuses with an answer.
    Reject,
}

/// Bit of invalid packets in nftables' states, and in those of iptables.
const INVALID: u32 = 1;

fn looks_for_invalid(steps: &[Step]) -> bool {
    let mut state = false;
    steps.iter().any(|step| match step {
        Step::LoadState => {
            state = true;
            false
        }
        Step::Mask(mask) => state && mask & INVALID != 0,
        Step::Equal(value) => state && *value == INVALID,
        Step::States(mask) => mask & INVALID != 0,
        Step::Verdict(..) | Step::Reject => false,
    })
}

impl Step {
    fn parse(step: &[u8]) -> Option<Self> {
        const NAME: u16 = 1;
        const PARAMETERS: u16 = 2;
        const VALUE: u16 = 1;
        let parameters = attribute(step, PARAMETERS).unwrap_or_default();
        let number = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
        match attribute(step, NAME)?.strip_suffix(&[0])? {
            b"ct" => (attribute(parameters, 2)? == 0_u32.to_be_bytes()).then_some(Self::LoadState),
            b"bitwise" => number(attribute(attribute(parameters, 4)?, VALUE)?).map(Self::Mask),
            b"cmp" => number(attribute(attribute(parameters, 3)?, VALUE)?).map(Self::Equal),
            b"match" => xt_states(parameters).map(Self::States),
            b"immediate" => {
                let verdict = attribute(attribute(parameters, 2)?, 2)?;
                let code = u32::from_be_bytes(attribute(verdict, 1)?.try_into().ok()?);
                Some(Self::Verdict(code, text(verdict, 2)))
            }
            b"reject" => Some(Self::Reject),
            _ => None,
        }
    }
}

/// The states that a match of iptables looks for: a 16-bit mask in `struct xt_conntrack_mtinfo3`.
fn xt_states(parameters: &[u8]) -> Option<u32> {
    const NAME: u16 = 1;
    const INFO: u16 = 3;
    const MASK_AT: usize = 150;
    if attribute(parameters, NAME)?.strip_suffix(&[0])? != b"conntrack" {
        return None;
    }
    let mask = attribute(parameters, INFO)?.get(MASK_AT..MASK_AT + 2)?;
    Some(u32::from(u16::from_ne_bytes(mask.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::super::expression::Expression;
    use super::*;

    fn rule(chain: &str, expressions: &[Expression]) -> Vec<u8> {
        let list = expressions.iter().fold(Attributes::new(), |list, expression| {
            list.nested(1, &expression.encode())
        });
        let attributes = Attributes::new()
            .text(TABLE_NAME, "nat")
            .text(RULE_CHAIN, chain)
            .bytes(RULE_HANDLE, &7_u64.to_be_bytes())
            .nested(RULE_EXPRESSIONS, &list);
        [&[2, 0, 0, 0][..], attributes.as_bytes()].concat()
    }

    #[test]
    fn jumps_go_first_then_rules_then_chains() {
        let jump = Rule::parse(&rule(
            "OUTPUT",
            &[Expression::Counter, Expression::Jump("ISTIO_OUTPUT")],
        ))
        .unwrap();
        assert_eq!(jump.leads_to.as_deref(), Some("ISTIO_OUTPUT"));
        let chains = [(2, "nat".to_owned(), "ISTIO_OUTPUT".to_owned())];
        let removal = chains_removal(&chains, &[jump]);
        let names: Vec<_> = removal.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "the deletion of a rule of nat/OUTPUT",
                "the deletion of the rules of nat/ISTIO_OUTPUT",
                "the deletion of chain nat/ISTIO_OUTPUT"
            ]
        );
    }

    #[test]
    fn a_rule_that_drops_invalid_packets_is_recognised() {
        use super::super::expression::Conntrack;
        let state = || Expression::Conntrack(Conntrack::State);
        let masked = |bits: u32| Expression::Mask(bits.to_ne_bytes().to_vec(), vec![0; 4]);
        let drops = |steps: &[Expression]| Rule::parse(&rule("INPUT", steps)).unwrap().drops_invalid;
        assert!(drops(&[state(), masked(1), Expression::Drop]));
        assert!(!drops(&[state(), masked(1), Expression::Accept]));
        assert!(!drops(&[state(), masked(2), Expression::Drop]));
        assert!(!drops(&[masked(1), Expression::Drop]));
    }

    #[test]
    fn cut_rules_are_no_rules() {
        let whole = rule("INPUT", &[Expression::Drop]);
        for length in 0..whole.len().min(24) {
            assert_eq!(Rule::parse(&whole[..length]), None, "{length}");
        }
    }
}
