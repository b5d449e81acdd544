//! A connection as its driver and its streams share it.

use std::sync::Arc;
use std::task::Context;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_model::Reason;

use super::core::{Core, End, Gone, Role};
use crate::hbone::error::{OpenError, StreamError};
use crate::hbone::liveness::{Slot, Vitals};
use crate::hbone::settings::Settings;

/// What all parts of a connection hold.
#[derive(Debug)]
pub(super) struct Conn {
    core: Mutex<Core>,
    driver: AtomicWaker,
    vitals: Arc<Vitals>,
}

impl Conn {
    pub(super) fn new(role: Role, settings: &Settings, vitals: &Arc<Vitals>) -> Arc<Self> {
        vitals.held().is_told();
        Arc::new(Self {
            core: Mutex::new(Core::new(role, settings, Instant::now())),
            driver: AtomicWaker::new(),
            vitals: Arc::clone(vitals),
        })
    }

    pub(super) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// For whoever is not the driver: wakes it if there is something to do.
    pub(super) fn with<R>(&self, call: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.lock();
        let result = call(&mut core);
        let woken = std::mem::take(&mut core.woken);
        let dirty = std::mem::take(&mut core.dirty);
        self.vitals.traffic().set_unsent(core.queued());
        self.vitals.held().tell(core.held());
        // Those who are woken want the lock as well.
        drop(core);
        if dirty {
            self.driver.wake();
        }
        for waker in woken {
            waker.wake();
        }
        result
    }

    /// For whoever changes nothing.
    pub(super) fn look<R>(&self, call: impl FnOnce(&Core) -> R) -> R {
        call(&self.core.lock())
    }

    /// For the driver.
    pub(super) fn drive<R>(&self, call: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.lock();
        let result = call(&mut core);
        let woken = std::mem::take(&mut core.woken);
        core.dirty = false;
        self.vitals.traffic().set_unsent(core.queued());
        self.vitals.held().tell(core.held());
        drop(core);
        for waker in woken {
            waker.wake();
        }
        result
    }

    pub(super) fn register(&self, cx: &Context<'_>) {
        self.driver.register(cx.waker());
    }
}

/// How a stream ended, in terms of the seam.
pub(super) fn explain(slot: &Slot, gone: Gone) -> StreamError {
    match gone {
        Gone::Reset(code) => slot.reset_or_lost(code.into()),
        Gone::Shed => StreamError::Cut(Reason::Overload),
        Gone::Closed => StreamError::Closed,
        Gone::Away => slot
            .lost()
            .unwrap_or_else(|| StreamError::Lost("the peer goes away".into())),
        Gone::Connection(end) => slot
            .lost()
            .unwrap_or_else(|| StreamError::Lost(Arc::clone(end.text()))),
    }
}

/// Why a stream was not opened, in terms of the seam.
pub(super) fn not_opened(vitals: &Vitals, gone: Gone) -> OpenError {
    if let Some(source) = vitals.refused() {
        return OpenError::Tls {
            source: Arc::clone(source),
        };
    }
    match gone {
        Gone::Reset(code) => OpenError::Reset(code.into()),
        // It held nothing yet, so it was not shed.
        Gone::Away | Gone::Closed | Gone::Shed => {
            vitals.retire();
            OpenError::GoingAway
        }
        Gone::Connection(End::Protocol(detail)) => OpenError::Http2 { detail },
        Gone::Connection(End::Lost(detail)) => OpenError::PeerLost {
            detail: vitals.lost().cloned().unwrap_or(detail),
        },
    }
}
