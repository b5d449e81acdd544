//! The task pages do what they say: their manifests are applied and their commands run, as a reader would, one page after
//! the other in one mesh.

pub(crate) mod page;
mod stage;

use std::path::Path;

use page::{Page, Step};
use stage::Stage;

/// Runs a page's steps; what is wrong with it, if anything.
async fn run(stage: &Stage, page: &Page) -> Result<(), String> {
    for step in &page.steps {
        match step {
            Step::File { name, text } => stage.save(name, text),
            Step::Command {
                line,
                number,
                expected,
            } => {
                let outcome = stage.expect(line, expected).await;
                outcome.map_err(|said| {
                    let expected = expected.join("\n");
                    format!(
                        "{}:{number}: {line}\nexpected:\n{expected}\nsaid:\n{said}",
                        page.name
                    )
                })?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_task_pages_says_what_the_page_says() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tasks"));
    let pages = page::read(folder);
    let commands = |page: &Page| page.steps.iter().any(|step| matches!(step, Step::Command { .. }));
    assert!(
        pages.len() >= 10 && pages.iter().all(commands),
        "each page has commands"
    );
    let stage = Stage::start().await;
    let mut wrong = Vec::new();
    for page in &pages {
        stage.clear();
        wrong.extend(run(&stage, page).await.err());
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n\n"), stage.logs());
}
