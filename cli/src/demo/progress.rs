//! What is going on, for people who wait.

use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Prints one line per finished step, and what is being done meanwhile on a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    spinner: Option<ProgressBar>,
}

impl Progress {
    /// Nothing is printed when `quiet`.
    pub(crate) fn new() -> Self {
        Self { spinner: None }
    }

    /// Says what is being done now.
    pub(crate) fn doing(&mut self, what: &str) {
        self.clear();
        if stdout().is_terminal() {
            let style = ProgressStyle::with_template(" {spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner()
                .with_style(style)
                .with_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    /// Says what has been done.
    pub(crate) fn done(&mut self, what: &str) {
        self.clear();
        println!(" ✓ {what}");
    }

    /// Says something that one should know.
    pub(crate) fn note(&mut self, what: &str) {
        self.clear();
        println!("   {what}");
    }

    fn clear(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}
