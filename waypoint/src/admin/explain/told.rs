//! What is asked, and what is told.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tulle_model::Identity;

use crate::detect::Greeting;

/// A request, or a stream without one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Question {
    /// Who asks.
    pub source: Identity,
    /// From where.
    pub source_ip: IpAddr,
    /// What the tunnel is opened to, as the caller's proxy does.
    pub authority: String,
    /// The method; `GET` if absent.
    #[serde(default)]
    pub method: Option<String>,
    /// The path with its query; `/` if absent.
    #[serde(default)]
    pub path: Option<String>,
    /// Header fields.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The server that a ClientHello asks for, where the waypoint looks at one.
    #[serde(default)]
    pub server_name: Option<String>,
}

impl Question {
    /// The ClientHello.
    pub(super) fn hello(&self) -> Greeting {
        Greeting {
            is_tls: true,
            server_name: self.server_name.clone(),
        }
    }
}

/// What would happen.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The waypoint, `<namespace>/<gateway>`.
    pub waypoint: String,
    /// Generation of its configuration.
    pub generation: u64,
    /// Its identity, which destinations see.
    pub identity: Identity,
    /// The stages in their order, up to the one that decides.
    pub steps: Vec<Step>,
    /// `allow`: it goes on to an endpoint; `reply`: the waypoint answers it, as it is told to; `deny`: it is refused.
    pub verdict: &'static str,
    /// Status of the waypoint's own answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Code and token of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policy or route that decides, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Where it may go, by weight.
    pub backends: Vec<Share>,
}

/// One stage.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub stage: &'static str,
    /// What comes of it.
    pub outcome: String,
    /// What was looked at besides, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// A backend and its share.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Share {
    /// Host name and port, or a workload's uid.
    pub backend: String,
    /// Its weight.
    pub weight: u32,
    /// Who serves it.
    pub endpoints: Vec<End>,
}

/// An endpoint of a backend.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Uid of the workload.
    pub workload: String,
    /// Where connections go: address and port, or the name that is looked up and the port.
    pub address: String,
    /// Whether by a tunnel.
    pub tunnelled: bool,
    /// How connections there are encrypted: `mutual_tls`, `tls`, `none`.
    pub encryption: &'static str,
    /// How it stands with it.
    pub state: &'static str,
}
