//! The one list of error codes and reason tokens. A code is stable for ever and never reused.

pub mod http;

/// Defines [`Reason`] and everything that must never drift from it.
macro_rules! reasons {
    ($($variant:ident $code:literal $token:literal $flag:ident $help:literal;)*) => {
        /// Why something was refused, or ended, with its stable code and token.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = concat!("`", $code, " ", $token, "`: ", $help)] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable code, such as `T0412`.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The stable token, such as `policy_denied`.
            #[must_use]
            pub fn token(self) -> &'static str {
                match self { $(Self::$variant => $token,)* }
            }

            /// The `response_flags` value of metrics.
            #[must_use]
            pub fn flag(self) -> ResponseFlag {
                match self { $(Self::$variant => ResponseFlag::$flag,)* }
            }

            /// One sentence for an operator: what it means and what to look at.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

reasons! {
    InvalidConfiguration "T0001" "invalid_configuration" None "a value of the process configuration cannot be used; every bad value is listed at start";
    UnknownField "T0003" "unknown_field" None "a configuration field does not exist; check its spelling";
    AgentUnreachable "T0101" "agent_unreachable" None "the CNI plugin cannot ask the agent of its node, so a new pod is refused; see that the agent runs";
    NetnsNotFound "T0102" "netns_not_found" None "the network namespace of an enrolled workload was not found on this node";
    NetnsMismatch "T0103" "netns_mismatch" None "a network namespace does not hold the address of the workload it was found for";
    PortTaken "T0104" "port_taken" None "the application already listens on a port that capture needs (15001, 15006, 15008)";
    CaptureRulesMissing "T0105" "capture_rules_missing" None "the packet rules of an enrolled workload were not what they must be; they are applied again";
    ListenersMissing "T0106" "listeners_missing" None "a listener of an enrolled workload was gone; it is opened again";
    RulesRefused "T0107" "rules_refused" None "the kernel refused the packet rules; check that nf_tables, nat and conntrack are available";
    ProxyNotConnected "T0108" "proxy_not_connected" None "no node proxy is connected to the agent; see `tulle status`";
    ForeignRules "T0109" "foreign_rules" None "rules of a pod's own would make capture break its open connections; recreate it, or let them be reset";
    HostHooksBypassed "T0110" "host_hooks_bypassed" None "packets between pods of a bridge do not pass the node's rules; set net.bridge.bridge-nf-call-iptables=1";
    EnrolmentUnknown "T0112" "enrolment_unknown" None "whether a new pod is enrolled cannot be told, so it is refused; describe it, or exclude its namespace";
    ResourceRejected "T0201" "resource_rejected" Connect "a configuration object cannot be used; the last good version stays in force";
    UnparsableFile "T0202" "unparsable_file" None "a file of the configuration folder cannot be read as YAML; its objects keep their last good form";
    DuplicateObject "T0203" "duplicate_object" None "two files define the same object; the first path in byte order wins";
    ConfigStale "T0204" "config_stale" None "a proxy has not accepted the newest configuration";
    PolicyWidenedDeny "T0206" "policy_widened_deny" None "part of a DENY rule cannot be evaluated, so the rule denies more than it says";
    KindNotRead "T0207" "kind_not_read" None "a manifest is of a kind that is not read; `tulle analyze` names what stands in its place, or what may be meant";
    NotEffective "T0208" "not_effective" None "a configuration object, or a part of it, has no effect as it stands; its condition says why";
    SharedBackend "T0209" "shared_backend" None "services with different waypoints share a port of a workload: what one waypoint refuses, the other may let in";
    MatchNeverWins "T0210" "match_never_wins" None "a match of a route can never win, whatever the request: another one goes before it";
    CaIncomplete "T0301" "ca_incomplete" None "the certificate authority's files are incomplete or unsafe; nothing is generated over them";
    NotPlacedOnNode "T0305" "not_placed_on_node" None "the asking node has no workload with that identity";
    NodeNotTrusted "T0306" "node_not_trusted" None "the caller's credential is missing, unknown or for another node";
    IssuerExpiresSoon "T0308" "issuer_expires_soon" None "a certificate of the authority - issuer, intermediate or root - ends soon; rotate the root, or renew the issuer where it comes from";
    PolicyDenied "T0412" "policy_denied" Deny "a DENY rule matched";
    NoAllowMatched "T0413" "no_allow_matched" Deny "ALLOW policies apply and none of their rules matched";
    PolicyPending "T0414" "policy_pending" Deny "a policy that the workload names has not arrived yet";
    PolicyUntranslatable "T0415" "policy_untranslatable" Deny "a policy cannot be translated and denies what it selects";
    WaypointRequired "T0416" "waypoint_required" Deny "the destination only accepts traffic through its waypoint";
    PolicyChanged "T0417" "policy_changed" Deny "an open connection was denied by a changed policy";
    WrongDestination "T0418" "wrong_destination" None "the tunnel's authority is not for this workload";
    NotConnect "T0419" "not_connect" None "the request on the tunnel port is not CONNECT";
    BadAuthority "T0420" "bad_authority" None "the tunnel's authority is missing or not host:port";
    SelfCall "T0421" "self_call" Connect "the target is a port of the proxy itself";
    SourceNotTrusted "T0422" "source_not_trusted" None "an original source was claimed by a peer that may not";
    NotFronted "T0423" "not_fronted" NoRoute "the waypoint does not stand in front of what was asked for, or not on that port";
    NotVisible "T0424" "not_visible" Deny "the service is not visible to the caller's namespace";
    ConnectFailed "T0501" "connect_failed" Connect "the connection to the next hop was refused or failed";
    ConnectTimeout "T0504" "connect_timeout" Connect "the next hop did not answer; a NetworkPolicy may block HBONE port 15008";
    NetworkPolicySuspected "T0505" "network_policy_suspected" NetworkPolicy "a NetworkPolicy may block HBONE port 15008";
    NoHealthyEndpoint "T0506" "no_healthy_endpoint" Connect "the service has no endpoint that can be used on this port";
    NoRoute "T0507" "no_route" Connect "there is no way to the destination";
    NoGateway "T0508" "no_gateway" Connect "the endpoint is on another network and no gateway leads there";
    WaypointUnavailable "T0509" "waypoint_unavailable" Connect "the destination's waypoint is unknown or has no endpoint";
    TlsFailed "T0510" "tls_failed" TlsFailure "the TLS handshake failed";
    PeerLost "T0511" "peer_lost" None "the connection to the peer was lost";
    PeerIdentityMismatch "T0512" "peer_identity_mismatch" TlsFailure "the peer's certificate carries another identity than expected";
    CertExpired "T0513" "cert_expired" IdentityError "the workload's certificate has expired and could not be renewed";
    CertUnavailable "T0514" "cert_unavailable" IdentityError "the workload has no certificate yet";
    Overload "T0515" "overload" Connect "a bound of the proxy is reached";
    CertRevoked "T0516" "cert_revoked" CertRevoked "a certificate, identity or node was revoked or denied by an operator; its connections are closed";
    CrlStale "T0517" "crl_stale" TlsFailure "whether the peer's certificate is revoked cannot be told: the revocation list is missing or past its next update";
    Http2Failed "T0518" "http2_failed" H2HandshakeFailure "the HTTP/2 connection could not be established";
    PeerDrained "T0519" "peer_drained" None "the proxy or workload was drained and its deadline passed";
    UnknownPort "T0520" "unknown_port" Connect "the port cannot be resolved at the destination";
    WorkloadUnknown "T0521" "workload_unknown" Connect "the proxy has no description of the workload yet";
    PortsExhausted "T0522" "ports_exhausted" Connect "no local port is free for another connection";
    RouteNotFound "T0601" "route_not_found" NoRoute "the service has routes and none of them matches the request";
    BackendInvalid "T0602" "backend_invalid" NoCluster "the route leads to a backend that does not exist or may not be used";
    JwtInvalid "T0603" "jwt_invalid" None "a token of the request is not valid";
    JwksUnavailable "T0604" "jwks_unavailable" None "the keys that tokens are checked with cannot be had";
    RateLimited "T0605" "rate_limited" RateLimited "a rate limit is reached";
    RateLimitUnavailable "T0606" "rate_limit_unavailable" RateLimitError "the rate limit service does not answer, and the limit does not let pass without it";
    RetryBudgetSpent "T0607" "retry_budget_spent" RetriesExhausted "another try was wanted, and the backend's retry budget is spent";
    RetriesExhausted "T0608" "retries_exhausted" RetriesExhausted "every try that the route allows has failed";
    RequestTimeout "T0609" "request_timeout" UpstreamTimeout "the request took longer than its route allows";
    BackendTimeout "T0610" "backend_timeout" UpstreamTimeout "the last try took longer than its route allows for one";
    UpstreamReset "T0611" "upstream_reset" UpstreamConnection "the connection to the endpoint ended before the answer was whole";
    UpstreamProtocol "T0612" "upstream_protocol" UpstreamProtocol "the endpoint's answer breaks the protocol";
    Overflow "T0613" "overflow" UpstreamOverflow "the backend's circuit breaker is full";
    BadFraming "T0614" "bad_framing" DownstreamProtocol "where the request's body ends cannot be told for certain";
    BadHost "T0615" "bad_host" DownstreamProtocol "the request's host is missing, doubled or no host";
    BadPath "T0616" "bad_path" DownstreamProtocol "the request's path has a wrong escape, climbs above its root or cannot be read";
    BadHeader "T0617" "bad_header" DownstreamProtocol "a header field of the request is not allowed";
    HeadersTooLarge "T0618" "headers_too_large" DownstreamProtocol "the request has too many header fields, or too large ones";
    UriTooLong "T0619" "uri_too_long" DownstreamProtocol "the request's target is too long";
    BodyTooLarge "T0620" "body_too_large" DownstreamProtocol "the request's body is larger than may be held back";
    BadExpect "T0621" "bad_expect" DownstreamProtocol "the request expects something else than 100-continue";
    HeadTimeout "T0622" "head_timeout" DownstreamProtocol "the request's head did not arrive in time";
    BodyIdle "T0623" "body_idle" DownstreamProtocol "the request's body stopped arriving";
    ExtAuthzDenied "T0624" "ext_authz_denied" ExternalAuthorization "the external authorizer refused the request";
    ExtAuthzError "T0625" "ext_authz_error" ExternalAuthorization "the external authorizer did not answer, or not in a way that can be used";
    FaultAbort "T0626" "fault_abort" Fault "a fault policy answered on purpose";
    FaultDelay "T0627" "fault_delay" FaultDelay "a fault policy held the request back on purpose";
    EgressAddressRefused "T0628" "egress_address_refused" None "the name outside of the mesh leads to an address inside of it, or the endpoint is at one that nobody may be sent to";
    LoopDetected "T0629" "loop_detected" None "the request has passed too many waypoints";
    ClientGone "T0630" "client_gone" DownstreamClosed "the client ended the request before it was answered";
    StreamIdle "T0631" "stream_idle" StreamIdle "nothing moved for longer than a stream may be idle";
    DrainClosed "T0632" "drain_closed" None "the waypoint ends, and its drain time is over";
    ConnectNotCarried "T0633" "connect_not_carried" None "an application asked for a tunnel with CONNECT, which is not carried";
    NameNotResolved "T0701" "name_not_resolved" Connect "the destination's host name could not be resolved";
    DnsUpstreamTimeout "T0702" "upstream_timeout" None "no name server of a workload answered in time; see that those of its resolv.conf run and are reachable from it on port 53";
}

/// Value of the `response_flags` label (Istio's vocabulary).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// `-`.
    None,
    /// `DENY`.
    Deny,
    /// `CONNECT`.
    Connect,
    /// `TLS_FAILURE`.
    TlsFailure,
    /// `H2_HANDSHAKE_FAILURE`.
    H2HandshakeFailure,
    /// `NETWORK_POLICY`.
    NetworkPolicy,
    /// `IDENTITY_ERROR`.
    IdentityError,
    /// `CERT_REVOKED`.
    CertRevoked,
    /// `NR`.
    NoRoute,
    /// `NC`.
    NoCluster,
    /// `RL`.
    RateLimited,
    /// `RLSE`.
    RateLimitError,
    /// `URX`.
    RetriesExhausted,
    /// `UT`.
    UpstreamTimeout,
    /// `UC`.
    UpstreamConnection,
    /// `UPE`.
    UpstreamProtocol,
    /// `UO`.
    UpstreamOverflow,
    /// `DPE`.
    DownstreamProtocol,
    /// `UAEX`.
    ExternalAuthorization,
    /// `FI`.
    Fault,
    /// `DI`.
    FaultDelay,
    /// `DC`.
    DownstreamClosed,
    /// `SI`.
    StreamIdle,
}

impl ResponseFlag {
    /// The label's text.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::RateLimited => "RL",
            Self::RateLimitError => "RLSE",
            Self::RetriesExhausted => "URX",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamConnection => "UC",
            Self::UpstreamProtocol => "UPE",
            Self::UpstreamOverflow => "UO",
            Self::DownstreamProtocol => "DPE",
            Self::ExternalAuthorization => "UAEX",
            Self::Fault => "FI",
            Self::FaultDelay => "DI",
            Self::DownstreamClosed => "DC",
            Self::StreamIdle => "SI",
        }
    }
}

impl std::fmt::Display for Reason {
    /// `T0412 policy_denied`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code(), self.token())
    }
}

impl Reason {
    /// The reason with this code, if there is one.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_and_tokens_are_unique_and_ordered() {
        let codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert!(codes.is_sorted(), "codes stand in order: {codes:?}");
        assert_eq!(codes.iter().collect::<HashSet<_>>().len(), codes.len());
        let tokens: HashSet<_> = Reason::ALL.iter().map(|reason| reason.token()).collect();
        assert_eq!(tokens.len(), codes.len());
    }

    #[test]
    fn a_code_leads_back_to_its_reason() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
        }
    }
}
