//! Requests: from the tunnel's stream to the answer, phase by phase.

pub mod hygiene;
