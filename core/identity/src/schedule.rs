//! When to fetch which certificate: a pure decision over events and `now`.

/// How urgently a certificate is wanted, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A connection waits for it.
    Waiting,
    /// A new workload has none yet.
    First,
    /// One exists and gets old.
    Renewal,
}
