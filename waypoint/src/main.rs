//! The waypoint as a program of its own. `tulle waypoint` is the same.

use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;

fn main() -> Exit {
    tulle_waypoint::run_process(&ProcessEnv)
}
