//! Errors on purpose: a delay, then an answer instead of going on. Drawn by chance, each for itself.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tulle_model::name::Str;
use tulle_model::policy::matches::Matches;
use tulle_model::policy::traffic::{Abort, Fault};
use tulle_model::reason::http::grpc_status;
use tulle_model::request::{RequestHead, Source};

/// Longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(300);
/// Requests of the process that are held back at once. Above that there is no delay, and a counter rises.
pub const DELAYED_MAX: u32 = 1_000;
/// What shares are counted in.
const WHOLE: u32 = 1_000_000;

/// A fault in the form it is drawn from.
#[derive(Debug)]
pub struct Injector {
    matches: Matches,
    source_namespaces: Vec<Str>,
    delay: Option<(Duration, u32)>,
    abort: Option<(Abort, u32)>,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Injected {
    /// It waits for so long.
    pub delay: Option<Duration>,
    /// It is answered instead of going on.
    pub abort: Option<Aborted>,
}

/// An answer on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted {
    /// Status of HTTP.
    pub status: u16,
    /// Status of gRPC; set for calls of gRPC, which see nothing else.
    pub grpc: Option<u32>,
}

impl Injector {
    /// Compiles a fault.
    #[must_use]
    pub fn new(of: &Fault) -> Self {
        let delay = of.delay.filter(|delay| !delay.is_zero());
        Self {
            matches: Matches::new(&of.matches),
            source_namespaces: of.source_namespaces.clone(),
            delay: delay.map(|delay| (delay.min(DELAY_MAX), of.delay_ppm)),
            abort: of.abort.map(|abort| (abort, of.abort_ppm)),
        }
    }

    /// What happens to a request. `random(n)` is uniform in `0..n`. No header of the request switches anything on
    /// that the policy does not ask for.
    pub fn draw(&self, source: &Source, head: &RequestHead, mut random: impl FnMut(u32) -> u32) -> Injected {
        if !self.is_for(source, head) {
            return Injected::default();
        }
        let mut hit = |ppm: u32| random(WHOLE) < ppm;
        let delay = self.delay.filter(|(_, ppm)| hit(*ppm));
        let abort = self.abort.filter(|(_, ppm)| hit(*ppm));
        Injected {
            delay: delay.map(|(delay, _)| delay),
            abort: abort.map(|(abort, _)| Aborted::new(abort, head.is_grpc())),
        }
    }

    fn is_for(&self, source: &Source, head: &RequestHead) -> bool {
        let namespace = source.identity.as_ref().map(|identity| &identity.namespace);
        let is_source = self.source_namespaces.is_empty()
            || namespace.is_some_and(|namespace| self.source_namespaces.contains(namespace));
        is_source && self.matches.contain(head)
    }
}

impl Aborted {
    fn new(abort: Abort, is_grpc: bool) -> Self {
        match (abort, is_grpc) {
            (Abort::Http(status), false) => Self { status, grpc: None },
            (Abort::Http(status), true) => Self {
                status: 200,
                grpc: Some(grpc_status(status)),
            },
            (Abort::Grpc(status), true) => Self {
                status: 200,
                grpc: Some(status),
            },
            // A plain request has no status of gRPC to see: the one of HTTP that means the same.
            (Abort::Grpc(status), false) => Self {
                status: http_status(status),
                grpc: None,
            },
        }
    }
}

/// The status of HTTP that means what a status of gRPC does.
fn http_status(grpc: u32) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// How many requests of the process are held back.
#[derive(Debug, Default)]
pub struct Delays {
    held: AtomicU32,
    skipped: AtomicU64,
}

/// A place among the requests that are held back; it ends with the wait, or with the client.
#[derive(Debug)]
pub struct Held<'a>(&'a Delays);

impl Delays {
    /// A place; `None` if all are taken: the request then goes on at once.
    pub fn hold(&self) -> Option<Held<'_>> {
        let more = |held: u32| (held < DELAYED_MAX).then_some(held + 1);
        match self.held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more) {
            Ok(_) => Some(Held(self)),
            Err(_) => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Waits for so long, unless too many wait already. Says whether it waited. The wait ends when this is dropped.
    pub async fn wait(&self, delay: Duration) -> bool {
        let Some(_held) = self.hold() else { return false };
        tokio::time::sleep(delay).await;
        true
    }

    /// Requests that are held back now.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    /// Requests that were not held back because too many were.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_model::Identity;
    use tulle_model::testing::{get, grpc_call, prefix};

    fn source(namespace: &str) -> Source {
        Source {
            identity: Some(Identity::new("td", namespace, "web")),
            ip: "10.0.0.7".parse().unwrap(),
            remote_ip: "10.0.0.7".parse().unwrap(),
        }
    }

    fn fault() -> Fault {
        Fault {
            delay: Some(Duration::from_secs(2)),
            delay_ppm: 500_000,
            abort: Some(Abort::Http(503)),
            abort_ppm: 100_000,
            ..Fault::default()
        }
    }

    /// Draws with these numbers, one after the other.
    fn draw(fault: &Fault, head: &RequestHead, numbers: &[u32]) -> Injected {
        let mut numbers = numbers.iter();
        let injector = Injector::new(fault);
        injector.draw(&source("shop"), head, |whole| {
            assert_eq!(whole, 1_000_000);
            *numbers.next().expect("no more draws than parts")
        })
    }

    #[test]
    fn delay_and_abort_are_drawn_each_for_itself() {
        let delay = Some(Duration::from_secs(2));
        let abort = Some(Aborted {
            status: 503,
            grpc: None,
        });
        for (numbers, expect) in [
            ([499_999, 99_999], Injected { delay, abort }),
            ([499_999, 100_000], Injected { delay, abort: None }),
            ([500_000, 99_999], Injected { delay: None, abort }),
            ([500_000, 100_000], Injected::default()),
        ] {
            assert_eq!(draw(&fault(), &get("/"), &numbers), expect);
        }
    }

    #[test]
    fn a_share_that_is_not_set_is_none() {
        let never = Fault {
            delay_ppm: 0,
            abort_ppm: 0,
            ..fault()
        };
        assert_eq!(draw(&never, &get("/"), &[0, 0]), Injected::default());
        let always = Fault {
            delay_ppm: 1_000_000,
            ..never
        };
        assert!(draw(&always, &get("/"), &[999_999, 0]).delay.is_some());
    }

    #[test]
    fn callers_of_grpc_see_a_status_of_grpc() {
        let aborts = |abort, head: &RequestHead| {
            let fault = Fault {
                delay: None,
                abort: Some(abort),
                abort_ppm: 1_000_000,
                ..fault()
            };
            draw(&fault, head, &[0]).abort.unwrap()
        };
        let aborted = |status, grpc| Aborted { status, grpc };
        let call = grpc_call("/a.B/C");
        assert_eq!(aborts(Abort::Grpc(8), &call), aborted(200, Some(8)));
        assert_eq!(aborts(Abort::Http(503), &call), aborted(200, Some(14)));
        assert_eq!(aborts(Abort::Http(418), &call), aborted(200, Some(2)));
        assert_eq!(aborts(Abort::Http(418), &get("/")), aborted(418, None));
        assert_eq!(aborts(Abort::Grpc(14), &get("/")), aborted(503, None));
    }

    #[test]
    fn others_than_those_it_is_for_pass() {
        let fault = Fault {
            matches: vec![prefix("/api")],
            source_namespaces: vec!["shop".into()],
            delay_ppm: 1_000_000,
            abort: None,
            ..fault()
        };
        let delayed = |namespace: &str, path: &str| {
            let injector = Injector::new(&fault);
            injector
                .draw(&source(namespace), &get(path), |_| 0)
                .delay
                .is_some()
        };
        assert!(delayed("shop", "/api/a"));
        assert!(!delayed("dev", "/api/a"));
        assert!(!delayed("shop", "/"));
    }

    #[test]
    fn a_delay_is_bounded() {
        let long = Fault {
            delay: Some(Duration::from_secs(3600)),
            delay_ppm: 1_000_000,
            abort: None,
            ..fault()
        };
        assert_eq!(draw(&long, &get("/"), &[0]).delay, Some(DELAY_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_its_client_leaves() {
        let delays = Delays::default();
        let mut wait = Box::pin(delays.wait(Duration::from_secs(300)));
        assert!(futures_util::poll!(&mut wait).is_pending());
        assert_eq!(delays.held(), 1);
        drop(wait);
        assert_eq!(delays.held(), 0);
        assert!(delays.wait(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_waits_at_once_are_no_waits() {
        let delays = Delays::default();
        let held: Vec<_> = (0..DELAYED_MAX).map(|_| delays.hold().unwrap()).collect();
        assert!(!delays.wait(Duration::from_secs(1)).await);
        assert_eq!(delays.skipped(), 1);
        drop(held);
        assert!(delays.wait(Duration::from_secs(1)).await);
    }
}
