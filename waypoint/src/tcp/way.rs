//! Which rule a stream takes, and which backend the rule draws for it. Pure: it is decided once per connection.

use std::sync::Arc;

use tulle_model::route::{PortRoutes, Routes};

use crate::detect::Greeting;
use crate::http::rule::Rule;
use crate::upstream::backend::Backend;

/// There are rules, and none is for this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no rule of the port is for this stream")]
pub(crate) struct NoRule;

/// The rule; `None` where there is none, and streams go to what they asked for.
pub(crate) fn choose<'a>(
    rules: &'a PortRoutes<Arc<Rule>>,
    namespace: Option<&str>,
    greeting: &Greeting,
) -> Result<Option<&'a Arc<Rule>>, NoRule> {
    match rules.of(namespace) {
        Routes::Tcp(router) => Ok(Some(router.rule())),
        Routes::Tls(router) if greeting.is_tls => router
            .select(greeting.server_name.as_deref())
            .map(Some)
            .ok_or(NoRule),
        Routes::Tls(_) => Err(NoRule),
        // Rules of requests do not apply to what is declared to be none.
        Routes::Http(_) | Routes::None => Ok(None),
    }
}

/// The backend that a uniform random number draws; `None` if it does not exist or may not be used.
pub(super) fn backend<'a>(
    rule: Option<&'a Arc<Rule>>,
    default: &'a Arc<Backend>,
    random: u64,
) -> Option<&'a Arc<Backend>> {
    let Some(rule) = rule else {
        return Some(default);
    };
    if rule.broken.is_some() {
        return None;
    }
    let drawn = rule.backends().get(rule.draw(random)?)?;
    drawn.backend.as_ref().filter(|backend| rule.may_use(backend))
}
