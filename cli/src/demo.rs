//! The local mesh that `tulle up --demo` shows: a world, an application, a mesh put under it while it runs.

pub(crate) mod application;
mod pods;
mod progress;
pub(crate) mod service;
mod stats;
mod story;

pub(crate) use story::Story;

use std::path::Path;

use anyhow::Context as _;

/// Writes a file in one step, so that nobody reads half of it.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("yaml~");
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
