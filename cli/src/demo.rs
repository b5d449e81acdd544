//! The local mesh that `tulle up --demo` shows: a world, an application, a mesh put under it while it runs.

pub(crate) mod application;
mod pods;
mod progress;
pub(crate) mod service;
mod stats;
mod story;

pub(crate) use story::Story;
