//! Whether a tunnel carries less as worker threads are added, measured (`tulle_benches::workers`) and simulated for cores
//! that this machine may not have (`tulle_benches::simulation`). `cargo bench -p tulle-benches --bench workers [simulation]`.

use tulle_benches::{simulation, workers};

fn main() {
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    simulation::print();
    if !std::env::args().any(|argument| argument == "simulation") {
        workers::run();
    }
}
