//! The node proxy as a program of its own. `tulle ztunnel` is the same.

use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;
use tulle_runtime::parent;
use tulle_ztunnel::supervise;

fn main() -> Exit {
    parent::watch(&ProcessEnv);
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let given = arguments.len();
    arguments.retain(|argument| argument != "--supervise");
    if arguments.len() == given {
        return tulle_ztunnel::run_process(&ProcessEnv);
    }
    supervise::run_process(&ProcessEnv, arguments)
}
