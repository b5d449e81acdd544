//! `tulle codes`: what an error code means, offline.

use anyhow::Context as _;
use tulle_model::Reason;
use tulle_runtime::exit::Exit;

/// Say what an error code means, or list them all
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tulle codes T0412")]
pub(crate) struct Codes {
    /// A code such as T0412, or a token such as `policy_denied`
    code: Option<String>,
}

pub(crate) fn run(codes: &Codes) -> anyhow::Result<Exit> {
    let Some(wanted) = &codes.code else {
        let mut table = crate::output::table(&["CODE", "TOKEN", "MEANING"]);
        for reason in Reason::ALL {
            table.add_row([reason.code(), reason.token(), reason.help()]);
        }
        println!("{table}");
        return Ok(Exit::Ok);
    };
    let matches = |reason: &&Reason| reason.code().eq_ignore_ascii_case(wanted) || reason.token() == wanted;
    let reason = Reason::ALL.iter().find(matches);
    let reason = reason.with_context(|| format!("{wanted} is no code or token; `tulle codes` lists them"))?;
    println!("{} {}\n  {}", reason.code(), reason.token(), reason.help());
    Ok(Exit::Ok)
}
