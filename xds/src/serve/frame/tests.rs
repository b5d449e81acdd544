//! What is written by hand is read by generated code, raw and compressed.

use std::io::Read as _;

use flate2::read::GzDecoder;
use proptest::prelude::*;
use prost::Message as _;
use tulle_k8s::object::{Reading, read as read_object};
use tulle_k8s::translate::MeshConfig;
use tulle_proto::discovery::DeltaDiscoveryResponse;

use super::*;
use crate::engine::{Batch, Engine, Event, InForce};
use crate::snapshot::{Order, ResourceType, Scope};

fn slot(name: &str, aliases: &[&str], body: Vec<u8>) -> Arc<Slot> {
    Arc::new(Slot {
        name: name.into(),
        aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
        version: "00c0ffee00c0ffee".into(),
        body: body.into(),
        sequence: 1,
        order: Order::Workload,
        scope: Scope::Everyone,
    })
}

fn response(resources: &[Arc<Slot>], removed: &[&str]) -> Response {
    Response {
        type_url: ResourceType::Address.type_url().into(),
        nonce: "7.12.3".into(),
        cut: 12,
        resources: resources.into(),
        chunk: None,
        step: None,
        removed: removed.iter().map(|name| (*name).into()).collect(),
        is_opening: false,
    }
}

/// Reads a message as a client does.
fn read(message: &Message) -> DeltaDiscoveryResponse {
    let all: Vec<u8> = message.parts.iter().flatten().copied().collect();
    let (prefix, body) = all.split_at(5);
    let length = u32::from_be_bytes(prefix[1..].try_into().unwrap());
    assert_eq!(usize::try_from(length).unwrap(), body.len());
    let mut plain = body.to_vec();
    if prefix[0] == 1 && message.encoding == Encoding::Zstd {
        plain = zstd::stream::decode_all(body).unwrap();
    } else if prefix[0] == 1 {
        plain.clear();
        let mut decoder = GzDecoder::new(body);
        decoder.read_to_end(&mut plain).unwrap();
        assert!(decoder.into_inner().is_empty(), "one member and nothing after it");
    }
    DeltaDiscoveryResponse::decode(plain.as_slice()).unwrap()
}

fn message(response: &Response, best: Encoding) -> Message {
    let payload = Payload::encode(&response.type_url, &response.resources, &response.removed);
    payload.message(&response.type_url, response.cut, &response.nonce, best)
}

proptest! {
    #[test]
    fn a_message_reads_as_what_was_to_be_said(
        entries in prop::collection::vec(("[a-z/]{0,20}", prop::collection::vec(any::<u8>(), 0..600)), 0..20),
        removed in prop::collection::vec("[a-z/]{1,200}", 0..20),
        best in prop::sample::select(vec![Encoding::Raw, Encoding::Gzip, Encoding::Zstd]),
    ) {
        let slots: Vec<_> = entries.iter().map(|(name, body)| slot(name, &["net/10.0.0.1", ""], body.clone())).collect();
        let names: Vec<&str> = removed.iter().map(String::as_str).collect();
        let response = response(&slots, &names);
        let said = read(&message(&response, best));
        prop_assert_eq!(&*said.type_url, &*response.type_url);
        prop_assert_eq!((&*said.nonce, &*said.system_version_info), ("7.12.3", "12"));
        prop_assert_eq!(&said.removed_resources, &removed);
        prop_assert_eq!(said.resources.len(), slots.len());
        for (sent, slot) in said.resources.iter().zip(&slots) {
            let any = sent.resource.as_ref().unwrap();
            prop_assert_eq!((&*sent.name, &*sent.version), (&*slot.name, &*slot.version));
            prop_assert_eq!((&*any.type_url, &any.value[..]), (&*response.type_url, &slot.body[..]));
            prop_assert_eq!(sent.aliases.clone(), vec!["net/10.0.0.1".to_owned(), String::new()]);
        }
    }
}

#[test]
fn small_messages_are_not_compressed_and_large_ones_shrink() {
    let small = response(&[slot("a", &[], vec![1; 100])], &[]);
    let large = response(&[slot("a", &[], vec![1; 100_000])], &[]);
    for encoding in [Encoding::Gzip, Encoding::Zstd] {
        assert_eq!(message(&small, encoding).encoding, Encoding::Raw);
        let packed = message(&large, encoding);
        assert_eq!(packed.encoding, encoding);
        assert!(packed.len() < 2000, "{}", packed.len());
    }
    assert_eq!(message(&large, Encoding::Raw).encoding, Encoding::Raw);
}

#[test]
fn raw_bytes_do_not_stay_beside_compressed_ones() {
    let resources: Arc<[Arc<Slot>]> = [slot("a", &[], vec![1; 10_000])].into();
    let payload = Payload::encode("type", &resources, &["gone".into()]);
    for encoding in [Encoding::Gzip, Encoding::Zstd] {
        let message = payload.message("type", 1, "1", encoding);
        assert!(message.len() < payload.len());
    }
    assert!(payload.raw.get().is_none());
    let message = payload.message("type", 1, "1", Encoding::Raw);
    assert_eq!(payload.raw.get().map(Bytes::len), Some(payload.len()));
    assert_eq!(read(&message).resources.len(), 1);
}

/// The table of a mesh with so many pods, ten of a service.
fn table(pods: usize) -> crate::engine::table::Table {
    let mut text = String::new();
    for service in 0..pods / 10 {
        text += &format!(
            "kind: Service\napiVersion: v1\nmetadata: {{name: s{service}, namespace: ns{}}}\nspec: {{selector: {{app: \
             s{service}}}, clusterIPs: [10.96.{}.{}], ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n",
            service % 10,
            service / 250,
            service % 250
        );
    }
    for pod in 0..pods {
        let service = pod / 10;
        text += &format!(
            "kind: Pod\napiVersion: v1\nmetadata: {{name: s{service}-{pod}, namespace: ns{}, labels: {{app: \
             s{service}}}}}\nspec: {{nodeName: n{}, serviceAccountName: s{service}}}\nstatus: {{phase: Running, podIP: \
             10.100.{}.{}}}\n---\n",
            service % 10,
            pod % 200,
            pod / 250,
            pod % 250
        );
    }
    let events = tulle_k8s::document::documents(&text).into_iter().map(|document| {
        match read_object(&document.expect("it is YAML")) {
            Reading::Good { key, object, .. } => Event {
                key,
                object: Some(InForce {
                    object,
                    file: "a.yaml".into(),
                    generation: 1,
                    stale_since: None,
                }),
            },
            other => panic!("{other:?}"),
        }
    });
    let batch = Batch {
        events: events.collect(),
        synced: true,
        ..Batch::default()
    };
    let cut = Engine::new(MeshConfig::default()).apply(batch);
    cut.table(ResourceType::Address).clone()
}

#[test]
fn a_workload_takes_45_bytes_of_a_packed_table_its_part_of_a_service_included() {
    let (pods, url) = (3_000, ResourceType::Address.type_url());
    let chunks = table(pods).chunks();
    let of = |encoding: Encoding| {
        let bytes = chunks.iter().map(|chunk| chunk.payload(url).packed_len(encoding));
        bytes.sum::<usize>() / pods
    };
    assert!(of(Encoding::Zstd) <= 45, "{}", of(Encoding::Zstd));
    assert!(of(Encoding::Gzip) <= 60, "{}", of(Encoding::Gzip));
    assert!(of(Encoding::Raw) <= 300, "{}", of(Encoding::Raw));
}

#[test]
fn streams_that_are_sent_the_same_share_one_payload() {
    let shared = Shared::default();
    let (one, other) = (slot("a", &[], vec![1; 10]), slot("a", &[], vec![2; 10]));
    let first = shared.payload(&response(std::slice::from_ref(&one), &["gone"]));
    let again = shared.payload(&response(std::slice::from_ref(&one), &["gone"]));
    assert!(Arc::ptr_eq(&first, &again));
    for different in [
        response(&[other], &["gone"]),
        response(std::slice::from_ref(&one), &[]),
        response(&[one.clone(), one.clone()], &["gone"]),
        Response {
            type_url: ResourceType::Workload.type_url().into(),
            ..response(std::slice::from_ref(&one), &["gone"])
        },
    ] {
        assert!(!Arc::ptr_eq(&first, &shared.payload(&different)));
    }
}

#[test]
fn payloads_remembered_are_bounded() {
    let shared = Shared::default();
    for number in 0..2 * SHARED_MAX {
        let _ = shared.payload(&response(&[], &[&number.to_string()]));
    }
    assert_eq!(shared.recent.lock().len(), SHARED_MAX);
}
