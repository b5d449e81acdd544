//! Random traffic between a server session and reference clients, with loss, reordering and reconnects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use proptest::prelude::*;
use tulle_model::Str;
use tulle_proto::resume::{Bucket, Digests, Layout};
use tulle_xds::serve::session::{Nack, Request, Response, Session, Store};
use tulle_xds::serve::viewer::Viewer;
use tulle_xds::snapshot::ResourceType;

use crate::store::{Cut, Edit, slot};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const ALIASES: [&str; 3] = ["/10.0.0.1", "/10.0.0.2", "/10.0.0.3"];
const TYPES: [ResourceType; 2] = [ResourceType::Address, ResourceType::Authorization];
/// A version every client rejects.
const POISON: &str = "poison";

#[derive(Debug, Clone)]
enum Step {
    Edit(Vec<RandomEdit>),
    Subscribe(usize, Vec<usize>, Vec<usize>),
    /// The server takes the next request of this type.
    Request(usize),
    /// The server sends.
    Send,
    /// The client takes the next response.
    Receive,
    /// The connection breaks; everything in flight is lost. Comes back with digests instead of versions, or not.
    Reconnect(Option<Layout>),
}

#[derive(Debug, Clone)]
struct RandomEdit {
    ty: usize,
    name: usize,
    /// `None` removes; 0 is the poison.
    version: Option<u8>,
    alias: Option<usize>,
    visible: bool,
}

fn edit() -> impl Strategy<Value = RandomEdit> {
    let version = prop::option::weighted(0.8, 0..4_u8);
    let alias = prop::option::of(0..ALIASES.len());
    (
        0..TYPES.len(),
        0..NAMES.len(),
        version,
        alias,
        prop::bool::weighted(0.8),
    )
        .prop_map(|(ty, name, version, alias, visible)| RandomEdit {
            ty,
            name,
            version,
            alias,
            visible,
        })
}

/// Index into the names, then the aliases, then `*`.
fn key() -> impl Strategy<Value = usize> {
    0..=NAMES.len() + ALIASES.len()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(edit(), 1..4).prop_map(Step::Edit),
        2 => (0..TYPES.len(), prop::collection::vec(key(), 0..3), prop::collection::vec(key(), 0..3))
            .prop_map(|(ty, subscribe, unsubscribe)| Step::Subscribe(ty, subscribe, unsubscribe)),
        4 => (0..TYPES.len()).prop_map(Step::Request),
        4 => Just(Step::Send),
        4 => Just(Step::Receive),
        1 => prop::option::of(prop::sample::select(Layout::ALL.to_vec())).prop_map(Step::Reconnect),
    ]
}

fn text(key: usize) -> Str {
    let all = NAMES.iter().chain(&ALIASES).chain(&["*"]);
    (*all.clone().nth(key).expect("in range")).into()
}

/// What a client knows of one type, across streams.
#[derive(Debug, Clone)]
struct ClientType {
    wildcard: bool,
    names: BTreeSet<Str>,
    held: BTreeMap<Str, (Str, Vec<Str>)>,
    rejected: BTreeSet<Str>,
}

struct Pair {
    cut: Cut,
    session: Session<Cut>,
    types: [ClientType; 2],
    /// Requests under way, per type, so that types overtake one another.
    requests: [VecDeque<Request>; 2],
    responses: VecDeque<Response>,
}

impl Pair {
    fn new(wildcard: [bool; 2]) -> Self {
        let cut = Cut::default().in_chunks_of(2);
        let state = |wildcard| ClientType {
            wildcard,
            names: BTreeSet::new(),
            held: BTreeMap::new(),
            rejected: BTreeSet::new(),
        };
        let mut pair = Self {
            session: Session::new(1, Viewer::node("n1"), cut.clone()),
            cut,
            types: wildcard.map(state),
            requests: Default::default(),
            responses: VecDeque::new(),
        };
        pair.open(None);
        pair
    }

    /// A new stream: everything in flight is gone, and each type says what it wants and holds.
    fn open(&mut self, digests: Option<Layout>) {
        self.session = Session::new(1, Viewer::node("n1"), self.cut.clone());
        self.responses.clear();
        for (at, ty) in TYPES.iter().enumerate() {
            let state = &mut self.types[at];
            if !state.wildcard {
                // Without the wildcard, what a client reports to hold counts as subscribed.
                state.names.extend(state.held.keys().cloned());
            }
            let mut request = Request {
                type_url: ty.type_url().into(),
                subscribe: state.names.iter().cloned().collect(),
                ..Request::default()
            };
            if state.wildcard {
                request.subscribe.push("*".into());
            } else if state.names.is_empty() {
                request.subscribe.push("*".into());
                request.unsubscribe.push("*".into());
            }
            let held = state.held.iter();
            request.initial_versions = match digests.filter(|_| state.wildcard) {
                Some(layout) => {
                    let pairs = held.map(|(name, (version, _))| (&**name, &**version));
                    let digests = Digests::of(layout, pairs);
                    [(layout.name().into(), digests.to_text().into())].into()
                }
                None => held
                    .map(|(name, (version, _))| (name.clone(), version.clone()))
                    .collect(),
            };
            self.requests[at] = VecDeque::from([request]);
        }
    }

    fn subscribe(&mut self, at: usize, subscribe: &[usize], unsubscribe: &[usize]) {
        let mut request = Request {
            type_url: TYPES[at].type_url().into(),
            ..Request::default()
        };
        let state = &mut self.types[at];
        for name in subscribe.iter().map(|key| text(*key)) {
            match &*name {
                "*" => state.wildcard = true,
                _ => drop(state.names.insert(name.clone())),
            }
            request.subscribe.push(name);
        }
        for name in unsubscribe.iter().map(|key| text(*key)) {
            match &*name {
                "*" => state.wildcard = false,
                _ => drop(state.names.remove(&name)),
            }
            request.unsubscribe.push(name);
        }
        state.forget_unwanted();
        self.requests[at].push_back(request);
    }

    fn deliver_request(&mut self, at: usize) -> bool {
        let Some(request) = self.requests[at].pop_front() else {
            return false;
        };
        self.session
            .on_request(&request, &self.cut)
            .expect("the stream goes on");
        true
    }

    fn send(&mut self) -> bool {
        let response = self.session.poll_send(&self.cut, Instant::now());
        self.responses.extend(response);
        !self.responses.is_empty()
    }

    fn receive(&mut self) -> bool {
        let Some(response) = self.responses.pop_front() else {
            return false;
        };
        let names = response
            .resources
            .iter()
            .map(|slot| &slot.name)
            .chain(&response.removed);
        assert_eq!(
            names.clone().collect::<BTreeSet<_>>().len(),
            names.count(),
            "a name twice"
        );
        let at = TYPES
            .iter()
            .position(|ty| ty.type_url() == &*response.type_url)
            .expect("a known type");
        let rejected = self.types[at].apply(&response);
        let error = (!rejected.is_empty()).then(|| Nack {
            message: rejected
                .iter()
                .map(|name| format!("{name}: poisoned"))
                .collect::<Vec<_>>()
                .join("; "),
        });
        self.requests[at].push_back(Request {
            type_url: response.type_url,
            nonce: response.nonce,
            error,
            ..Request::default()
        });
        true
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        loop {
            let mut moved = self.deliver_request(0) | self.deliver_request(1);
            moved |= self.send();
            moved |= self.receive();
            if !moved {
                return;
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Edit(edits) => self
                .cut
                .edit(edits.iter().map(RandomEdit::to_edit).collect::<Vec<_>>()),
            Step::Subscribe(at, subscribe, unsubscribe) => self.subscribe(*at, subscribe, unsubscribe),
            Step::Request(at) => drop(self.deliver_request(*at)),
            Step::Send => drop(self.send()),
            Step::Receive => drop(self.receive()),
            Step::Reconnect(digests) => self.open(*digests),
        }
    }

    /// The client holds the newest version of all it wants and may see, nothing else, and no poison.
    fn check(&self) {
        for (at, ty) in TYPES.iter().enumerate() {
            let state = &self.types[at];
            let wanted = self.cut.resources(*ty).filter(|slot| slot.scope.reaches("n1"));
            let wanted = wanted.filter(|slot| state.wants(&slot.name, &slot.aliases));
            let wanted: BTreeMap<_, _> = wanted
                .map(|slot| (slot.name.clone(), Str::from(&*slot.version)))
                .collect();
            for (name, version) in &wanted {
                let held = state.held.get(name).map(|(version, _)| version);
                if &**version == POISON {
                    assert!(held.is_none_or(|held| &**held != POISON), "{name} holds poison");
                } else {
                    assert_eq!(held, Some(version), "{name} of {ty:?}");
                }
            }
            // Of a name once rejected a client may keep an old form, whose aliases the server does not know any more.
            let mut surplus = state.held.keys().filter(|name| !state.rejected.contains(*name));
            let surplus = surplus.find(|name| !wanted.contains_key(*name));
            assert_eq!(surplus, None, "{ty:?} holds what it must not");
        }
    }
}

impl ClientType {
    fn wants(&self, name: &Str, aliases: &[Str]) -> bool {
        self.wildcard || self.names.contains(name) || aliases.iter().any(|alias| self.names.contains(alias))
    }

    /// A client drops what it does not want any more; the server need not say so.
    fn forget_unwanted(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.held = held
            .into_iter()
            .filter(|(name, (_, aliases))| self.wants(name, aliases))
            .collect();
    }

    /// Gives the names rejected.
    fn apply(&mut self, response: &Response) -> Vec<Str> {
        let mut rejected = Vec::new();
        for slot in response.resources.iter() {
            if &*slot.version == POISON {
                rejected.push(slot.name.clone());
                self.rejected.insert(slot.name.clone());
            } else if self.wants(&slot.name, &slot.aliases) {
                let value = (Str::from(&*slot.version), slot.aliases.to_vec());
                self.held.insert(slot.name.clone(), value);
            } else {
                self.held.remove(&slot.name);
            }
        }
        for name in &response.removed {
            self.held.remove(name);
            if let Some(bucket) = Bucket::named(name) {
                let told = |name: &Str| response.resources.iter().any(|slot| slot.name == *name);
                self.held.retain(|name, _| !bucket.holds(name) || told(name));
            }
        }
        rejected
    }
}

impl RandomEdit {
    fn to_edit(&self) -> Edit {
        let (ty, name) = (TYPES[self.ty], NAMES[self.name]);
        let Some(version) = self.version else {
            return Edit::Remove(ty, name.into());
        };
        // The version stands for the whole content, aliases included.
        let alias = self.alias.map(|alias| ALIASES[alias]);
        let version = match version {
            0 => POISON.to_owned(),
            version => format!("{version}{}", alias.unwrap_or_default()),
        };
        let mut slot = slot(name, &version);
        slot.aliases = alias.into_iter().map(Into::into).collect();
        if !self.visible {
            slot.scope = tulle_xds::snapshot::Scope::Workloads {
                nodes: std::sync::Arc::new(BTreeSet::from(["n2".into()])),
            };
        }
        Edit::Set(ty, slot)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_traffic_converges(
        wildcard in [any::<bool>(), any::<bool>()],
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut pair = Pair::new(wildcard);
        for step in &steps {
            pair.step(step);
        }
        pair.settle();
        pair.check();
    }
}
