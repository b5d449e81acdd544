//! Runs a target over the corpus that is kept for it, and over a bounded number of changes of it. The corpus test of each
//! crate with a target includes this file.

use std::path::Path;

/// Changed inputs per target. They are the same in every run, so a failure can be repeated; the fuzzer looks further.
const CHANGED_INPUTS: usize = 4096;

/// Changes of one input at most.
const CHANGES_MAX: u64 = 8;

/// Longest input that is made.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// Bytes that parsers stumble over: ends of ranges, signs, separators.
const TELLING: &[u8] = &[
    0, 1, 0x7f, 0x80, 0xff, b' ', b'\n', b'\r', b'"', b'%', b',', b'-', b'.', b'/', b'0', b':', b';', b'=',
    b'[', b']', b'{',
];

/// Gives every kept input to `run`, every prefix of it, and pseudo-random changes of all of them.
///
/// # Panics
/// If `run` panics, or nothing is kept under `corpus` (the folder `fuzz/corpus/<target>`).
pub(crate) fn replay(corpus: impl AsRef<Path>, run: fn(&[u8])) {
    let corpus = corpus.as_ref();
    let kept = inputs(corpus);
    for (name, input) in &kept {
        // Shown only when the target panics: it says which input did it.
        eprintln!("{name}");
        (0..=input.len()).for_each(|end| run(&input[..end]));
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..CHANGED_INPUTS {
        let input = changed(&kept, &mut random);
        let shown = Shown(&input);
        run(shown.0);
    }
}

/// What is kept, in the order of names.
fn inputs(corpus: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus)
        .unwrap_or_else(|error| panic!("the corpus {} must be there: {error}", corpus.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a folder that was opened can be listed").path();
            let input = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.display().to_string(), input)
        })
        .collect();
    assert!(!inputs.is_empty(), "{} is empty", corpus.display());
    inputs.sort();
    inputs
}

/// One of the kept inputs, changed here and there.
fn changed(kept: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut input = random.of(kept).1.clone();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.place(input.len());
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = *random.of(TELLING),
            2 => input.insert(at, *random.of(TELLING)),
            3 => input.truncate(at),
            4 => drop(input.drain(at..random.place_from(at, input.len()))),
            5 => {
                let again = input[at..random.place_from(at, input.len())].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let other = &random.of(kept).1;
                let from = random.place(other.len());
                let piece = other[from..random.place_from(from, other.len())].to_vec();
                input.splice(at..at, piece);
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

/// Says which changed input made the target panic.
struct Shown<'a>(&'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("changed input: \"{}\"", self.0.escape_ascii());
        }
    }
}

/// A xorshift generator: no two crates need to agree on one from outside for this.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }

    /// From 0 to `length`, both possible.
    fn place(&mut self, length: usize) -> usize {
        let bound = u64::try_from(length).unwrap_or(u64::MAX - 1) + 1;
        usize::try_from(self.below(bound)).unwrap_or(length)
    }

    fn place_from(&mut self, from: usize, to: usize) -> usize {
        from + self.place(to - from)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.place(list.len() - 1)]
    }
}
