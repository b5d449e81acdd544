//! What each rule of the plan is made of: a pure function from a rule to expressions.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::host::{PASS_SET4, PASS_SET6, PROBE_SET4, PROBE_SET6, WAIT_SET4, WAIT_SET6};
use super::super::plan::{
    CAPTURED_MARK, DNS_PORT, HBONE_PORT, INBOUND_PORT, Interface, MARK_MASK, OUTBOUND_PORT, PROBE_V4,
    PROBE_V6, PROXY_MARK, ProxyMark, Rule, TRANSPARENT_MARK,
};
use super::super::table::NOT_PROXY_CHAIN;
use super::batch::Key;
use super::expression::{Conntrack, Expression, Field, Meta};

use Expression::{
    Accept, Counter, Drop, Equal, Immediate, InSet, Mask, NotInSet, Redirect, SetConntrack, SetMeta, Unequal,
};

const DNS: u16 = 53;
/// The conntrack zone of the proxy's own DNS requests.
const DNS_ZONE: u16 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const DIRECTION_ORIGINAL: u8 = 0;
const DIRECTION_REPLY: u8 = 1;
const STATE_INVALID: u32 = 1;
const STATE_UNTRACKED: u32 = 1 << 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Interface names are compared in this length, zeroes at their end.
const INTERFACE_BYTES: usize = 16;

/// A rule as the kernel is told it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Statement {
    /// Its steps.
    pub(super) expressions: Vec<Expression>,
    /// What the anonymous set holds that a step looks into; empty when none does.
    pub(super) keys: Vec<Key>,
}

/// What a rule is made of; a reroute takes two statements. An anonymous set, where one is needed, has the given id.
pub(super) fn statements(rule: &Rule, mark: ProxyMark, set: u32) -> Vec<Statement> {
    let proxy = || proxy(mark);
    let steps = match rule {
        Rule::AcceptNeighbours => return vec![accept_neighbours(set)],
        Rule::DropSynToOwnPorts { dns } => return vec![drop_syn_to_own_ports(*dns, set)],
        Rule::Reroute(interface) => return reroute(interface),
        Rule::ZoneDnsReplies => vec![not_from("lo"), port(UDP, Field::SourcePort, DNS), zone_dns()],
        Rule::ZoneDnsRequests => vec![proxy(), port(UDP, Field::DestinationPort, DNS), zone_dns()],
        Rule::MarkTransparent => vec![
            from("lo"),
            direction(DIRECTION_ORIGINAL),
            proxy(),
            mark_conntrack(TRANSPARENT_MARK),
        ],
        Rule::AcceptLoopbackIn => vec![from("lo"), vec![Accept]],
        Rule::AcceptLoopbackOut => vec![to("lo"), vec![Accept]],
        Rule::DropOddSyn => vec![first_syn(), odd_state(), vec![Counter, Drop]],
        Rule::RouteTransparentReplies => vec![
            direction(DIRECTION_REPLY),
            marked(Expression::Conntrack(Conntrack::Mark), TRANSPARENT_MARK),
            mark_packet(TRANSPARENT_MARK),
        ],
        Rule::AcceptOtherProtocols => vec![
            vec![Expression::Meta(Meta::TransportProtocol), Unequal(vec![TCP])],
            vec![Accept],
        ],
        Rule::AcceptFromProbe4 => vec![probe4(Field::Source4), vec![Counter, Accept]],
        Rule::AcceptFromProbe6 => vec![probe6(Field::Source6), vec![Counter, Accept]],
        Rule::AcceptTunnels => vec![
            port(TCP, Field::DestinationPort, HBONE_PORT),
            vec![Counter, Accept],
        ],
        Rule::MarkCaptured => vec![mark_conntrack(CAPTURED_MARK)],
        Rule::RedirectInbound => vec![protocol(TCP), redirect(INBOUND_PORT)],
        Rule::AcceptProxy => vec![proxy(), vec![Counter, Accept]],
        Rule::AcceptToProbe4 => vec![probe4(Field::Destination4), vec![Counter, Accept]],
        Rule::AcceptToProbe6 => vec![probe6(Field::Destination6), vec![Counter, Accept]],
        Rule::RedirectDnsUdp => vec![
            port(UDP, Field::DestinationPort, DNS),
            mark_conntrack(CAPTURED_MARK),
            redirect(DNS_PORT),
        ],
        Rule::RedirectDnsTcp => vec![port(TCP, Field::DestinationPort, DNS), redirect(DNS_PORT)],
        Rule::RedirectOutbound => vec![protocol(TCP), redirect(OUTBOUND_PORT)],
        Rule::CheckMarked => vec![
            direction(DIRECTION_ORIGINAL),
            proxy(),
            vec![Expression::Jump(NOT_PROXY_CHAIN)],
        ],
        Rule::ReturnOfCgroup(group) => vec![vec![
            Expression::SocketCgroup(group.level),
            Equal(group.id.to_ne_bytes().to_vec()),
            Expression::Return,
        ]],
        Rule::TakeMarkOff => vec![vec![Counter], mark_packet(0)],
        node => on_the_node(node),
    };
    vec![statement(steps)]
}

/// Rules of the node's own tables.
fn on_the_node(rule: &Rule) -> Vec<Vec<Expression>> {
    let waiting = |family, field, wait, pass| {
        let mut steps = belongs_to(family, field, wait);
        steps.extend([Expression::Payload(field), NotInSet(pass), Counter, Drop]);
        vec![steps]
    };
    match rule {
        Rule::DropForgedProbe4 => vec![not_from("lo"), probe4(Field::Source4), vec![Counter, Drop]],
        Rule::DropForgedProbe6 => vec![not_from("lo"), probe6(Field::Source6), vec![Counter, Drop]],
        Rule::TranslateProbe4 => translate_probe(IPV4, Field::Destination4, PROBE_SET4, &probe4_bytes()),
        Rule::TranslateProbe6 => translate_probe(IPV6, Field::Destination6, PROBE_SET6, &probe6_bytes()),
        Rule::AcceptReplies => vec![direction(DIRECTION_REPLY), vec![Accept]],
        Rule::AcceptLocal => vec![has_owner(), vec![Accept]],
        Rule::DropFromWaiting4 => waiting(IPV4, Field::Source4, WAIT_SET4, PASS_SET4),
        Rule::DropFromWaiting6 => waiting(IPV6, Field::Source6, WAIT_SET6, PASS_SET6),
        Rule::DropToWaiting4 => waiting(IPV4, Field::Destination4, WAIT_SET4, PASS_SET4),
        Rule::DropToWaiting6 => waiting(IPV6, Field::Destination6, WAIT_SET6, PASS_SET6),
        other => unreachable!("{other:?} is a rule of pods"),
    }
}

/// Only packets with a socket on this machine have an owner, whose number is at least 0.
fn has_owner() -> Vec<Expression> {
    vec![
        Expression::Meta(Meta::Owner),
        Expression::ToBigEndian,
        Expression::AtLeast(vec![0; 4]),
    ]
}

fn belongs_to(family: u8, field: Field, set: &'static str) -> Vec<Expression> {
    let mut steps = is_family(family);
    steps.extend([Expression::Payload(field), InSet(set)]);
    steps
}

fn translate_probe(family: u8, field: Field, set: &'static str, source: &[u8]) -> Vec<Vec<Expression>> {
    vec![
        not_to("lo"),
        protocol(TCP),
        has_owner(),
        belongs_to(family, field, set),
        vec![
            Counter,
            Immediate(source.to_vec()),
            Expression::TranslateSource(family),
        ],
    ]
}

fn accept_neighbours(set: u32) -> Statement {
    let types = vec![Expression::Payload(Field::Icmp6Type), Expression::In(set), Accept];
    Statement {
        keys: [NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT]
            .map(Key::Icmp6Type)
            .to_vec(),
        ..statement(vec![is_family(IPV6), protocol(ICMP6), types])
    }
}

fn statement(steps: Vec<Vec<Expression>>) -> Statement {
    Statement {
        expressions: steps.concat(),
        keys: Vec::new(),
    }
}

fn drop_syn_to_own_ports(dns: bool, set: u32) -> Statement {
    let mut ports = vec![OUTBOUND_PORT, INBOUND_PORT];
    ports.extend(dns.then_some(DNS_PORT));
    let into_set = vec![
        Expression::Payload(Field::DestinationPort),
        Expression::In(set),
        Counter,
        Drop,
    ];
    Statement {
        keys: ports.into_iter().map(Key::Port).collect(),
        ..statement(vec![first_syn(), into_set])
    }
}

fn reroute(interface: &Interface) -> Vec<Statement> {
    let from = || from(&interface.to_string());
    vec![
        statement(vec![from(), protocol(TCP), mark_conntrack(CAPTURED_MARK)]),
        statement(vec![from(), protocol(TCP), redirect(OUTBOUND_PORT)]),
    ]
}

fn from(interface: &str) -> Vec<Expression> {
    vec![Expression::Meta(Meta::InputInterface), Equal(padded(interface))]
}

fn not_from(interface: &str) -> Vec<Expression> {
    vec![Expression::Meta(Meta::InputInterface), Unequal(padded(interface))]
}

fn to(interface: &str) -> Vec<Expression> {
    vec![Expression::Meta(Meta::OutputInterface), Equal(padded(interface))]
}

fn not_to(interface: &str) -> Vec<Expression> {
    vec![
        Expression::Meta(Meta::OutputInterface),
        Unequal(padded(interface)),
    ]
}

fn padded(interface: &str) -> Vec<u8> {
    let mut name = interface.as_bytes().to_vec();
    name.resize(INTERFACE_BYTES, 0);
    name
}

fn protocol(number: u8) -> Vec<Expression> {
    vec![Expression::Meta(Meta::TransportProtocol), Equal(vec![number])]
}

fn port(transport: u8, field: Field, number: u16) -> Vec<Expression> {
    let mut steps = protocol(transport);
    steps.extend([Expression::Payload(field), Equal(number.to_be_bytes().to_vec())]);
    steps
}

fn probe4(field: Field) -> Vec<Expression> {
    address_is(IPV4, field, &probe4_bytes())
}

fn probe4_bytes() -> [u8; 4] {
    let address: Ipv4Addr = PROBE_V4.parse().expect("the probes' address is one");
    address.octets()
}

fn probe6(field: Field) -> Vec<Expression> {
    address_is(IPV6, field, &probe6_bytes())
}

fn probe6_bytes() -> [u8; 16] {
    let address: Ipv6Addr = PROBE_V6.parse().expect("the probes' address is one");
    address.octets()
}

fn address_is(family: u8, field: Field, address: &[u8]) -> Vec<Expression> {
    let mut steps = is_family(family);
    steps.extend([Expression::Payload(field), Equal(address.to_vec())]);
    steps
}

fn is_family(family: u8) -> Vec<Expression> {
    vec![Expression::Meta(Meta::NetworkProtocol), Equal(vec![family])]
}

/// The first packet of a connection: SYN without ACK.
fn first_syn() -> Vec<Expression> {
    let mut steps = protocol(TCP);
    steps.extend([
        Expression::Payload(Field::TcpFlags),
        Mask(vec![SYN | ACK], vec![0]),
        Equal(vec![SYN]),
    ]);
    steps
}

fn odd_state() -> Vec<Expression> {
    vec![
        Expression::Conntrack(Conntrack::State),
        Mask(native(STATE_INVALID | STATE_UNTRACKED), native(0)),
        Unequal(native(0)),
    ]
}

fn direction(direction: u8) -> Vec<Expression> {
    vec![
        Expression::Conntrack(Conntrack::Direction),
        Equal(vec![direction]),
    ]
}

fn proxy(mark: ProxyMark) -> Vec<Expression> {
    match mark {
        ProxyMark::WellKnown => marked(Expression::Meta(Meta::Mark), PROXY_MARK),
        ProxyMark::Secret(mark) => vec![Expression::Meta(Meta::Mark), Equal(native(mark))],
    }
}

fn marked(load: Expression, mark: u32) -> Vec<Expression> {
    vec![load, Mask(native(MARK_MASK), native(0)), Equal(native(mark))]
}

fn mark_conntrack(mark: u32) -> Vec<Expression> {
    vec![
        Expression::Conntrack(Conntrack::Mark),
        our_bits(mark),
        SetConntrack(Conntrack::Mark),
    ]
}

fn mark_packet(mark: u32) -> Vec<Expression> {
    vec![Expression::Meta(Meta::Mark), our_bits(mark), SetMeta(Meta::Mark)]
}

/// Bits that are not ours stay as they are.
fn our_bits(mark: u32) -> Expression {
    Mask(native(!MARK_MASK), native(mark))
}

fn zone_dns() -> Vec<Expression> {
    vec![
        Immediate(DNS_ZONE.to_ne_bytes().to_vec()),
        SetConntrack(Conntrack::Zone),
    ]
}

fn redirect(port: u16) -> Vec<Expression> {
    vec![Counter, Immediate(port.to_be_bytes().to_vec()), Redirect]
}

fn native(value: u32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::{ProxyMark, Table, Variant, capture, drain};
    use super::*;

    fn text(table: &Table) -> String {
        let mut lines = Vec::new();
        for chain in &table.chains {
            lines.push(format!("{} {:?}", chain.name, chain.hook));
            for statement in chain
                .rules
                .iter()
                .flat_map(|rule| statements(rule, table.mark, 1))
            {
                lines.push(format!("  {:?} {:?}", statement.expressions, statement.keys));
            }
        }
        lines.join("\n")
    }

    #[test]
    fn the_whole_table_in_expressions() {
        insta::assert_snapshot!(text(&capture(&Variant {
            dns: true,
            inbound: true,
            reroute: vec!["eth1".parse().unwrap()],
            ..Variant::default()
        })));
    }

    #[test]
    fn the_drain_table_in_expressions() {
        insta::assert_snapshot!(text(&drain(ProxyMark::WellKnown)));
    }

    #[test]
    fn the_dns_port_is_guarded_only_where_dns_is_captured() {
        let ports = |dns| {
            statements(&Rule::DropSynToOwnPorts { dns }, ProxyMark::WellKnown, 1)
                .remove(0)
                .keys
        };
        assert_eq!(ports(false), [15001, 15006].map(Key::Port));
        assert_eq!(ports(true), [15001, 15006, 15053].map(Key::Port));
    }
}
