//! Why a pod is not captured, with the stable code and what to do about it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use tulle_model::reason::Reason;

/// What can keep a pod from being captured, or from leaving.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Nothing on this node knows the pod.
    #[error(
        "no sandbox of the pod is known on this node: not by a record, the container runtime or a process"
    )]
    NetnsUnknown,
    /// What is found where the pod was is not what was there.
    #[error("the network namespace {} is not the one that the pod was found in", path.display())]
    NetnsReplaced {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The named namespace cannot be opened.
    #[error("the network namespace {} cannot be opened: {source}", path.display())]
    NetnsNotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The namespace is the node's own.
    #[error("the network namespace {} is the node's own", path.display())]
    NetnsIsHost {
        /// Where it was found.
        path: PathBuf,
    },
    /// The namespace belongs to something else.
    #[error("the network namespace {} holds {present:?}, none of the workload's {described:?}", path.display())]
    NetnsMismatch {
        /// Where it was found.
        path: PathBuf,
        /// Addresses in the namespace.
        present: Vec<IpAddr>,
        /// Addresses of the workload.
        described: Vec<IpAddr>,
    },
    /// The application listens where capture must.
    #[error("port {port} is taken by {}", holder.as_deref().unwrap_or("the application"))]
    PortTaken {
        /// The port.
        port: u16,
        /// The process that has it, if one is seen.
        holder: Option<String>,
    },
    /// A listening socket cannot be opened.
    #[error("port {port} cannot be listened on: {source}")]
    Listen {
        /// The port.
        port: u16,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No proxy is there to serve the pod.
    #[error("no node proxy is connected")]
    ProxyNotConnected,
    /// The proxy went away before it answered.
    #[error("the node proxy went away before it answered")]
    ProxyLost,
    /// The proxy cannot serve the pod.
    #[error("the node proxy refused the pod: {0}")]
    ProxyRefused(String),
    /// The packet rules were refused.
    #[error("packet rules: {0}")]
    RulesRefused(String),
    /// The pod has rules of its own that capture would make break its connections.
    #[error("rules of the pod's own drop what conntrack does not know: its open connections would break")]
    ForeignRules,
    /// Somebody redirects by rules that can neither be read nor removed.
    #[error(
        "the pod's namespace has a nat table of legacy iptables: another capture may be left there, which cannot be removed"
    )]
    LegacyRules,
    /// A step in the pod's namespace failed.
    #[error("cannot {step}: {source}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl CaptureError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::NetnsUnknown | Self::NetnsNotFound { .. } => Reason::NetnsNotFound,
            Self::NetnsIsHost { .. } | Self::NetnsMismatch { .. } | Self::NetnsReplaced { .. } => {
                Reason::NetnsMismatch
            }
            Self::PortTaken { .. } => Reason::PortTaken,
            Self::ForeignRules | Self::LegacyRules => Reason::ForeignRules,
            Self::Listen { .. } | Self::ProxyRefused(_) => Reason::ListenersMissing,
            Self::ProxyNotConnected | Self::ProxyLost => Reason::ProxyNotConnected,
            Self::RulesRefused(_) | Self::Kernel { .. } => Reason::RulesRefused,
        }
    }

    /// What an operator can do.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NetnsUnknown => {
                "start the pod, or say with the annotation tulle.dev/process how it is recognised: netns:<name> or pod:<uid>"
            }
            Self::NetnsNotFound { .. } => {
                "check that the pod runs on this node and that its namespace has this name"
            }
            Self::NetnsIsHost { .. } => "pods in the host network cannot join; take the label off",
            Self::NetnsReplaced { .. } => "recreate the pod, if it does not come back by itself",
            Self::NetnsMismatch { .. } => "correct the entry's address, or the namespace it names",
            Self::PortTaken { .. } => "move the application to another port, or take the pod out of the mesh",
            Self::Listen { .. } => "check that the agent has CAP_NET_ADMIN in the pod's namespace",
            Self::ProxyNotConnected | Self::ProxyLost => {
                "start the node proxy of this node, and see `tulle status`"
            }
            Self::ForeignRules => {
                "recreate the pod, or let its connections be reset: annotation tulle.dev/existing-connections: reset"
            }
            Self::LegacyRules => "recreate the pod: a new namespace has no such table",
            Self::ProxyRefused(_) => "see the node proxy's log for this pod",
            Self::RulesRefused(_) => {
                "check that the kernel has nf_tables, nat and conntrack, and, with --rules nft, that nft is installed"
            }
            Self::Kernel { .. } => "check that the agent runs with CAP_NET_ADMIN and CAP_SYS_ADMIN",
        }
    }

    /// An error of a step, from the kernel's answer.
    pub(crate) fn kernel(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { step, source }
    }
}
