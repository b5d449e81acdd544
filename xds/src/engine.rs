//! The engine: objects in, immutable cuts out, by a single writer.

pub mod table;
