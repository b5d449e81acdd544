//! `tulle completion`: completion scripts for shells.

use clap::CommandFactory as _;
use tulle_runtime::exit::Exit;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  source <(tulle completion bash)")]
pub(crate) struct Completion {
    shell: clap_complete::Shell,
}

pub(crate) fn run(completion: &Completion) -> Exit {
    let mut command = super::Tulle::command();
    let mut script = Vec::new();
    clap_complete::generate(completion.shell, &mut command, "tulle", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    Exit::Ok
}
