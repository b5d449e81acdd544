//! The receive window of a whole connection: what streams hold for slow readers must not starve their neighbours.
//!
//! HTTP/2 bounds each stream and all of them together. Bytes that wait for a slow reader count against both until they
//! are taken, so a few stalled streams would use up the connection. The connection's window therefore grows by what is
//! held, in steps, and shrinks again; memory stays bounded by the streams' own windows.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// The window never grows by more than this.
const GROWTH_MAX: usize = 512 * 1024 * 1024;

/// What the streams of one connection hold, and by how much its window was raised for it.
#[derive(Debug)]
pub(super) struct Window {
    base: usize,
    held: AtomicUsize,
    granted: AtomicUsize,
    due: AtomicBool,
    driver: AtomicWaker,
}

impl Window {
    /// A connection whose window is `base` bytes while nothing is held.
    pub(super) fn new(base: u32) -> Self {
        Self {
            base: base as usize,
            held: AtomicUsize::new(0),
            granted: AtomicUsize::new(0),
            due: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        }
    }

    fn step(&self) -> usize {
        self.base / 4
    }

    /// A stream holds `bytes` more.
    pub(super) fn hold(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > self.granted.load(Ordering::Relaxed) + self.step() {
            self.wake();
        }
    }

    /// A stream holds `bytes` less.
    pub(super) fn let_go(&self, bytes: usize) {
        let held = self.held.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if held + 2 * self.step() < self.granted.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    fn wake(&self) {
        self.due.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// For the driver: the window the connection is to have, when that has changed.
    pub(super) fn poll_target(&self, cx: &Context<'_>) -> Poll<u32> {
        self.driver.register(cx.waker());
        if !self.due.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let grant = rounded(self.held.load(Ordering::Relaxed), self.step());
        if self.granted.swap(grant, Ordering::Relaxed) == grant {
            return Poll::Pending;
        }
        let target = u32::try_from(self.base + grant).unwrap_or(u32::MAX >> 1);
        Poll::Ready(target.min(u32::MAX >> 1))
    }
}

fn rounded(held: usize, step: usize) -> usize {
    held.next_multiple_of(step.max(1)).min(GROWTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::noop_waker;

    fn target(window: &Window) -> Option<u32> {
        match window.poll_target(&Context::from_waker(&noop_waker())) {
            Poll::Ready(target) => Some(target),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_window_follows_what_is_held_in_steps() {
        let window = Window::new(400);
        assert_eq!(target(&window), None);
        window.hold(100);
        assert_eq!(target(&window), None, "a step may be held without more");
        window.hold(50);
        assert_eq!(target(&window), Some(600));
        window.hold(100);
        assert_eq!(target(&window), None);
        window.hold(400);
        assert_eq!(target(&window), Some(1100));
        window.let_go(100);
        assert_eq!(target(&window), None);
        window.let_go(550);
        assert_eq!(target(&window), Some(400));
    }

    #[test]
    fn growth_is_bounded() {
        let window = Window::new(16 * 1024 * 1024);
        window.hold(usize::MAX / 4);
        assert_eq!(target(&window), Some((16 + 512) * 1024 * 1024));
    }
}
