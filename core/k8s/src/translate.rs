//! From slim objects to the model: pure functions that never fail and always say what they could not use.

pub mod condition;
