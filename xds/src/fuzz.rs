//! One plain function per parser of foreign bytes, for fuzzers and corpus tests. None may panic.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tulle_model::Str;
use tulle_proto::resume::Layout;

use crate::ca::crl;
use crate::ca::issue::Csr;
use crate::engine::table::Resource;
use crate::serve::session::{Nack, Request, Session, Store as _};
use crate::serve::viewer::{Features, Viewer};
use crate::snapshot::{Order, ResourceType, Scope, Snapshot};
use crate::token::{Token, jwt};

/// Names that the operations of [`ads_session`] speak of; `*` is the wildcard.
const NAMES: [&str; 5] = ["*", "shop/a", "shop/b", "net/10.0.0.1", "shop/none"];

/// Certificate requests.
pub fn csr(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Csr::parse(text);
    }
}

/// Revocation lists.
pub fn crl(data: &[u8]) {
    let _ = crl::parse(data);
}

/// Tokens of nodes and of service accounts, and published keys.
pub fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = Token::parse(&text);
    jwt::read_unverified(&text);
    let _ = jwt::Keys::parse(data);
}

/// A stream's requests, as a list of operations of two bytes each, against the server's session.
///
/// # Panics
/// If a response breaks a rule: a nonce that was used, a name told twice, a policy of another node.
pub fn ads_session(data: &[u8]) {
    let mut head = Arc::new(Snapshot::default());
    edit(&mut head, 0, Some(0));
    let features = Features::parse(if data.len().is_multiple_of(2) {
        "trust,dry-run"
    } else {
        ""
    });
    let viewer = Viewer::node("n1").with(features);
    let mut session = Session::new(7, viewer.clone(), head.clone());
    let mut nonces = BTreeSet::new();
    let mut last = (ResourceType::Address, String::new());
    for operation in data.chunks_exact(2).take(256) {
        let (what, argument) = (operation[0], operation[1]);
        let ty = ResourceType::ALL[usize::from(argument) % ResourceType::ALL.len()];
        match what % 6 {
            0 => edit(&mut head, argument, (argument % 5 != 0).then_some(what)),
            1..=3 => {
                let mut request = Request {
                    type_url: ty.type_url().into(),
                    ..Request::default()
                };
                let name = NAMES[usize::from(argument >> 3) % NAMES.len()].into();
                match what % 6 {
                    1 => request.subscribe = vec![name],
                    2 => request.unsubscribe = vec![name],
                    _ => {
                        let digests = |layout| head.digests(&viewer, ty, layout).to_text();
                        request
                            .initial_versions
                            .extend([held(data, argument, name, digests)]);
                    }
                }
                if session.on_request(&request, &head).is_err() {
                    return;
                }
            }
            4 => {
                let error = (argument % 3 == 0).then(|| Nack {
                    message: String::from_utf8_lossy(data).into_owned(),
                });
                let answer = Request {
                    type_url: last.0.type_url().into(),
                    nonce: last.1.as_str().into(),
                    error,
                    ..Request::default()
                };
                if session.on_request(&answer, &head).is_err() {
                    return;
                }
            }
            _ => {
                let Some(response) = session.poll_send(&head, Instant::now()) else {
                    continue;
                };
                assert!(nonces.insert(response.nonce.clone()), "a nonce was used twice");
                let names = response.resources.iter().map(|slot| &slot.name);
                let mut told = BTreeSet::new();
                names
                    .chain(&response.removed)
                    .for_each(|name| assert!(told.insert(name.clone()), "{name} is told twice"));
                let foreign = response.resources.iter().any(|slot| !slot.scope.reaches("n1"));
                assert!(!foreign, "a resource of another node");
                if let Some(ty) = ResourceType::from_type_url(&response.type_url) {
                    last = (ty, response.nonce.to_string());
                }
            }
        }
    }
}

/// What a client says that it holds: a version, digests of the newest cut, or what is neither.
fn held(data: &[u8], argument: u8, name: Str, digests: impl Fn(Layout) -> String) -> (Str, Str) {
    let layout = Layout::ALL[usize::from(argument >> 5 & 1)];
    match argument >> 6 {
        2 => (layout.name().into(), digests(layout).into()),
        3 => (layout.name().into(), String::from_utf8_lossy(data).into()),
        _ => (name, "1".into()),
    }
}

/// The next cut: one resource set, or removed.
fn edit(head: &mut Arc<Snapshot>, which: u8, content: Option<u8>) {
    let mut next = Snapshot::clone(head);
    next.sequence += 1;
    next.synced = true;
    let ty = ResourceType::ALL[usize::from(which) % ResourceType::ALL.len()];
    let name = if which & 8 == 0 { "shop/a" } else { "shop/b" };
    let sequence = next.sequence;
    let nodes = |node: &str| Arc::new([node.into()].into());
    match content {
        Some(content) => {
            let resource = Resource {
                name: name.into(),
                aliases: vec!["net/10.0.0.1".into()],
                body: Bytes::copy_from_slice(&[content]),
                order: Order::Workload,
                scope: match (ty, which & 16) {
                    (ResourceType::Authorization, 0) => Scope::Workloads { nodes: nodes("n1") },
                    (ResourceType::Authorization, _) => Scope::Workloads { nodes: nodes("n2") },
                    _ => Scope::Everyone,
                },
            };
            next.table_mut(ty).set(resource, sequence);
        }
        None => {
            next.table_mut(ty).remove(name, sequence);
        }
    }
    *head = Arc::new(next);
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::*;

    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");

    #[test]
    fn certificate_requests_never_panic() {
        replay::replay(format!("{CORPUS}/csr"), csr);
    }

    #[test]
    fn revocation_lists_never_panic() {
        replay::replay(format!("{CORPUS}/crl"), crl);
    }

    #[test]
    fn tokens_never_panic() {
        replay::replay(format!("{CORPUS}/token"), token);
    }

    #[test]
    fn lists_of_operations_never_break_a_rule() {
        replay::replay(format!("{CORPUS}/ads_session"), ads_session);
        let mut state = 1_u32;
        for length in 0..400 {
            let mut random = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            };
            let data: Vec<u8> = (0..length).map(|_| random()).collect();
            ads_session(&data);
        }
    }
}
