//! A tunnel in one process, row by row, beside all that it is compared with: `tulle_benches::rows`.
//!
//! `cargo bench -p tulle-benches --bench tunnel -- <part of a row's name>` runs some rows; `cargo xtask bench process` runs
//! the same with the profile of the images.

use tulle_benches::rows;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    rows::run(arguments.find(|argument| !argument.starts_with("--")).as_deref());
}
