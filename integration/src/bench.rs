//! End-to-end measurements in real namespaces: every contestant has its turn in each round of one run.
//!
//! Client, server and all proxies share the machine's cores, so absolute figures say little about another machine;
//! ratios within a run and CPU time per gigabyte or per thousand requests do. See docs/performance.md.

mod arena;
mod body;
mod measure;
mod plot;
mod process;
mod table;
mod tunnel;
pub mod waypoint;

pub use self::table::{Better, Row, Table};
pub use self::tunnel::{Options, Part, run as tunnel};
