//! Requests: from the tunnel's stream to the answer, phase by phase.

mod aim;
pub mod body;
pub mod cut;
pub mod exchange;
pub(crate) mod farewell;
pub mod flood;
pub mod frames;
pub mod heads;
pub mod hygiene;
pub mod idle;
pub mod interim;
mod leftover;
pub mod pace;
pub mod record;
pub mod respond;
pub mod routing;
pub mod rule;
pub mod send;
pub mod server;
pub mod session;
pub mod tries;
pub mod upgrade;
pub mod wire;
