//! What a request needs for as long as it lives and the next one needs again: the state it waits in, and the map of the
//! fields that go up. Each thread keeps a few, so that a request allocates neither and an idle connection holds neither.

use std::cell::RefCell;
use std::thread::LocalKey;

use http::{HeaderMap, Response};
use tokio_util::sync::ReusableBoxFuture;

use crate::http::body::ResponseBody;

/// Of either, that one thread keeps.
const KEPT_MAX: usize = 32;
/// Fields that a map has room for and is kept.
const FIELDS_MAX: usize = 128;

type State = ReusableBoxFuture<'static, Response<ResponseBody>>;

thread_local! {
    static STATES: RefCell<Vec<State>> = const { RefCell::new(Vec::new()) };
    static HEADERS: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// Runs what answers a request, in a state of its own. Not an async function, whose own state would hold it once more.
pub(crate) fn run<F>(answering: F) -> impl Future<Output = Response<ResponseBody>> + Send
where
    F: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let mut state = match STATES.with_borrow_mut(Vec::pop) {
        Some(mut state) => {
            state.set(answering);
            state
        }
        None => ReusableBoxFuture::new(answering),
    };
    async move {
        let answer = (&mut state).await;
        // Whatever was in it has been dropped with its last step.
        keep(&STATES, state);
        answer
    }
}

/// An empty map with room for so many fields.
pub(crate) fn headers(room: usize) -> HeaderMap {
    match HEADERS.with_borrow_mut(Vec::pop) {
        Some(mut map) => {
            map.reserve(room);
            map
        }
        None => HeaderMap::with_capacity(room),
    }
}

/// Takes a map that is not needed any more.
pub(crate) fn give_headers(mut map: HeaderMap) {
    if map.capacity() == 0 || map.capacity() > FIELDS_MAX {
        return;
    }
    map.clear();
    keep(&HEADERS, map);
}

fn keep<T>(spares: &'static LocalKey<RefCell<Vec<T>>>, one: T) {
    // A thread that ends keeps nothing.
    let _ = spares.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(one);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_map_comes_back_empty_and_without_an_allocation() {
        let mut map = headers(20);
        map.insert("x-a", HeaderValue::from_static("1"));
        give_headers(map);
        let counted = allocation_counter::measure(|| {
            let map = headers(20);
            assert!(map.is_empty());
            give_headers(map);
        });
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        give_headers(HeaderMap::with_capacity(1_000));
        for _ in 0..=KEPT_MAX {
            give_headers(HeaderMap::with_capacity(8));
        }
        let kept = HEADERS.with_borrow(|kept| kept.iter().map(HeaderMap::capacity).collect::<Vec<_>>());
        assert_eq!(kept.len(), KEPT_MAX);
        assert!(kept.iter().all(|capacity| *capacity <= FIELDS_MAX));
    }

    #[tokio::test]
    async fn a_state_serves_the_next_request() {
        let answer = || async {
            tokio::task::yield_now().await;
            Response::new(ResponseBody::text("x".into()))
        };
        run(answer()).await;
        assert_eq!(STATES.with_borrow(Vec::len), 1);
        run(answer()).await;
        assert_eq!(STATES.with_borrow(Vec::len), 1);
    }
}
