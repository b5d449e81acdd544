//! How often name servers that do not answer are complained of: a line per workload and minute, however many ask.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Between two lines of one workload.
pub const EVERY: Duration = Duration::from_secs(60);

/// The complaints of one workload.
#[derive(Debug, Default)]
pub struct Complaints {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    /// Questions since then.
    unsaid: u64,
}

impl Complaints {
    /// Notes a question that nobody answered. If it is time for a line: how many there were since the last one, this
    /// one included.
    #[must_use]
    pub fn note(&self) -> Option<u64> {
        let mut state = self.state.lock();
        state.unsaid = state.unsaid.saturating_add(1);
        if state.said.is_some_and(|said| said.elapsed() < EVERY) {
            return None;
        }
        state.said = Some(Instant::now());
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_unanswered_questions_are_one_line_a_minute() {
        let complaints = Complaints::default();
        assert_eq!(complaints.note(), Some(1));
        for _ in 0..100 {
            assert_eq!(complaints.note(), None);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!(complaints.note(), Some(101));
        assert_eq!(complaints.note(), None);
    }
}
