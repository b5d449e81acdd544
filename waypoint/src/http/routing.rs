//! Which rule a request takes, and what the rule does to it on its way up and to the answer on its way down.

use std::sync::Arc;

use http::header::{LOCATION, ORIGIN};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tulle_model::route::{PortRoutes, Routes, Selection};
use tulle_model::service::AppProtocol;
use tulle_model::{Reason, RequestHead, Str};

use super::body::ResponseBody;
use super::respond::Reply;
use super::rule::{Rule, Weighted};
use super::tries::Tries;
use crate::filter::cors;
use crate::snapshot::PortState;
use crate::upstream::backend::{Backend, BackendKey};

/// What a request takes.
#[derive(Debug, Clone)]
pub struct Way {
    /// The rule; `None` where there is none, and requests go to what they asked for.
    pub rule: Option<Arc<Rule>>,
    /// Bytes of the path that the rule's prefix covers.
    prefix: Option<usize>,
    /// It is a preflight of CORS that the rule answers.
    preflight: bool,
    /// The page that asks, if one does.
    origin: Option<HeaderValue>,
}

/// A backend that was drawn.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// Who serves it.
    pub backend: Arc<Backend>,
    /// Which of the rule's it is; `None` without a rule, and for a copy, which no backend of the rule is meant for.
    pub(super) weighted: Option<usize>,
}

/// Chooses the rule for a caller of a namespace.
///
/// # Errors
/// `route_not_found` if there are rules and none matches.
pub fn choose(
    rules: &PortRoutes<Arc<Rule>>,
    namespace: Option<&str>,
    head: &RequestHead,
) -> Result<Way, Reason> {
    let asked = cors::preflight_method(head);
    let (selection, borrowed) = match rules.of(namespace) {
        Routes::Http(router) => match (router.select(head), &asked) {
            // A rule that names its methods does not name OPTIONS: the one for what is asked for answers.
            (Selection::NotFound, Some(method)) => (router.select_as(head, method), true),
            (selection, _) => (selection, false),
        },
        Routes::None | Routes::Tls(_) | Routes::Tcp(_) => (Selection::Default, false),
    };
    let (rule, prefix) = match selection {
        Selection::Default => (None, None),
        Selection::NotFound => return Err(Reason::RouteNotFound),
        Selection::Rule(chosen) => (Some(Arc::clone(chosen.rule)), chosen.prefix),
    };
    let answers = rule.as_ref().is_some_and(|rule| rule.filters.cors.is_some());
    if borrowed && !answers {
        return Err(Reason::RouteNotFound);
    }
    Ok(Way {
        rule,
        prefix,
        preflight: asked.is_some() && answers,
        origin: answers.then(|| head.headers.get(ORIGIN).cloned()).flatten(),
    })
}

impl Way {
    /// Name of the rule.
    #[must_use]
    pub fn name(&self) -> Option<&Str> {
        self.rule.as_ref().map(|rule| &rule.name)
    }

    /// What the rule says of tries.
    #[must_use]
    pub fn tries(&self) -> &Tries {
        self.rule
            .as_ref()
            .map_or_else(|| Tries::plain(), |rule| &rule.tries)
    }

    /// What was asked for, by the policies that count for the rule.
    #[must_use]
    pub fn parent<'w>(&'w self, port: &'w PortState) -> &'w Arc<Backend> {
        let own = self.rule.as_ref().and_then(|rule| rule.parent.as_ref());
        own.unwrap_or(&port.backend)
    }

    /// The answer to a preflight, if it is one.
    #[must_use]
    pub fn preflight(&self, head: &RequestHead) -> Option<Response<ResponseBody>> {
        let cors = self.rule.as_ref()?.filters.cors.as_ref()?;
        if !self.preflight {
            return None;
        }
        let mut answer = Response::new(ResponseBody::default());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        *answer.headers_mut() = cors.preflight(head);
        Some(answer)
    }

    /// The answer of a rule that sends its requests elsewhere.
    ///
    /// # Errors
    /// If the rule can do nothing, or the place cannot be written.
    pub fn redirect(&self, head: &RequestHead, port: u16) -> Result<Option<Response<ResponseBody>>, Reply> {
        let Some(rule) = &self.rule else { return Ok(None) };
        if rule.broken.is_some() {
            return Err(self.failed(Reason::BackendInvalid));
        }
        let Some(redirect) = &rule.filters.redirect else {
            return Ok(None);
        };
        let location = redirect
            .location(head, self.prefix, port)
            .ok_or(Reason::BadPath)?;
        let mut answer = Response::new(ResponseBody::default());
        *answer.status_mut() = redirect.status();
        answer.headers_mut().insert(LOCATION, location);
        Ok(Some(answer))
    }

    /// Whether more than one backend can be drawn.
    #[must_use]
    pub fn has_choice(&self) -> bool {
        self.rule.as_ref().is_some_and(|rule| rule.backends().len() > 1)
    }

    /// Draws the backend. A session stays with its backend.
    ///
    /// # Errors
    /// `backend_invalid` if what was drawn does not exist or may not be used.
    pub fn draw(&self, port: &PortState, session: Option<u128>) -> Result<Drawn, Reply> {
        let Some(rule) = &self.rule else {
            return Ok(Drawn {
                backend: Arc::clone(&port.backend),
                weighted: None,
            });
        };
        let invalid = || self.failed(Reason::BackendInvalid);
        let held = session.and_then(|session| rule.holding(session));
        let place = held.or_else(|| rule.draw(rand::random())).ok_or_else(invalid)?;
        let backend = rule.backends()[place].backend.as_ref();
        let backend = backend
            .filter(|backend| rule.may_use(backend))
            .ok_or_else(invalid)?;
        Ok(Drawn {
            backend: Arc::clone(backend),
            weighted: Some(place),
        })
    }

    /// Whether the rule's or the backend's filters make anything else of a request.
    #[must_use]
    pub fn changes(&self, drawn: &Drawn) -> bool {
        let Some(rule) = &self.rule else { return false };
        let filters = &rule.filters;
        let of_backend = |place: usize| !rule.backends()[place].filters.request_headers.is_empty();
        !filters.request_headers.is_empty()
            || filters.rewrite.is_some()
            || drawn.weighted.is_some_and(of_backend)
    }

    /// What the rule's and the backend's filters make of a request.
    #[must_use]
    pub fn changed(&self, drawn: &Drawn, mut head: RequestHead) -> RequestHead {
        if let Some(rule) = &self.rule {
            let weighted = drawn.weighted.map(|place| &rule.backends()[place]);
            change(rule, weighted, &mut head, self.prefix);
        }
        head
    }

    /// Lets the backend's filters, then the rule's, then CORS change an answer. Answers of our own have no backend.
    pub fn finish(&self, drawn: Option<&Drawn>, headers: &mut HeaderMap) {
        let Some(rule) = &self.rule else { return };
        let weighted = drawn.and_then(|drawn| rule.backends().get(drawn.weighted?));
        let of_backend = weighted.iter().flat_map(|drawn| &drawn.filters.response_headers);
        for change in of_backend.chain(&rule.filters.response_headers) {
            change.apply(headers);
        }
        if let Some(cors) = &rule.filters.cors
            && !self.preflight
        {
            cors.mark(self.origin.as_ref(), headers);
        }
    }

    fn failed(&self, reason: Reason) -> Reply {
        Reply {
            because: self.rule.as_ref().map(|rule| rule.name.clone()),
            ..reason.into()
        }
    }
}

fn change(rule: &Rule, drawn: Option<&Weighted>, head: &mut RequestHead, prefix: Option<usize>) {
    for change in &rule.filters.request_headers {
        change.apply(&mut head.headers);
    }
    if let Some(rewrite) = &rule.filters.rewrite {
        rewrite.apply(head, prefix);
    }
    for change in drawn.iter().flat_map(|drawn| &drawn.filters.request_headers) {
        change.apply(&mut head.headers);
    }
}

fn protocol(backend: &Backend, port: u16) -> Option<AppProtocol> {
    let cluster = backend.cluster()?;
    let declared = cluster.service()?.ports.get(&port)?;
    Some(declared.app_protocol)
}

/// What is declared for the port of a backend; that of the front where nothing is.
#[must_use]
pub fn spoken(backend: &Backend, front: AppProtocol) -> AppProtocol {
    match &backend.key {
        BackendKey::Service(_, port) => protocol(backend, *port).unwrap_or(front),
        BackendKey::Workload(_) => front,
    }
}
