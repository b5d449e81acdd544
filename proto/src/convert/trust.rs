//! Trust: `tulle.mesh.v1.Trust` and back. An entry of the deny-list is never skipped.

use tulle_model::trust::{DENIED_MAX, Denied, Subject, Trust};

use super::{Cause, Flaw, each, required};
use crate::mesh as wire;
use crate::mesh::denied::Subject as WireSubject;

/// Most bytes of revocation lists in one resource.
const CRL_BYTES_MAX: usize = 1024 * 1024;

pub(super) fn parse(trust: wire::Trust) -> Result<Trust, Flaw> {
    within("denied", trust.denied.len(), DENIED_MAX)?;
    within("crl", trust.crl.len(), CRL_BYTES_MAX)?;
    Ok(Trust {
        trust_domain: required("trust_domain", trust.trust_domain)?,
        generation: trust.generation,
        // Without a root nobody could be believed any more; that is never meant.
        roots: required("roots", trust.roots)?,
        aliases: each("aliases", trust.aliases, |alias| required("", alias))?,
        denied: each("denied", trust.denied, denied)?,
        crl: (!trust.crl.is_empty()).then(|| trust.crl.into()),
        crl_stale: trust.crl_stale,
    })
}

fn within(field: &str, length: usize, max: usize) -> Result<(), Flaw> {
    if length > max {
        return Err(Flaw::new(field, Cause::TooLong { length, max }));
    }
    Ok(())
}

fn denied(entry: wire::Denied) -> Result<Denied, Flaw> {
    Ok(Denied {
        subject: subject(entry.subject)?,
        reason: entry.reason.into(),
        until: (entry.until != 0).then_some(entry.until),
        by: entry.by.into(),
    })
}

fn subject(subject: Option<WireSubject>) -> Result<Subject, Flaw> {
    match subject {
        None => Err(Flaw::new("subject", Cause::Unset)),
        Some(WireSubject::Identity(text)) => text
            .parse()
            .map(Subject::Identity)
            .map_err(|error| Flaw::new("identity", Cause::Identity(error))),
        Some(WireSubject::Serial(text)) => text
            .parse()
            .map(Subject::Serial)
            .map_err(|error| Flaw::new("serial", Cause::Serial(error))),
        Some(WireSubject::Node(node)) => required("node", node).map(Subject::Node),
    }
}

impl From<&Trust> for wire::Trust {
    fn from(trust: &Trust) -> Self {
        Self {
            trust_domain: trust.trust_domain.as_ref().into(),
            generation: trust.generation,
            roots: trust.roots.as_ref().into(),
            aliases: trust.aliases.iter().map(ToString::to_string).collect(),
            denied: trust.denied.iter().map(Into::into).collect(),
            crl: trust.crl.as_deref().unwrap_or_default().into(),
            crl_stale: trust.crl_stale,
        }
    }
}

impl From<&Denied> for wire::Denied {
    fn from(entry: &Denied) -> Self {
        let subject = match &entry.subject {
            Subject::Identity(identity) => WireSubject::Identity(identity.to_string()),
            Subject::Serial(serial) => WireSubject::Serial(serial.to_string()),
            Subject::Node(node) => WireSubject::Node(node.as_ref().into()),
        };
        Self {
            subject: Some(subject),
            reason: entry.reason.as_ref().into(),
            until: entry.until.unwrap_or_default(),
            by: entry.by.as_ref().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tulle_model::Identity;

    use super::*;
    use crate::convert::{Resource, decode_trust, encode_trust};

    fn full() -> Trust {
        let entry = |subject, until| Denied {
            subject,
            reason: "lost key".into(),
            until,
            by: "uid 0".into(),
        };
        let mut trust = Trust::new("cluster.local", "-----BEGIN CERTIFICATE-----");
        trust.generation = 4;
        trust.aliases = vec!["old.example".into()];
        trust.denied = vec![
            entry(
                Subject::Identity(Identity::new("cluster.local", "shop", "web")),
                None,
            ),
            entry(Subject::Serial("ab12".parse().unwrap()), Some(9)),
            entry(Subject::Node("n1".into()), None),
        ];
        trust.crl = Some((*b"list").into());
        trust.crl_stale = true;
        trust
    }

    #[test]
    fn trust_round_trips() {
        let Resource::Trust(decoded) = decode_trust("cluster.local", &encode_trust(&full())).unwrap() else {
            panic!("another kind");
        };
        assert_eq!(*decoded, full());
    }

    #[test]
    fn an_entry_of_an_unknown_kind_is_refused_not_skipped() {
        let mut wire = wire::Trust::from(&full());
        wire.denied[1].subject = None;
        let malformed = decode_trust("cluster.local", &wire.encode_to_vec()).unwrap_err();
        assert_eq!(malformed.field, "denied[1].subject");
    }

    #[test]
    fn trust_without_roots_is_refused() {
        let mut wire = wire::Trust::from(&full());
        wire.roots.clear();
        assert!(decode_trust("cluster.local", &wire.encode_to_vec()).is_err());
    }

    #[test]
    fn a_list_beyond_the_bound_is_refused() {
        let mut wire = wire::Trust::from(&full());
        let entry = wire.denied[2].clone();
        wire.denied.resize(DENIED_MAX + 1, entry);
        assert!(decode_trust("cluster.local", &wire.encode_to_vec()).is_err());
    }

    #[test]
    fn trust_of_another_domain_than_the_envelope_says_is_refused() {
        assert!(decode_trust("other.example", &encode_trust(&full())).is_err());
    }
}
