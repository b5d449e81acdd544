//! Why a connection failed: who is to blame, whether another attempt may help, and what a peer is told.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tulle_identity::{CertificateError, Distrust};
use tulle_model::authz::DenyBecause;
use tulle_model::gateway::HBONE_PORT;
use tulle_model::reason::ResponseFlag;
use tulle_model::upstream::NoUpstream;
use tulle_model::{Reason, Str};
use tulle_transport::hbone::{AcceptError, Blame, Refusal, Retry};
use tulle_transport::{CopyError, OpenError, socket};

use crate::outbound::Failure;

/// Why a connection failed or was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The target is a port of the proxy itself.
    #[error("{0} is a port of the proxy itself")]
    SelfCall(SocketAddr),
    /// The original destination cannot be read.
    #[error("the original destination of the connection is not known: {0}")]
    OriginalDestination(#[source] io::Error),
    /// The control plane has not described the local workload.
    #[error("the workload {namespace}/{name} is not known yet")]
    WorkloadUnknown {
        /// Namespace of the pod.
        namespace: String,
        /// Name of the pod.
        name: String,
    },
    /// There is no way to the destination.
    #[error(transparent)]
    NoUpstream(#[from] NoUpstream),
    /// TCP could not be established.
    #[error("connect to {to} failed: {source}")]
    Connect {
        /// The next hop.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// TCP was not established in time.
    #[error("connect to {to} timed out after {after:?}")]
    ConnectTimeout {
        /// The next hop.
        to: SocketAddr,
        /// The bound that passed.
        after: Duration,
    },
    /// The tunnel to a peer could not be opened, or the peer refused.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The tunnel of a peer could not be accepted.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// We have no certificate to answer a peer with.
    #[error("own certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// An end of a tunnel is not believed although its certificate is good.
    #[error(transparent)]
    Distrusted(#[from] Distrust),
    /// Authorization refused.
    #[error("{}", denied(.0))]
    Denied(DenyBecause),
    /// Authorization could not be judged: policies have not been received yet.
    #[error("policies have not been received yet")]
    NotSynced,
    /// A changed policy denies an open connection.
    #[error("policy changed: {}", denied(.0))]
    PolicyChanged(DenyBecause),
    /// A tunnelled request that is not what it must be.
    #[error("{detail}")]
    BadRequest {
        /// What is wrong.
        detail: String,
        /// The stable reason.
        reason: Reason,
    },
    /// The newest description of the destination is malformed and was rejected.
    #[error("the configuration of {destination} was rejected: {resource}")]
    Rejected {
        /// The original destination.
        destination: SocketAddr,
        /// The rejected resource.
        resource: Str,
    },
    /// Bytes stopped flowing.
    #[error(transparent)]
    Broken(#[from] CopyError),
    /// The pod was removed, or the drain deadline passed.
    #[error("the pod was removed, or the drain deadline passed")]
    Drained,
    /// A bound of the proxy is reached.
    #[error("{0}")]
    Overload(&'static str),
}

fn denied(because: &DenyBecause) -> String {
    match because {
        DenyBecause::Policy { policy, rule } => format!("denied by policy {policy}, rule {rule}"),
        DenyBecause::NoAllowMatched => "ALLOW policies apply and none matched".to_owned(),
        DenyBecause::PolicyPending { policy } => format!("policy {policy} has not arrived yet"),
        DenyBecause::Untranslatable { policy } => format!("policy {policy} cannot be translated"),
        DenyBecause::WaypointRequired { policy } => {
            format!("only the waypoint of the destination may connect (policy {policy})")
        }
    }
}

impl Error {
    /// The stable reason; a socket that an application reset needs none.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::SelfCall(_) => Reason::SelfCall,
            Self::OriginalDestination(_) => Reason::NoRoute,
            Self::WorkloadUnknown { .. } => Reason::WorkloadUnknown,
            Self::NoUpstream(none) => none.reason(),
            Self::BadRequest { reason, .. } => *reason,
            Self::Open(error) => error.reason(),
            Self::Accept(error) => error.reason(),
            Self::Certificate(error) => error.reason(),
            Self::Distrusted(why) => why.reason(),
            Self::Connect { source, .. } if socket::no_port_left(source) => Reason::PortsExhausted,
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::ConnectTimeout { .. } => Reason::ConnectTimeout,
            Self::Denied(because) => because.reason(),
            Self::NotSynced => Reason::PolicyPending,
            Self::PolicyChanged(_) => Reason::PolicyChanged,
            Self::Rejected { .. } => Reason::ResourceRejected,
            Self::Broken(error) => return error.reason(),
            Self::Drained => Reason::PeerDrained,
            Self::Overload(_) => Reason::Overload,
        })
    }

    /// The policy that decided, if one did and it is known.
    #[must_use]
    pub fn policy(&self) -> Option<String> {
        match self {
            Self::Denied(because) | Self::PolicyChanged(because) => because.policy().map(ToString::to_string),
            Self::Open(OpenError::Refused(refusal)) => refusal.header.as_ref()?.policy.clone(),
            _ => None,
        }
    }

    /// The reason of a peer that refused; `None` if the refusal is our own.
    #[must_use]
    pub fn refused_by_peer(&self) -> Option<&Refusal> {
        match self {
            Self::Open(OpenError::Refused(refusal)) => Some(refusal),
            _ => None,
        }
    }

    /// Value of the label `response_flags`.
    #[must_use]
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Open(OpenError::ConnectTimeout { peer, .. }) if peer.port() == HBONE_PORT => {
                ResponseFlag::NetworkPolicy
            }
            _ => self.reason().map_or(ResponseFlag::None, Reason::flag),
        }
    }

    /// The status a tunnelled request is answered with.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::BadRequest {
                reason: Reason::UnknownPort | Reason::NameNotResolved,
                ..
            } => 503,
            Self::BadRequest { .. } => 400,
            Self::Denied(_) | Self::NotSynced | Self::PolicyChanged(_) => 401,
            _ => 503,
        }
    }

    /// Whose fault it was.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Open(error) => error.blame(),
            Self::SelfCall(_)
            | Self::BadRequest { .. }
            | Self::OriginalDestination(_)
            | Self::Accept(_)
            | Self::Distrusted(_)
            | Self::Denied(_)
            | Self::PolicyChanged(_) => Blame::Downstream,
            Self::Connect { source, .. } if socket::no_port_left(source) => Blame::Mesh,
            Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Broken(_) => Blame::Upstream,
            Self::WorkloadUnknown { .. }
            | Self::NoUpstream(_)
            | Self::Certificate { .. }
            | Self::NotSynced
            | Self::Rejected { .. }
            | Self::Drained
            | Self::Overload(_) => Blame::Mesh,
        }
    }

    /// Whether another attempt may help while no byte of the application was sent. An identity that does not fit
    /// is final: it never falls back.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Open(error) => error.retry(),
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::NoUpstream(NoUpstream::NameNotResolved { .. }) => Retry::OtherEndpoint,
            _ => Retry::Never,
        }
    }

    /// What it says of the endpoint that was tried.
    #[must_use]
    pub fn failure(&self) -> Failure {
        match self {
            Self::ConnectTimeout { .. } | Self::Open(OpenError::ConnectTimeout { .. }) => Failure::TimedOut,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => Failure::TimedOut,
            _ => Failure::Refused,
        }
    }

    /// The next hop does not listen for tunnels: its capture may be just being installed.
    #[must_use]
    pub fn tunnel_port_refused(&self) -> bool {
        matches!(self, Self::Open(OpenError::ConnectFailed { source, .. })
            if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tulle_identity::{HandshakeError, PeerError};
    use tulle_model::Identity;

    fn refused(status: u16, header: Option<&str>) -> Error {
        let header = header.map(|header| header.parse().unwrap());
        Error::Open(OpenError::Refused(Refusal { status, header }))
    }

    #[test]
    fn a_timeout_to_the_tunnel_port_hints_at_a_network_policy() {
        let after = Duration::from_secs(5);
        let timeout = |port| {
            let peer = SocketAddr::from(([10, 0, 0, 1], port));
            Error::Open(OpenError::ConnectTimeout { peer, after })
        };
        assert_eq!(timeout(15008).flag(), ResponseFlag::NetworkPolicy);
        assert!(timeout(15008).to_string().contains("NetworkPolicy"));
        assert_eq!(timeout(80).flag(), ResponseFlag::Connect);
        assert!(!timeout(80).to_string().contains("NetworkPolicy"));
    }

    #[test]
    fn identity_failures_and_refusals_are_final() {
        let mismatch = PeerError::ForeignTrustDomain {
            presented: Identity::new("elsewhere", "shop", "web"),
            own: "cluster.local".into(),
        };
        let source = Arc::new(HandshakeError::Peer(mismatch));
        assert_eq!(Error::Open(OpenError::Tls { source }).retry(), Retry::Never);
        assert_eq!(refused(400, None).retry(), Retry::Never);
        assert_eq!(refused(401, None).retry(), Retry::Never);
        assert_eq!(refused(503, None).retry(), Retry::OtherEndpoint);
    }

    #[test]
    fn the_reason_of_the_peer_is_ours() {
        let error = refused(401, Some("T0413; no_allow_matched; policy=shop/only-web"));
        assert_eq!(error.reason(), Some(Reason::NoAllowMatched));
        assert_eq!(error.policy().as_deref(), Some("shop/only-web"));
        assert_eq!(refused(401, None).flag(), ResponseFlag::Deny);
    }

    #[test]
    fn each_refusal_has_its_status() {
        let request = |reason| Error::BadRequest {
            detail: String::new(),
            reason,
        };
        assert_eq!(request(Reason::NotConnect).status(), 400);
        assert_eq!(request(Reason::WrongDestination).status(), 400);
        assert_eq!(request(Reason::UnknownPort).status(), 503);
        assert_eq!(
            Error::SelfCall(SocketAddr::from(([10, 0, 0, 1], 15001))).status(),
            503
        );
        assert_eq!(Error::Denied(DenyBecause::NoAllowMatched).status(), 401);
        assert_eq!(Error::NotSynced.status(), 401);
    }
}
