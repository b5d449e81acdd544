//! `tulle analyze`: what is wrong in manifests, without a running mesh.

use std::path::PathBuf;

use anyhow::Context as _;
use tulle_runtime::exit::Exit;
use tulle_xds::analyze::{Finding, analyze};
use tulle_xds::snapshot::Severity;

use super::Reading;
use super::mesh::MeshFlags;
use crate::output::Form;

/// Check manifests for mistakes, before they are applied
///
/// Reads files and folders as the control plane would, and says what is refused, ignored, or stricter than written.
/// Exit codes: 0 nothing found; 65 a path cannot be read; 79 something was found.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tulle analyze\n  tulle analyze ./manifests policy.yaml\n  \
    tulle analyze -o json ./manifests"
)]
pub(crate) struct Analyze {
    /// Files and folders [default: the configuration folder]
    paths: Vec<PathBuf>,
    /// Configuration folder that is read when no path is given
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/tulle/config",
        env = "TULLE_CONFIG_DIR"
    )]
    config_dir: PathBuf,
    #[command(flatten)]
    mesh: MeshFlags,
    #[command(flatten)]
    reading: Reading,
}

pub(crate) async fn run(command: Analyze) -> anyhow::Result<Exit> {
    let default = [command.config_dir.clone()];
    let paths = if command.paths.is_empty() {
        &default[..]
    } else {
        &command.paths
    };
    let mesh = command.mesh.config(&command.reading.run_dir()).await;
    let found = match analyze(paths, &mesh).context("cannot read the manifests") {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(Exit::BadInput);
        }
    };
    print(&found, command.reading.output())
}

/// Prints findings; notes alone are no reason to fail.
pub(super) fn print(found: &[Finding], form: Form) -> anyhow::Result<Exit> {
    match form {
        Form::Json => crate::output::print(Form::Json, "analyze", found, || crate::output::table(&[]))?,
        Form::Table if found.is_empty() => println!("nothing found"),
        Form::Table => found.iter().for_each(|finding| println!("{finding}")),
    }
    let serious = found.iter().any(|finding| finding.severity > Severity::Note);
    Ok(if serious { Exit::Findings } else { Exit::Ok })
}
