//! Runs a target over the corpus that is kept for it. The corpus test of each crate with a target includes this file.

use std::path::Path;

/// Gives every kept input to `run`, and every prefix of it.
///
/// # Panics
/// If `run` panics, or nothing is kept under `corpus` (the folder `fuzz/corpus/<target>`).
pub(crate) fn replay(corpus: impl AsRef<Path>, run: fn(&[u8])) {
    let corpus = corpus.as_ref();
    let entries = std::fs::read_dir(corpus)
        .unwrap_or_else(|error| panic!("the corpus {} must be there: {error}", corpus.display()));
    let mut inputs = 0;
    for entry in entries {
        let path = entry.expect("a folder that was opened can be listed").path();
        let input = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Shown only when the target panics: it says which input did it.
        eprintln!("{}", path.display());
        (0..=input.len()).for_each(|end| run(&input[..end]));
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", corpus.display());
}
