//! Whether a new pod may start while no proxy is connected: for as long as one is being replaced.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::enroll::task::PROXY_GRACE;
use crate::zds::Proxies;

/// Remembers what kind of proxy was connected last. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Grace {
    /// Whether the last one takes our listeners; nothing before the first.
    took_sockets: Arc<Mutex<Option<bool>>>,
}

impl Grace {
    /// Takes note of who is connected.
    pub fn note(&self, proxies: &Proxies) {
        if let Some(newest) = proxies.connected.last() {
            *self.took_sockets.lock() = Some(newest.takes_sockets);
        }
    }

    /// Whether a proxy that takes our listeners was connected a moment ago: what connects meanwhile waits in them. One
    /// that opens its own leaves nothing to wait in.
    #[must_use]
    pub fn lasts(&self, proxies: &Proxies) -> bool {
        alone_lately(proxies) && *self.took_sockets.lock() == Some(true)
    }

    /// Whether the first proxy since the agent's start may still be on its way.
    #[must_use]
    pub fn awaits_first(&self, proxies: &Proxies) -> bool {
        alone_lately(proxies) && self.took_sockets.lock().is_none()
    }
}

fn alone_lately(proxies: &Proxies) -> bool {
    proxies.connected.is_empty() && proxies.alone_since + PROXY_GRACE > Instant::now()
}
