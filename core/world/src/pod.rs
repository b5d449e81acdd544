//! One pod: a network namespace with one interface, an IPv4 and an IPv6 address.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use tulle_linux::NetNs;

use crate::process::{Process, ProcessError};

/// A pod of the world. Clones are of the same pod.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) namespace: NetNs,
    /// Counts the pods of its node; its link and its IPv6 address are called after it.
    pub(crate) host: u8,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
}

impl Pod {
    /// Its name; also the name of its namespace in [`crate::World::netns_dir`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    pub(crate) fn interface(&self) -> String {
        format!("pod{}", self.host)
    }

    /// Starts a process in the pod.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process, ProcessError> {
        Process::spawn(name, &self.namespace, command)
    }
}
