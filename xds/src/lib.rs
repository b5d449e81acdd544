//! The control plane: sources, engine, delta ADS, certificate authority, status.
//!
//! ```no_run
//! use clap::Parser;
//!
//! #[derive(Parser)]
//! struct Cli {
//!     #[command(flatten)]
//!     config: tulle_xds::Config,
//! }
//!
//! // Made once per node; its proxy and agent show it.
//! let token = tulle_xds::token::create("/tmp/state".as_ref(), "n1")?;
//! // Serves until SIGTERM or SIGINT.
//! let cli = Cli::parse_from(["xds", "--config-dir", "/tmp/mesh", "--state-dir", "/tmp/state"]);
//! let exit = tulle_xds::main(cli.config);
//! # drop((token, exit));
//! # Ok::<(), tulle_xds::token::TokenError>(())
//! ```

pub mod analyze;
pub mod app;
pub mod ca;
pub mod config;
pub mod debug;
pub mod drains;
pub mod engine;
mod few;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod history;
pub mod leaves;
pub mod metrics;
pub mod serve;
pub mod snapshot;
pub mod source;
pub mod state_dir;
pub mod status;
pub mod token;

pub use app::{Error, main, run};
pub use config::Config;
pub use token::node::join_node;
