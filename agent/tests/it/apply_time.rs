//! A measurement, run by name: how long it takes to put the rules into a namespace that has none.
//!
//! `cargo test -p tulle-agent --test it -- --ignored --nocapture apply_time`

use std::time::{Duration, Instant};

use tulle_agent::rules::plan::{self, Variant};
use tulle_agent::rules::{Backend, Comparison};
use tulle_linux::NetNs;

const NAMESPACES: usize = 20;

/// Smallest, middle and largest.
fn spread(mut times: Vec<Duration>) -> [Duration; 3] {
    times.sort();
    [times[0], times[times.len() / 2], times[times.len() - 1]]
}

#[tokio::test]
#[ignore = "a measurement, for a machine that does nothing else"]
async fn apply_time_of_each_backend_on_fresh_namespaces() {
    let table = plan::capture(&Variant {
        dns: true,
        ..Variant::default()
    });
    for backend in [Backend::Netlink, Backend::Nft] {
        let rules = backend.rules();
        let [mut first, mut again, mut compared] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..NAMESPACES {
            let netns = NetNs::create().expect("namespaces can be made");
            let start = Instant::now();
            rules.apply(&netns, &table).await.unwrap();
            first.push(start.elapsed());
            let start = Instant::now();
            rules.apply(&netns, &table).await.unwrap();
            again.push(start.elapsed());
            let start = Instant::now();
            assert_eq!(rules.compare(&netns, &table).await.unwrap(), Comparison::Equal);
            compared.push(start.elapsed());
        }
        for (what, times) in [("apply", first), ("apply again", again), ("compare", compared)] {
            let [least, middle, most] = spread(times);
            eprintln!("{backend:?} {what}: median {middle:.1?} ({least:.1?} to {most:.1?})");
        }
    }
}
