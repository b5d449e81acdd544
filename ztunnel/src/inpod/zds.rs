//! The agent's requests, read from packets and descriptors. Descriptors that do not belong close with the error.

use std::os::fd::OwnedFd;

use prost::Message;
use tulle_linux::NetNs;
use tulle_proto::zds;
use tulle_proto::zds::sockets::Kind as WireKind;
use tulle_proto::zds::workload_request::Payload;

use super::PodUid;
use crate::config::WorkloadName;
use crate::dns::resolv_conf::ResolvConf;
use crate::sockets::{Kind, PodSockets, SocketError};

/// Longest request; a longer one is a violation of the protocol.
pub const REQUEST_BYTES_MAX: usize = 1024;

/// A request of the agent.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod.
    Add {
        /// Its name for the agent.
        uid: PodUid,
        /// Its name for the mesh.
        name: WorkloadName,
        /// Where it lives.
        netns: NetNs,
        /// Listeners that the agent opened; without them the proxy opens its own.
        sockets: Option<PodSockets>,
        /// Its own resolver settings; without them the node's name servers are asked.
        resolver: Option<ResolvConf>,
        /// Another generation accepts for it until this one has taken it.
        served: bool,
    },
    /// The pod is still there, its namespace is just not at hand.
    Keep(PodUid),
    /// Stop serving this pod.
    Del(PodUid),
    /// Everything was mentioned.
    SnapshotSent {
        /// The agent knows what a lingering proxy is.
        knows_lingering: bool,
    },
    /// Stop accepting for this pod, keep its connections.
    HandOver(PodUid),
    /// Give copies of this pod's listeners back.
    ReturnSockets(PodUid),
}

/// Why a packet is no request.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// Bytes or descriptors were cut off.
    #[error("the packet is longer than {REQUEST_BYTES_MAX} bytes, or carries too many descriptors")]
    Truncated,
    /// No protobuf.
    #[error("the packet is no WorkloadRequest: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// A payload this version does not know.
    #[error("the request has no known payload")]
    NoPayload,
    /// `add` without a name.
    #[error("workload_info is required but not present")]
    NoWorkloadInfo,
    /// A request without uid.
    #[error("the request names no pod")]
    NoUid,
    /// Not as many descriptors as announced.
    #[error("expected {expected} descriptors, got {got}")]
    Descriptors {
        /// By the message.
        expected: usize,
        /// By the packet.
        got: usize,
    },
    /// `keep` after the snapshot.
    #[error("keep is legal only before snapshot_sent")]
    KeepAfterSnapshot,
    /// A second `snapshot_sent`.
    #[error("the snapshot was sent already")]
    SecondSnapshot,
    /// The first descriptor is no network namespace.
    #[error("the descriptor is no network namespace: {0}")]
    NoNetns(#[source] std::io::Error),
    /// A listener is not what it is said to be.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Reads one packet.
///
/// # Errors
/// When it breaks the protocol; all its descriptors are closed.
pub fn parse(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Request, Violation> {
    let request = zds::WorkloadRequest::decode(bytes)?;
    let payload = request.payload.ok_or(Violation::NoPayload)?;
    if let Payload::Add(add) = payload {
        return parse_add(add, fds);
    }
    expect_descriptors(0, &fds)?;
    Ok(match payload {
        Payload::Add(_) => return Err(Violation::NoPayload),
        Payload::Keep(keep) => Request::Keep(uid(&keep.uid)?),
        Payload::Del(del) => Request::Del(uid(&del.uid)?),
        Payload::SnapshotSent(sent) => Request::SnapshotSent {
            knows_lingering: sent.knows_lingering,
        },
        Payload::HandOver(hand_over) => Request::HandOver(uid(&hand_over.uid)?),
        Payload::ReturnSockets(give_back) => Request::ReturnSockets(uid(&give_back.uid)?),
    })
}

fn parse_add(add: zds::AddWorkload, fds: Vec<OwnedFd>) -> Result<Request, Violation> {
    let kinds = add.sockets.as_ref().map_or(&[][..], |sockets| &sockets.kinds);
    expect_descriptors(1 + kinds.len(), &fds)?;
    let mut fds = fds.into_iter();
    let netns = fds.next().ok_or(Violation::Descriptors { expected: 1, got: 0 })?;
    let sockets = match add.sockets.as_ref().filter(|sockets| !sockets.kinds.is_empty()) {
        Some(sockets) => Some(PodSockets::take(kinds_of(sockets)?.into_iter().zip(fds))?),
        None => None,
    };
    let info = add.workload_info.ok_or(Violation::NoWorkloadInfo)?;
    Ok(Request::Add {
        uid: uid(&add.uid)?,
        name: WorkloadName {
            namespace: info.namespace.into(),
            name: info.name.into(),
            service_account: info.service_account.into(),
        },
        netns: NetNs::from_fd(netns).map_err(Violation::NoNetns)?,
        sockets,
        resolver: add
            .dns
            .as_ref()
            .and_then(|dns| ResolvConf::of_pod(&dns.nameservers, &dns.search)),
        served: add.served,
    })
}

/// What each handed-over socket is; a kind that is not known is refused with all of them.
fn kinds_of(sockets: &zds::Sockets) -> Result<Vec<Kind>, SocketError> {
    let known = |kind: &i32| match WireKind::try_from(*kind) {
        Ok(WireKind::Outbound) => Ok(Kind::Outbound),
        Ok(WireKind::InboundPlain) => Ok(Kind::InboundPlain),
        Ok(WireKind::InboundHbone) => Ok(Kind::InboundHbone),
        Ok(WireKind::DnsUdp4) => Ok(Kind::DnsUdp4),
        Ok(WireKind::DnsUdp6) => Ok(Kind::DnsUdp6),
        Ok(WireKind::DnsTcp4) => Ok(Kind::DnsTcp4),
        Ok(WireKind::DnsTcp6) => Ok(Kind::DnsTcp6),
        Ok(WireKind::Unspecified) | Err(_) => Err(SocketError::Kinds),
    };
    sockets.kinds.iter().map(known).collect()
}

fn wire_kind(kind: Kind) -> WireKind {
    match kind {
        Kind::Outbound => WireKind::Outbound,
        Kind::InboundPlain => WireKind::InboundPlain,
        Kind::InboundHbone => WireKind::InboundHbone,
        Kind::DnsUdp4 => WireKind::DnsUdp4,
        Kind::DnsUdp6 => WireKind::DnsUdp6,
        Kind::DnsTcp4 => WireKind::DnsTcp4,
        Kind::DnsTcp6 => WireKind::DnsTcp6,
    }
}

fn uid(uid: &str) -> Result<PodUid, Violation> {
    if uid.is_empty() {
        return Err(Violation::NoUid);
    }
    Ok(PodUid(uid.into()))
}

fn expect_descriptors(expected: usize, fds: &[OwnedFd]) -> Result<(), Violation> {
    if fds.len() == expected {
        return Ok(());
    }
    Err(Violation::Descriptors {
        expected,
        got: fds.len(),
    })
}

/// The first message of the proxy; `lingering` when it takes no pods any more.
#[must_use]
pub fn hello(generation: &str, lingering: bool) -> Vec<u8> {
    let hello = zds::ZdsHello {
        version: zds::Version::V1.into(),
        abilities: Some(zds::Abilities {
            sockets: true,
            generation: generation.to_owned(),
            lingering,
        }),
    };
    hello.encode_to_vec()
}

/// An acknowledgement; with an error it says why the request failed.
#[must_use]
pub fn ack(outcome: Result<&[Kind], &str>) -> Vec<u8> {
    let (error, kinds) = match outcome {
        Ok(kinds) => (String::new(), kinds),
        Err(error) => (error.to_owned(), &[][..]),
    };
    let sockets = (!kinds.is_empty()).then(|| zds::Sockets {
        kinds: kinds.iter().map(|kind| wire_kind(*kind).into()).collect(),
        mark: 0,
    });
    let ack = zds::Ack { error, sockets };
    let payload = Some(zds::workload_response::Payload::Ack(ack));
    zds::WorkloadResponse { payload }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: Payload) -> Vec<u8> {
        zds::WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec()
    }

    fn add(uid: &str, info: bool) -> Vec<u8> {
        packet(Payload::Add(zds::AddWorkload {
            uid: uid.to_owned(),
            workload_info: info.then(|| zds::WorkloadInfo {
                name: "web".to_owned(),
                namespace: "shop".to_owned(),
                service_account: "web".to_owned(),
            }),
            ..Default::default()
        }))
    }

    fn netns() -> OwnedFd {
        std::fs::File::open("/proc/self/ns/net").unwrap().into()
    }

    #[test]
    fn an_add_carries_its_namespace() {
        let request = parse(&add("a", true), vec![netns()]).unwrap();
        let Request::Add {
            uid, name, sockets, ..
        } = request
        else {
            panic!("an add")
        };
        assert_eq!(uid, PodUid("a".into()));
        assert_eq!(&*name.namespace, "shop");
        assert!(sockets.is_none());
    }

    #[test]
    fn an_add_without_namespace_or_name_is_a_violation() {
        assert!(matches!(
            parse(&add("a", true), Vec::new()),
            Err(Violation::Descriptors { expected: 1, got: 0 })
        ));
        assert!(matches!(
            parse(&add("a", false), vec![netns()]),
            Err(Violation::NoWorkloadInfo)
        ));
        assert!(matches!(
            parse(&add("", true), vec![netns()]),
            Err(Violation::NoUid)
        ));
    }

    #[test]
    fn descriptors_that_were_not_announced_are_a_violation() {
        let del = packet(Payload::Del(zds::DelWorkload { uid: "a".to_owned() }));
        assert!(matches!(
            parse(&del, vec![netns()]),
            Err(Violation::Descriptors { expected: 0, got: 1 })
        ));
        assert!(matches!(
            parse(&add("a", true), vec![netns(), netns()]),
            Err(Violation::Descriptors { expected: 1, got: 2 })
        ));
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            parse(&add("a", true), vec![file.into()]),
            Err(Violation::NoNetns(_))
        ));
    }

    #[test]
    fn noise_is_a_violation() {
        assert!(parse(&[0xff; 40], Vec::new()).is_err());
        assert!(matches!(parse(&[], Vec::new()), Err(Violation::NoPayload)));
    }

    #[test]
    fn the_hello_says_version_and_ability_in_few_bytes() {
        let hello = hello(&super::super::generation(), true);
        assert!(hello.len() <= 64);
        let read = zds::ZdsHello::decode(&hello[..]).unwrap();
        assert_eq!(read.version(), zds::Version::V1);
        assert!(read.abilities.unwrap().sockets);
    }
}
