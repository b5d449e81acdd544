//! What was heard, in a form that outlives the process: the newest good form of every resource.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tulle_proto::discovery::{DeltaDiscoveryResponse, Resource as Envelope};

use crate::resource::ResourceType;

/// Resources by type and name. A type that was heard of and has none is an entry, too: an empty answer is an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    types: BTreeMap<String, BTreeMap<String, Envelope>>,
}

impl Kept {
    /// Takes what a response says. A bad resource does not replace a good one; without a good one it is kept as it is,
    /// so that whoever reads it refuses it again.
    pub fn take(&mut self, response: &DeltaDiscoveryResponse) {
        let Some(kind) = ResourceType::from_type_url(&response.type_url) else {
            return;
        };
        let held = self.types.entry(response.type_url.clone()).or_default();
        for name in &response.removed_resources {
            held.remove(name);
        }
        for resource in &response.resources {
            if is_good(kind, resource) || !held.get(&resource.name).is_some_and(|held| is_good(kind, held)) {
                held.insert(resource.name.clone(), resource.clone());
            }
        }
    }

    /// As one response per type.
    #[must_use]
    pub fn into_responses(self) -> Vec<DeltaDiscoveryResponse> {
        let response = |(type_url, resources): (String, BTreeMap<String, Envelope>)| DeltaDiscoveryResponse {
            type_url,
            resources: resources.into_values().collect(),
            ..DeltaDiscoveryResponse::default()
        };
        self.types.into_iter().map(response).collect()
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let responses = self.clone().into_responses();
        responses
            .iter()
            .flat_map(Message::encode_length_delimited_to_vec)
            .collect()
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are none of [`Self::encode`].
    pub fn decode(mut bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        let mut kept = Self::default();
        while !bytes.is_empty() {
            kept.take(&DeltaDiscoveryResponse::decode_length_delimited(&mut bytes)?);
        }
        Ok(kept)
    }
}

fn is_good(kind: ResourceType, resource: &Envelope) -> bool {
    let body = resource.resource.as_ref();
    body.is_some_and(|body| kind.decode(&resource.name, &body.value).is_ok())
}

/// Writes down what a client hears. Clones write into the same place.
#[derive(Clone, Default)]
pub struct Keeper {
    kept: Arc<Mutex<Kept>>,
    changed: Arc<watch::Sender<()>>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

impl Keeper {
    /// Starts from what an earlier process has heard.
    #[must_use]
    pub fn new(kept: Kept) -> Self {
        Self {
            kept: Arc::new(Mutex::new(kept)),
            changed: Arc::default(),
        }
    }

    pub(crate) fn take(&self, response: &DeltaDiscoveryResponse) {
        self.kept.lock().take(response);
        self.changed.send_replace(());
    }

    /// Wakes whenever [`Self::encode`] may give something else.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Everything that is kept, as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.kept.lock().encode()
    }
}

/// What is read of the bytes that an earlier process left is read as the same again once it is written down.
///
/// # Panics
/// When that does not hold.
#[cfg(any(test, feature = "testing"))]
pub fn fuzz(bytes: &[u8]) {
    let Ok(kept) = Kept::decode(bytes) else { return };
    let again = Kept::decode(&kept.encode()).expect("what we write down can be read");
    assert_eq!(again, kept);
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Session;
    use crate::session::tests::{policy, response, workload};

    fn names(kept: &Kept) -> Vec<String> {
        kept.types.values().flat_map(BTreeMap::keys).cloned().collect()
    }

    #[test]
    fn what_is_kept_survives_as_bytes_and_makes_a_client_whole() {
        let mut kept = Kept::default();
        for kind in ResourceType::NODE {
            kept.take(&DeltaDiscoveryResponse {
                type_url: kind.type_url().to_owned(),
                ..DeltaDiscoveryResponse::default()
            });
        }
        kept.take(&response(
            ResourceType::Address,
            vec![workload("w1", "1", 1)],
            &[],
        ));
        let again = Kept::decode(&kept.encode()).unwrap();
        assert_eq!(again, kept);
        let mut session = Session::new(tulle_proto::core::Node::default(), &ResourceType::NODE);
        for response in again.into_responses() {
            assert!(session.on_response(response).accepted());
        }
        assert!(session.synced());
        let first = session.on_open();
        assert!(
            first
                .iter()
                .any(|request| request.initial_resource_versions.contains_key("w1"))
        );
    }

    #[test]
    fn a_bad_form_replaces_no_good_one_and_is_kept_where_there_is_none() {
        let mut kept = Kept::default();
        let good = policy("shop/p", "1", 0);
        kept.take(&response(ResourceType::Authorization, vec![good.clone()], &[]));
        kept.take(&response(
            ResourceType::Authorization,
            vec![policy("shop/p", "2", 77)],
            &[],
        ));
        kept.take(&response(
            ResourceType::Authorization,
            vec![policy("shop/q", "1", 77)],
            &[],
        ));
        assert_eq!(names(&kept), ["shop/p", "shop/q"]);
        let held = &kept.types[ResourceType::Authorization.type_url()];
        assert_eq!(held["shop/p"], good);
    }

    #[test]
    fn noise_is_no_kept_configuration() {
        assert!(Kept::decode(&[0xff; 20]).is_err());
    }

    #[test]
    fn held_configurations_are_read_as_they_were_written() {
        const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus");
        replay::replay(format!("{CORPUS}/held_configuration"), fuzz);
    }
}
