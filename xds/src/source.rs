//! Where configuration objects come from.
