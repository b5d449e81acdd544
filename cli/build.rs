//! Packs the program's relocations where the loader of this system can read them so.

#![allow(
    clippy::disallowed_methods,
    reason = "cargo tells a build script all it knows in variables"
)]

use std::env;
use std::process::Command;

/// The first glibc whose loader reads them (its release notes call it `DT_RELR`).
const READS_PACKED: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A program runs where glibc is as new as where it was built, as always. Built for another machine, nothing is known.
    let is_native = env::var("HOST") == env::var("TARGET");
    if is_native && glibc().is_some_and(|version| version >= READS_PACKED) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this system's glibc; `None` where it has another C library.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
