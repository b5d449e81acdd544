//! A process that must not outlive whoever started it: it ends when its standard input does.

use std::io::{self, Read as _};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::Env;

/// How long a process may drain once whoever started it is gone.
const END_WAIT: Duration = Duration::from_secs(1);

/// What a process does when its standard input ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutParent {
    /// Nothing: it goes on.
    GoOn,
    /// It ends at once.
    End,
    /// It takes nothing new, and keeps what it has.
    Drain,
}

impl WithoutParent {
    /// What `TULLE_EXIT_WITH_STDIN` says: `true`, `drain`, or anything else for nothing.
    #[must_use]
    pub fn of(env: &dyn Env) -> Self {
        match env.var("TULLE_EXIT_WITH_STDIN").as_deref() {
            Some("true") => Self::End,
            Some("drain") => Self::Drain,
            _ => Self::GoOn,
        }
    }
}

/// Watches standard input, if the environment asks for it, for as long as the process lives.
pub fn watch(env: &dyn Env) {
    let told = WithoutParent::of(env);
    if told == WithoutParent::GoOn {
        return;
    }
    std::thread::spawn(move || {
        let mut ignored = [0; 1024];
        // End and error mean the same: nobody is there any more.
        while io::stdin().read(&mut ignored).is_ok_and(|read| read > 0) {}
        let _ = kill(Pid::this(), Signal::SIGTERM);
        if told == WithoutParent::End {
            #[allow(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
            std::thread::sleep(END_WAIT);
            // The second call ends what the first has left to drain.
            let _ = kill(Pid::this(), Signal::SIGTERM);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MapEnv;

    #[test]
    fn only_what_is_asked_for_ends_a_process() {
        let told = |value| WithoutParent::of(&MapEnv::from([("TULLE_EXIT_WITH_STDIN", value)]));
        assert_eq!(told("true"), WithoutParent::End);
        assert_eq!(told("drain"), WithoutParent::Drain);
        assert_eq!(told("false"), WithoutParent::GoOn);
        assert_eq!(WithoutParent::of(&MapEnv::default()), WithoutParent::GoOn);
    }
}
