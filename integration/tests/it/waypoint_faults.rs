//! The faults of waypoints, in their short form: what `cargo xtask scenario` measures.

use tulle_integration::scenario::{Scale, all};

/// Runs a scenario shortly; every target must hold.
async fn holds(id: &str) {
    let scenario = all().into_iter().find(|scenario| scenario.id == id).unwrap();
    let figure = (scenario.run)(Scale::Short).await;
    assert!(
        figure.missed().is_empty(),
        "{figure}\n{:#?}\n{:#?}",
        figure.missed(),
        figure.notes()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f25_nothing_that_only_a_waypoint_can_check_reaches_the_application_around_it() {
    holds("F25").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f26_replacing_a_waypoint_fails_no_request() {
    holds("F26").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f34_nobody_speaks_for_another() {
    holds("F34").await;
}
