//! The node proxy as a program of its own. `tulle ztunnel` is the same.

use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;

fn main() -> Exit {
    tulle_ztunnel::run_process(&ProcessEnv)
}
