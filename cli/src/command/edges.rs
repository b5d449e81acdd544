//! `tulle edges`: who talks to whom.

use tulle_runtime::exit::Exit;

use super::Reading;

/// Show who talks to whom, with the true share of mutual TLS
#[derive(Debug, clap::Args)]
pub(crate) struct Edges {
    #[command(flatten)]
    reading: Reading,
}

pub(crate) async fn run(edges: Edges) -> anyhow::Result<Exit> {
    let (found, silent) = crate::edges::collect(&edges.reading.run_dir()).await?;
    crate::output::print(edges.reading.output(), "edges", &found, || {
        crate::edges::table(&found)
    })?;
    for missing in &silent {
        eprintln!("warning: does not answer: {missing}");
    }
    Ok(Exit::Ok)
}
