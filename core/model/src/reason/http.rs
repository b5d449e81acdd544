//! What a waypoint answers for a reason: the status of HTTP, that of gRPC, and the flag of its access line.

use super::Reason;

/// What a caller of HTTP sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// Status of gRPC, for callers that speak it.
    pub grpc: u32,
    /// `response_flags` of the access line and of metrics; Envoy's vocabulary.
    pub flag: &'static str,
}

impl Reason {
    /// The answer to a request that ends for this reason.
    #[must_use]
    pub fn answer(self) -> Answer {
        let (status, grpc) = match self {
            Self::NotConnect
            | Self::BadAuthority
            | Self::NotFronted
            | Self::WrongDestination
            | Self::BadFraming
            | Self::BadHost
            | Self::BadPath
            | Self::BadHeader => (400, 13),
            Self::NotVisible => (401, 7),
            Self::JwtInvalid | Self::JwksUnavailable => (401, 16),
            Self::PolicyDenied
            | Self::NoAllowMatched
            | Self::PolicyPending
            | Self::PolicyUntranslatable
            | Self::PolicyChanged
            | Self::ExtAuthzDenied
            | Self::ExtAuthzError
            | Self::ConnectNotCarried
            | Self::EgressAddressRefused => (403, 7),
            Self::RouteNotFound => (404, 12),
            Self::HeadTimeout | Self::BodyIdle => (408, 13),
            Self::BodyTooLarge => (413, 13),
            Self::UriTooLong => (414, 13),
            Self::BadExpect => (417, 13),
            Self::RateLimited => (429, 8),
            Self::HeadersTooLarge => (431, 13),
            Self::ClientGone => (499, 1),
            Self::BackendInvalid => (500, 14),
            Self::UpstreamProtocol => (502, 14),
            Self::RequestTimeout | Self::BackendTimeout => (504, 4),
            Self::LoopDetected => (508, 13),
            _ => (503, 14),
        };
        Answer {
            status,
            grpc,
            flag: self.http_flag(),
        }
    }

    fn http_flag(self) -> &'static str {
        match self {
            Self::NotConnect | Self::BadAuthority => "NR",
            Self::NoHealthyEndpoint => "UH",
            Self::ConnectFailed | Self::ConnectTimeout | Self::TlsFailed | Self::PeerIdentityMismatch => "UF",
            Self::Overload => "OM",
            Self::PolicyDenied
            | Self::NoAllowMatched
            | Self::PolicyPending
            | Self::PolicyUntranslatable
            | Self::PolicyChanged
            | Self::NotVisible => "-",
            other => other.flag().as_str(),
        }
    }
}

/// The status of gRPC for a status of HTTP that says nothing of gRPC itself.
#[must_use]
pub fn grpc_status(http: u16) -> u32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 => 8,
        502 | 503 => 14,
        504 => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_an_answer_that_is_an_error() {
        for reason in Reason::ALL {
            let answer = reason.answer();
            assert!((400..600).contains(&answer.status), "{reason}: {answer:?}");
            assert!((1..=16).contains(&answer.grpc), "{reason}: {answer:?}");
        }
    }

    /// What the page of waypoints says of each reason: status of HTTP, status of gRPC, flag. What others set, such as the
    /// status of an authorizer, and what is no answer at all, is `None`.
    type Row = (&'static [&'static str], Option<u16>, Option<u32>, &'static str);

    const PAGE: &[Row] = &[
        (
            &["not_connect", "bad_authority", "not_fronted"],
            Some(400),
            None,
            "NR",
        ),
        (&["not_visible"], Some(401), None, "-"),
        (
            &[
                "policy_pending",
                "policy_denied",
                "no_allow_matched",
                "policy_untranslatable",
            ],
            Some(403),
            Some(7),
            "-",
        ),
        (
            &["bad_framing", "bad_host", "bad_path", "bad_header"],
            Some(400),
            Some(13),
            "DPE",
        ),
        (&["head_timeout", "body_idle"], Some(408), Some(13), "DPE"),
        (&["headers_too_large"], Some(431), Some(13), "DPE"),
        (&["uri_too_long"], Some(414), Some(13), "DPE"),
        (&["bad_expect"], Some(417), Some(13), "DPE"),
        (&["body_too_large"], Some(413), Some(13), "DPE"),
        (&["route_not_found"], Some(404), Some(12), "NR"),
        (&["backend_invalid"], Some(500), Some(14), "NC"),
        (&["no_healthy_endpoint"], Some(503), Some(14), "UH"),
        (&["connect_failed"], Some(503), Some(14), "UF"),
        (&["upstream_reset"], Some(503), Some(14), "UC"),
        (&["upstream_protocol"], Some(502), Some(14), "UPE"),
        (&["overflow"], Some(503), Some(14), "UO"),
        (&["overload"], Some(503), Some(14), "OM"),
        (&["request_timeout", "backend_timeout"], Some(504), Some(4), "UT"),
        (&["retries_exhausted"], None, None, "URX"),
        (&["retry_budget_spent"], Some(503), Some(14), "URX"),
        (&["rate_limited"], Some(429), Some(8), "RL"),
        (&["rate_limit_unavailable"], Some(503), Some(14), "RLSE"),
        (&["jwt_invalid", "jwks_unavailable"], Some(401), Some(16), "-"),
        (&["ext_authz_denied"], None, Some(7), "UAEX"),
        (&["ext_authz_error"], Some(403), Some(7), "UAEX"),
        (&["fault_abort"], None, None, "FI"),
        (&["fault_delay"], None, None, "DI"),
        (&["egress_address_refused"], Some(403), Some(7), "-"),
        (&["loop_detected"], Some(508), Some(13), "-"),
        (&["policy_changed"], None, Some(7), "-"),
        (&["drain_closed"], None, Some(14), "-"),
        (&["client_gone"], Some(499), Some(1), "DC"),
        (&["stream_idle"], None, None, "SI"),
    ];

    #[test]
    fn answers_are_those_of_the_page() {
        let mut differ = Vec::new();
        for (tokens, status, grpc, flag) in PAGE {
            for token in *tokens {
                let reason = Reason::ALL.iter().find(|reason| reason.token() == *token);
                let answer = reason.unwrap_or_else(|| panic!("{token}")).answer();
                let expected = Answer {
                    status: status.unwrap_or(answer.status),
                    grpc: grpc.unwrap_or(answer.grpc),
                    flag,
                };
                if answer != expected {
                    differ.push((token, answer, expected));
                }
            }
        }
        assert_eq!(differ, []);
    }
}
