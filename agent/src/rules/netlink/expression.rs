//! The expressions that rules are made of, and each as the kernel reads it. All of them work on one register.

use crate::netlink::{Attributes, NESTED};

/// The register everything goes through.
const REGISTER: u32 = 1;
/// The register of verdicts.
const REGISTER_VERDICT: u32 = 0;

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
/// -3 and -5 as the kernel's verdicts are numbered.
const VERDICT_JUMP: u32 = 0xffff_fffd;
const VERDICT_RETURN: u32 = 0xffff_fffb;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads what is known of the packet.
    Meta(Meta),
    /// Stores to what is known of the packet.
    SetMeta(Meta),
    /// Loads what conntrack knows.
    Conntrack(Conntrack),
    /// Stores to what conntrack knows.
    SetConntrack(Conntrack),
    /// Loads bytes of the packet.
    Payload(Field),
    /// Goes on if what is loaded is this.
    Equal(Vec<u8>),
    /// Goes on if what is loaded is not this.
    Unequal(Vec<u8>),
    /// Goes on if what is loaded, as a big-endian number, is this or more.
    AtLeast(Vec<u8>),
    /// Turns a number that is loaded into a big-endian one.
    ToBigEndian,
    /// Keeps the bits of the first of what is loaded, then turns the bits of the second.
    Mask(Vec<u8>, Vec<u8>),
    /// Loads a value.
    Immediate(Vec<u8>),
    /// Goes on if what is loaded is in the anonymous set with this id, that comes with the same transaction.
    In(u32),
    /// Goes on if what is loaded is in the table's set of this name.
    InSet(&'static str),
    /// Goes on if what is loaded is not in the table's set of this name.
    NotInSet(&'static str),
    /// Loads the number of the control group, at this level, of the packet's socket.
    SocketCgroup(u32),
    /// Counts.
    Counter,
    /// Translates the destination to this machine, at the port that is loaded.
    Redirect,
    /// Translates the source to the address of this family that is loaded.
    TranslateSource(u8),
    /// Goes on in another chain, and comes back.
    Jump(&'static str),
    /// Goes back to where the chain was jumped to from.
    Return,
    /// Ends with the packet passed on.
    Accept,
    /// Ends with the packet gone.
    Drop,
}

/// What is known of a packet, by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meta {
    /// Its mark, in the machine's byte order.
    Mark = 3,
    /// The interface it came from.
    InputInterface = 6,
    /// The interface it leaves by.
    OutputInterface = 7,
    /// The user of its socket, if it has one.
    Owner = 10,
    /// IPv4 or IPv6.
    NetworkProtocol = 15,
    /// TCP, UDP or another.
    TransportProtocol = 16,
}

/// What conntrack knows of a packet's connection, by the kernel's number. Numbers are in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conntrack {
    /// New, established, invalid, and so on.
    State = 0,
    /// As the connection was opened, or the other way.
    Direction = 1,
    /// Its mark.
    Mark = 3,
    /// The zone it is tracked in.
    Zone = 17,
}

/// Bytes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// Source address of IPv4.
    Source4,
    /// Destination address of IPv4.
    Destination4,
    /// Source address of IPv6.
    Source6,
    /// Destination address of IPv6.
    Destination6,
    /// Source port of TCP or UDP.
    SourcePort,
    /// Destination port of TCP or UDP.
    DestinationPort,
    /// Flags of TCP.
    TcpFlags,
    /// Type of a message of ICMPv6.
    Icmp6Type,
}

impl Field {
    /// Header, offset and length.
    fn place(self) -> (u32, u32, u32) {
        const NETWORK: u32 = 1;
        const TRANSPORT: u32 = 2;
        match self {
            Self::Source4 => (NETWORK, 12, 4),
            Self::Destination4 => (NETWORK, 16, 4),
            Self::Source6 => (NETWORK, 8, 16),
            Self::Destination6 => (NETWORK, 24, 16),
            Self::SourcePort => (TRANSPORT, 0, 2),
            Self::DestinationPort => (TRANSPORT, 2, 2),
            Self::TcpFlags => (TRANSPORT, 13, 1),
            Self::Icmp6Type => (TRANSPORT, 0, 1),
        }
    }
}

impl Expression {
    /// Name and parameters, as one element of a rule's list.
    pub(super) fn encode(&self) -> Attributes {
        let (name, parameters) = self.parameters();
        Attributes::new()
            .text(EXPRESSION_NAME, name)
            .nested(EXPRESSION_DATA, &parameters)
    }

    fn parameters(&self) -> (&'static str, Attributes) {
        match self {
            Self::Meta(key) => ("meta", load(2, *key as u32)),
            Self::SetMeta(key) => ("meta", store(2, *key as u32, 3)),
            Self::Conntrack(key) => ("ct", load(2, *key as u32)),
            Self::SetConntrack(key) => ("ct", store(2, *key as u32, 4)),
            Self::Payload(field) => ("payload", payload(*field)),
            Self::Equal(value) => ("cmp", compare(0, value)),
            Self::Unequal(value) => ("cmp", compare(1, value)),
            Self::AtLeast(value) => ("cmp", compare(5, value)),
            Self::ToBigEndian => ("byteorder", to_big_endian()),
            Self::Mask(and, xor) => ("bitwise", bitwise(and, xor)),
            Self::Immediate(value) => ("immediate", immediate(REGISTER, &data(value))),
            Self::In(set) => ("lookup", lookup(ANONYMOUS_SET).number(4, *set)),
            Self::InSet(name) => ("lookup", lookup(name)),
            Self::NotInSet(name) => ("lookup", lookup(name).number(5, 1)),
            Self::SocketCgroup(level) => ("socket", socket_cgroup(*level)),
            Self::Counter => ("counter", Attributes::new()),
            Self::Redirect => ("redir", redirect()),
            Self::TranslateSource(family) => ("nat", translate_source(*family)),
            Self::Jump(chain) => ("immediate", immediate(REGISTER_VERDICT, &jump(chain))),
            Self::Return => ("immediate", immediate(REGISTER_VERDICT, &verdict(VERDICT_RETURN))),
            Self::Accept => ("immediate", immediate(REGISTER_VERDICT, &verdict(1))),
            Self::Drop => ("immediate", immediate(REGISTER_VERDICT, &verdict(0))),
        }
    }
}

/// Name of the one anonymous set; the kernel makes it unique within its table.
pub(super) const ANONYMOUS_SET: &str = "__set%d";

fn load(key_at: u16, key: u32) -> Attributes {
    const TARGET: u16 = 1;
    Attributes::new().number(key_at, key).number(TARGET, REGISTER)
}

fn store(key_at: u16, key: u32, source_at: u16) -> Attributes {
    Attributes::new().number(key_at, key).number(source_at, REGISTER)
}

fn payload(field: Field) -> Attributes {
    const TARGET: u16 = 1;
    const HEADER: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    let (header, offset, length) = field.place();
    Attributes::new()
        .number(TARGET, REGISTER)
        .number(HEADER, header)
        .number(OFFSET, offset)
        .number(LENGTH, length)
}

fn compare(operation: u32, value: &[u8]) -> Attributes {
    const SOURCE: u16 = 1;
    const OPERATION: u16 = 2;
    const DATA: u16 = 3;
    Attributes::new()
        .number(SOURCE, REGISTER)
        .number(OPERATION, operation)
        .nested(DATA, &data(value))
}

fn bitwise(and: &[u8], xor: &[u8]) -> Attributes {
    const SOURCE: u16 = 1;
    const TARGET: u16 = 2;
    const LENGTH: u16 = 3;
    const MASK: u16 = 4;
    const XOR: u16 = 5;
    let length = u32::try_from(and.len()).expect("a register is short");
    Attributes::new()
        .number(SOURCE, REGISTER)
        .number(TARGET, REGISTER)
        .number(LENGTH, length)
        .nested(MASK, &data(and))
        .nested(XOR, &data(xor))
}

fn immediate(register: u32, data: &Attributes) -> Attributes {
    const TARGET: u16 = 1;
    const DATA: u16 = 2;
    Attributes::new().number(TARGET, register).nested(DATA, data)
}

fn lookup(set: &str) -> Attributes {
    const SET: u16 = 1;
    const SOURCE: u16 = 2;
    Attributes::new().text(SET, set).number(SOURCE, REGISTER)
}

fn to_big_endian() -> Attributes {
    const SOURCE: u16 = 1;
    const TARGET: u16 = 2;
    const OPERATION: u16 = 3;
    const LENGTH: u16 = 4;
    const SIZE: u16 = 5;
    const FROM_HOST: u32 = 1;
    Attributes::new()
        .number(SOURCE, REGISTER)
        .number(TARGET, REGISTER)
        .number(OPERATION, FROM_HOST)
        .number(LENGTH, 4)
        .number(SIZE, 4)
}

fn socket_cgroup(level: u32) -> Attributes {
    const KEY: u16 = 1;
    const TARGET: u16 = 2;
    const LEVEL: u16 = 3;
    const CGROUP: u32 = 3;
    Attributes::new()
        .number(KEY, CGROUP)
        .number(TARGET, REGISTER)
        .number(LEVEL, level)
}

fn translate_source(family: u8) -> Attributes {
    const TYPE: u16 = 1;
    const FAMILY: u16 = 2;
    const ADDRESS_REGISTER: u16 = 3;
    const SOURCE: u32 = 0;
    Attributes::new()
        .number(TYPE, SOURCE)
        .number(FAMILY, u32::from(family))
        .number(ADDRESS_REGISTER, REGISTER)
}

fn redirect() -> Attributes {
    const PORT_REGISTER: u16 = 1;
    const FLAGS: u16 = 3;
    /// The port is given.
    const PORT_GIVEN: u32 = 2;
    Attributes::new()
        .number(PORT_REGISTER, REGISTER)
        .number(FLAGS, PORT_GIVEN)
}

/// A value as it stands in a register.
pub(super) fn data(value: &[u8]) -> Attributes {
    Attributes::new().bytes(DATA_VALUE, value)
}

fn jump(chain: &str) -> Attributes {
    const CHAIN: u16 = 2;
    let verdict = Attributes::new()
        .number(VERDICT_CODE, VERDICT_JUMP)
        .text(CHAIN, chain);
    Attributes::new().bytes(DATA_VERDICT | NESTED, verdict.as_bytes())
}

fn verdict(code: u32) -> Attributes {
    Attributes::new().bytes(
        DATA_VERDICT | NESTED,
        Attributes::new().number(VERDICT_CODE, code).as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{attribute, attributes};

    fn number(bytes: &[u8], kind: u16) -> u32 {
        u32::from_be_bytes(attribute(bytes, kind).unwrap().try_into().unwrap())
    }

    #[test]
    fn an_expression_is_a_name_and_parameters() {
        let encoded = Expression::Payload(Field::DestinationPort).encode();
        assert_eq!(
            attribute(encoded.as_bytes(), EXPRESSION_NAME),
            Some(&b"payload\0"[..])
        );
        let parameters = attribute(encoded.as_bytes(), EXPRESSION_DATA).unwrap();
        let found: Vec<_> = attributes(parameters)
            .map(|(kind, _)| (kind, number(parameters, kind)))
            .collect();
        assert_eq!(found, [(1, REGISTER), (2, 2), (3, 2), (4, 2)]);
    }

    #[test]
    fn a_verdict_goes_to_the_register_of_verdicts() {
        let (name, parameters) = Expression::Drop.parameters();
        assert_eq!(name, "immediate");
        assert_eq!(number(parameters.as_bytes(), 1), REGISTER_VERDICT);
        let verdict = attribute(attribute(parameters.as_bytes(), 2).unwrap(), DATA_VERDICT).unwrap();
        assert_eq!(number(verdict, VERDICT_CODE), 0);
    }

    #[test]
    fn a_mask_is_as_long_as_what_it_masks() {
        let (_, parameters) = Expression::Mask(vec![0x12], vec![0]).parameters();
        assert_eq!(number(parameters.as_bytes(), 3), 1);
    }
}
