//! The control plane as a program of its own.

use clap::Parser;
use tulle_runtime::config::ProcessEnv;
use tulle_runtime::exit::Exit;
use tulle_runtime::parent;

#[derive(Debug, Parser)]
#[command(name = "tulle-xds", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    config: tulle_xds::Config,
}

fn main() -> Exit {
    match Cli::try_parse() {
        Ok(cli) => {
            parent::watch(&ProcessEnv);
            tulle_xds::main(cli.config)
        }
        Err(error) => {
            // Help and version are asked for and go to standard output; anything else is misuse.
            let misuse = error.use_stderr();
            if error.print().is_err() || misuse {
                Exit::Usage
            } else {
                Exit::Ok
            }
        }
    }
}
