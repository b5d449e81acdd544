//! Packets between node agent and node proxy, checked on arrival.

use prost::Message;
use tulle_model::Str;

use super::{Cause, Flaw, Malformed, each, known, required, undecodable};
use crate::zds::sockets::Kind;
use crate::zds::workload_request::Payload;
use crate::zds::{self as wire, workload_response};

/// The longest request and hello that is accepted.
pub const PACKET_MAX: usize = 1024;
/// The packet mark where a message leaves it out.
pub const DEFAULT_MARK: u32 = 0x539;

/// First message of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What the proxy can do beyond version 1; `None` is plain version 1.
    pub abilities: Option<wire::Abilities>,
}

/// What an agent asks of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Serve this workload; the network namespace comes as a file descriptor.
    Add(Added),
    /// Go on with a workload of an earlier connection.
    Keep {
        /// Uid of the workload.
        uid: Str,
    },
    /// Stop serving a workload.
    Delete {
        /// Uid of the workload.
        uid: Str,
    },
    /// Everything the agent knew at the start has been sent.
    SnapshotSent,
    /// Stop accepting for a workload and keep its connections.
    HandOver {
        /// Uid of the workload.
        uid: Str,
    },
    /// Give the listening sockets of a workload back.
    ReturnSockets {
        /// Uid of the workload.
        uid: Str,
    },
}

/// A workload to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Uid in the agent's words.
    pub uid: Str,
    /// Name of the pod or entry.
    pub name: Str,
    /// Its namespace.
    pub namespace: Str,
    /// Its service account.
    pub service_account: Str,
    /// Its resolver settings, if known.
    pub dns: Option<wire::PodDns>,
    /// The listening sockets that follow the network namespace; `None` if the proxy binds itself.
    pub sockets: Option<Sockets>,
    /// Another generation accepts for it until this one has taken it.
    pub served: bool,
}

/// Listening sockets that travel as file descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// One per descriptor, in order.
    pub kinds: Vec<Kind>,
    /// Packet mark of the pod.
    pub mark: u32,
}

/// A proxy's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Why the request was not carried out.
    pub error: Option<String>,
    /// Sockets that come back with it.
    pub sockets: Option<Sockets>,
}

impl Hello {
    /// Reads a hello.
    ///
    /// # Errors
    /// If it is too long, not decodable, or of another version.
    pub fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let hello: wire::ZdsHello = message(packet).map_err(|flaw| flaw.of("hello"))?;
        match wire::Version::try_from(hello.version) {
            Ok(wire::Version::V1) => Ok(Self {
                abilities: hello.abilities,
            }),
            _ => Err(Flaw::new("version", Cause::UnknownValue(hello.version)).of("hello")),
        }
    }

    /// Writes a hello.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let version = wire::Version::V1.into();
        wire::ZdsHello {
            version,
            abilities: self.abilities.clone(),
        }
        .encode_to_vec()
    }
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// If it is too long, not decodable, of an unknown kind, or without what its kind needs.
    pub fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        message(packet)
            .and_then(Self::parse)
            .map_err(|flaw| flaw.of("request"))
    }

    /// Writes a request; resolver settings are left out if they make it too long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let packet = wire::WorkloadRequest {
            payload: Some(self.payload(true)),
        }
        .encode_to_vec();
        if packet.len() <= PACKET_MAX {
            return packet;
        }
        wire::WorkloadRequest {
            payload: Some(self.payload(false)),
        }
        .encode_to_vec()
    }

    fn parse(request: wire::WorkloadRequest) -> Result<Self, Flaw> {
        match request.payload {
            Some(Payload::Add(add)) => parse_add(add).map(Self::Add).map_err(|flaw| flaw.within("add")),
            Some(Payload::Keep(keep)) => Ok(Self::Keep {
                uid: required("keep.uid", keep.uid)?,
            }),
            Some(Payload::Del(del)) => Ok(Self::Delete {
                uid: required("del.uid", del.uid)?,
            }),
            Some(Payload::SnapshotSent(_)) => Ok(Self::SnapshotSent),
            Some(Payload::HandOver(over)) => Ok(Self::HandOver {
                uid: required("hand_over.uid", over.uid)?,
            }),
            Some(Payload::ReturnSockets(back)) => Ok(Self::ReturnSockets {
                uid: required("return_sockets.uid", back.uid)?,
            }),
            None => Err(Flaw::new("payload", Cause::Unset)),
        }
    }

    fn payload(&self, with_dns: bool) -> Payload {
        let text = |uid: &Str| uid.as_ref().to_owned();
        match self {
            Self::Add(added) => Payload::Add(added.to_wire(with_dns)),
            Self::Keep { uid } => Payload::Keep(wire::KeepWorkload { uid: text(uid) }),
            Self::Delete { uid } => Payload::Del(wire::DelWorkload { uid: text(uid) }),
            // Ours knows; others never look at the field.
            Self::SnapshotSent => Payload::SnapshotSent(wire::SnapshotSent {
                knows_lingering: true,
            }),
            Self::HandOver { uid } => Payload::HandOver(wire::HandOver { uid: text(uid) }),
            Self::ReturnSockets { uid } => Payload::ReturnSockets(wire::ReturnSockets { uid: text(uid) }),
        }
    }
}

impl Added {
    fn to_wire(&self, with_dns: bool) -> wire::AddWorkload {
        let info = wire::WorkloadInfo {
            name: self.name.as_ref().into(),
            namespace: self.namespace.as_ref().into(),
            service_account: self.service_account.as_ref().into(),
        };
        wire::AddWorkload {
            uid: self.uid.as_ref().into(),
            workload_info: Some(info),
            dns: self.dns.clone().filter(|_| with_dns),
            sockets: self.sockets.as_ref().map(Into::into),
            served: self.served,
        }
    }
}

impl Answer {
    /// The request was carried out.
    #[must_use]
    pub fn accepted() -> Self {
        Self {
            error: None,
            sockets: None,
        }
    }

    /// The request was not carried out.
    #[must_use]
    pub fn refused(error: impl Into<String>) -> Self {
        Self {
            error: Some(error.into()),
            sockets: None,
        }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If it is not decodable or no answer of a known kind.
    pub fn decode(packet: &[u8]) -> Result<Self, Malformed> {
        let response: wire::WorkloadResponse = message(packet).map_err(|flaw| flaw.of("response"))?;
        let Some(workload_response::Payload::Ack(ack)) = response.payload else {
            return Err(Flaw::new("payload", Cause::Unset).of("response"));
        };
        let sockets = ack
            .sockets
            .map(parse_sockets)
            .transpose()
            .map_err(|flaw| flaw.of("response"))?;
        Ok(Self {
            error: Some(ack.error).filter(|error| !error.is_empty()),
            sockets,
        })
    }

    /// Writes an answer; a long error text is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        const ERROR_CHARS_MAX: usize = 200;
        let error = self
            .error
            .iter()
            .flat_map(|error| error.chars())
            .take(ERROR_CHARS_MAX)
            .collect();
        let ack = wire::Ack {
            error,
            sockets: self.sockets.as_ref().map(Into::into),
        };
        wire::WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(ack)),
        }
        .encode_to_vec()
    }
}

fn message<M: Message + Default>(packet: &[u8]) -> Result<M, Flaw> {
    if packet.len() > PACKET_MAX {
        return Err(Flaw::new(
            "packet",
            Cause::TooLong {
                length: packet.len(),
                max: PACKET_MAX,
            },
        ));
    }
    M::decode(packet).map_err(undecodable)
}

fn parse_add(add: wire::AddWorkload) -> Result<Added, Flaw> {
    let info = add
        .workload_info
        .ok_or_else(|| Flaw::new("workload_info", Cause::Unset))?;
    Ok(Added {
        uid: required("uid", add.uid)?,
        name: required("workload_info.name", info.name)?,
        namespace: required("workload_info.namespace", info.namespace)?,
        service_account: info.service_account.into(),
        dns: add.dns,
        sockets: add.sockets.map(parse_sockets).transpose()?,
        served: add.served,
    })
}

fn parse_sockets(sockets: wire::Sockets) -> Result<Sockets, Flaw> {
    let kind = |value| match known("", value)? {
        Kind::Unspecified => Err(Flaw::new("", Cause::Unset)),
        kind => Ok(kind),
    };
    let kinds = each("sockets.kinds", sockets.kinds, kind)?;
    Ok(Sockets {
        kinds,
        mark: if sockets.mark == 0 {
            DEFAULT_MARK
        } else {
            sockets.mark
        },
    })
}

impl From<&Sockets> for wire::Sockets {
    fn from(sockets: &Sockets) -> Self {
        let kinds = sockets.kinds.iter().map(|kind| (*kind).into()).collect();
        Self {
            kinds,
            mark: if sockets.mark == DEFAULT_MARK {
                0
            } else {
                sockets.mark
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Added {
        Added {
            uid: "u1".into(),
            name: "web".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            dns: None,
            sockets: None,
            served: false,
        }
    }

    #[test]
    fn every_request_round_trips() {
        let sockets = Sockets {
            kinds: vec![Kind::Outbound, Kind::DnsTcp6],
            mark: 7,
        };
        let dns = wire::PodDns {
            nameservers: vec!["10.0.0.10".into()],
            search: vec![],
            ndots: 5,
        };
        for request in [
            Request::Add(web()),
            Request::Add(Added {
                sockets: Some(sockets),
                dns: Some(dns),
                served: true,
                ..web()
            }),
            Request::Keep { uid: "u1".into() },
            Request::Delete { uid: "u1".into() },
            Request::SnapshotSent,
            Request::HandOver { uid: "u1".into() },
            Request::ReturnSockets { uid: "u1".into() },
        ] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn a_delete_carries_its_uid_as_field_two() {
        let packet = Request::Delete { uid: "u".into() }.encode();
        assert_eq!(packet, [0x12, 3, 0x12, 1, b'u']);
    }

    #[test]
    fn resolver_settings_give_way_when_the_packet_grows_too_long() {
        let dns = wire::PodDns {
            search: vec!["a".repeat(PACKET_MAX)],
            ..Default::default()
        };
        let packet = Request::Add(Added {
            dns: Some(dns),
            ..web()
        })
        .encode();
        assert_eq!(Request::decode(&packet), Ok(Request::Add(web())));
    }

    #[test]
    fn an_add_without_workload_info_is_refused() {
        let payload = Payload::Add(wire::AddWorkload {
            uid: "u".into(),
            ..Default::default()
        });
        let packet = wire::WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec();
        let flaw = Request::decode(&packet).unwrap_err();
        assert_eq!(
            (flaw.field.as_str(), flaw.cause),
            ("add.workload_info", Cause::Unset)
        );
    }

    #[test]
    fn a_packet_beyond_the_bound_is_refused() {
        let flaw = Request::decode(&[0; PACKET_MAX + 1]).unwrap_err();
        assert_eq!(
            flaw.cause,
            Cause::TooLong {
                length: PACKET_MAX + 1,
                max: PACKET_MAX
            }
        );
    }

    #[test]
    fn hello_and_answer_round_trip() {
        let abilities = wire::Abilities {
            sockets: true,
            generation: "7".into(),
            lingering: true,
        };
        for hello in [
            Hello { abilities: None },
            Hello {
                abilities: Some(abilities),
            },
        ] {
            assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }
        assert!(Hello::decode(&[]).is_err(), "version NOT_USED is no hello");
        for answer in [Answer::accepted(), Answer::refused("no such netns")] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
    }
}
