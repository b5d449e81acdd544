//! A scripted client of one stream: says what it is told to, and checks what comes back.

use std::collections::BTreeSet;
use std::time::Instant;

use tulle_proto::resume::{Digests, Layout};
use tulle_xds::serve::session::{End, Nack, Request, Response, Session};
use tulle_xds::serve::viewer::Viewer;
use tulle_xds::snapshot::ResourceType;

use crate::store::{Cut, Edit};

pub(crate) struct Peer {
    pub(crate) cut: Cut,
    pub(crate) session: Session<Cut>,
    nonces: BTreeSet<String>,
    acks: bool,
}

pub(crate) fn peer(edits: impl IntoIterator<Item = Edit>) -> Peer {
    let mut cut = Cut::default();
    cut.edit(edits);
    Peer {
        session: Session::new(7, Viewer::node("n1"), cut.clone()),
        cut,
        nonces: BTreeSet::new(),
        acks: true,
    }
}

pub(crate) fn request(ty: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) -> Request {
    Request {
        type_url: ty.type_url().into(),
        subscribe: subscribe.iter().map(|name| (*name).into()).collect(),
        unsubscribe: unsubscribe.iter().map(|name| (*name).into()).collect(),
        ..Request::default()
    }
}

/// With what the client holds from before, as `name@version`.
pub(crate) fn holding(mut request: Request, held: &[&str]) -> Request {
    let held = held
        .iter()
        .map(|text| text.split_once('@').expect("name@version"));
    request.initial_versions = held
        .map(|(name, version)| (name.into(), version.into()))
        .collect();
    request
}

/// With digests of what the client holds from before.
pub(crate) fn resuming(mut request: Request, layout: Layout, held: &[&str]) -> Request {
    let text = digests(layout, held).to_text();
    request.initial_versions = [(layout.name().into(), text.into())].into();
    request
}

/// Of `name@version`.
pub(crate) fn digests(layout: Layout, held: &[&str]) -> Digests {
    let held = held
        .iter()
        .map(|text| text.split_once('@').expect("name@version"));
    Digests::of(layout, held)
}

impl Peer {
    /// The server tells whole tables in chunks of this many.
    pub(crate) fn in_chunks_of(mut self, resources: usize) -> Self {
        self.cut = self.cut.in_chunks_of(resources);
        self.session = Session::new(7, Viewer::node("n1"), self.cut.clone());
        self
    }

    /// A new stream to the same server.
    pub(crate) fn reconnect(&mut self) {
        self.session = Session::new(7, Viewer::node("n1"), self.cut.clone());
        self.nonces.clear();
    }

    pub(crate) fn never_acks(mut self) -> Self {
        self.acks = false;
        self
    }

    pub(crate) fn edit(&mut self, edits: impl IntoIterator<Item = Edit>) {
        self.cut.edit(edits);
    }

    pub(crate) fn say(&mut self, request: &Request) {
        self.session
            .on_request(request, &self.cut)
            .expect("the stream goes on");
    }

    pub(crate) fn say_and_end(&mut self, request: &Request) -> End {
        self.session
            .on_request(request, &self.cut)
            .expect_err("the stream ends")
    }

    pub(crate) fn subscribe(&mut self, ty: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) {
        self.say(&request(ty, subscribe, unsubscribe));
    }

    /// The next response, unanswered.
    pub(crate) fn receive(&mut self) -> Option<Response> {
        let response = self.session.poll_send(&self.cut, Instant::now())?;
        assert!(!response.nonce.is_empty());
        assert!(self.nonces.insert(response.nonce.to_string()), "nonce used twice");
        let names = response
            .resources
            .iter()
            .map(|slot| &slot.name)
            .chain(&response.removed);
        let mut told = BTreeSet::new();
        names.for_each(|name| assert!(told.insert(name.clone()), "{name} twice in one response"));
        Some(response)
    }

    pub(crate) fn ack(&mut self, response: &Response) {
        self.answer(response, None);
    }

    pub(crate) fn nack(&mut self, response: &Response, message: &str) {
        let nack = Nack {
            message: message.to_owned(),
        };
        self.answer(response, Some(nack));
    }

    fn answer(&mut self, response: &Response, error: Option<Nack>) {
        self.say(&Request {
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            error,
            ..Request::default()
        });
    }

    /// Expects exactly this response, resources as `name@version` in order, and answers it.
    pub(crate) fn expect(&mut self, ty: ResourceType, resources: &[&str], removed: &[&str]) -> Response {
        let response = self.receive().expect("a response");
        assert_eq!(&*response.type_url, ty.type_url());
        let sent = response
            .resources
            .iter()
            .map(|slot| format!("{}@{}", slot.name, slot.version));
        assert_eq!(sent.collect::<Vec<_>>(), resources);
        let gone = response.removed.iter().map(|name| &**name);
        assert_eq!(gone.collect::<Vec<_>>(), removed);
        if self.acks {
            self.ack(&response);
        }
        response
    }

    #[track_caller]
    pub(crate) fn expect_silence(&mut self) {
        let more = self.receive();
        assert!(more.is_none(), "{more:?}");
    }
}
