//! The `tulle` command: runs the components, shows and explains the mesh.

#![allow(clippy::print_stdout, reason = "what a command line prints is its result")]

mod command;
mod demo;
mod edges;
mod output;
mod prometheus;
mod reference;
mod running;

use clap::Parser as _;
use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;

/// Small, quick allocations dominate in the proxies.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Exit {
    if tulle_agent::cni::plugin::is_asked(&ProcessEnv) {
        // Container runtimes start a plugin by its file's name, without a word on the command line.
        return tulle_agent::cni::plugin::main(&ProcessEnv);
    }
    match command::Tulle::try_parse() {
        Ok(tulle) => command::run(tulle),
        Err(error) => {
            // Help and version are asked for and go to standard output; anything else is misuse.
            let asked = !error.use_stderr();
            if error.print().is_err() || !asked {
                Exit::Usage
            } else {
                Exit::Ok
            }
        }
    }
}
