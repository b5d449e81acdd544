//! The exit codes of every Tulle program.

use std::process::{ExitCode, Termination};

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Ok = 0,
    /// Something failed while running; the log says what.
    Failed = 1,
    /// The configuration or the command line cannot be used (`EX_USAGE`).
    Usage = 64,
    /// A file that was given cannot be used (`EX_DATAERR`).
    BadInput = 65,
    /// Something was found that is not as it should be.
    Findings = 79,
}

impl Exit {
    /// The number the shell sees.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}
