//! What is read by `head` ends early, and that is no fault.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};

/// Runs a command whose output nobody reads; its exit code, and what it complains of.
fn unread(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tulle"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), complaint)
}

#[test]
fn a_command_whose_reader_is_gone_ends_as_it_would_have() {
    for arguments in [
        &["reference", "cli"][..],
        &["reference", "errors"],
        &["codes"],
        &["completion", "bash"],
        &["--help"],
        &["ztunnel", "--help"],
    ] {
        assert_eq!(unread(arguments), (Some(0), String::new()), "{arguments:?}");
    }
}
