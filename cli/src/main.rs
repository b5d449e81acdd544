//! The `tulle` command: runs the components, shows and explains the mesh.

#![allow(clippy::print_stdout, reason = "what a command line prints is its result")]

#[macro_use]
mod output;

mod command;
mod demo;
mod edges;
mod prometheus;
mod reference;
mod running;

use clap::Parser as _;
use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;

use crate::command::component::Proxy;

/// Small, quick allocations dominate in the proxies. It does not ask for huge pages, and [`main`] refuses them.
#[cfg(not(feature = "heap-profile"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The one that can say who holds memory.
#[cfg(feature = "heap-profile")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Exit {
    // Where the system gives huge pages unasked, each 2 MiB of heap that is touched anywhere would be resident, which is
    // four times what an idle node proxy uses. Best effort: nothing but memory depends on it.
    let _ = nix::sys::prctl::set_thp_disable(true);
    if tulle_agent::cni::plugin::is_asked(&ProcessEnv) {
        // Container runtimes start a plugin by its file's name, without a word on the command line.
        return tulle_agent::cni::plugin::main(&ProcessEnv);
    }
    if let Some(proxy) = Proxy::alone(std::env::args_os().skip(1)) {
        return proxy.run();
    }
    match command::Tulle::try_parse() {
        Ok(tulle) => command::run(tulle),
        Err(error) => {
            // Help and version are asked for and go to standard output; anything else is misuse.
            let misuse = error.use_stderr();
            // Whoever does not read it to its end has seen enough.
            let _ = error.print();
            if misuse { Exit::Usage } else { Exit::Ok }
        }
    }
}
