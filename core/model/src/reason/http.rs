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

    #[test]
    fn flags_are_those_of_http() {
        assert_eq!(Reason::NoHealthyEndpoint.answer().flag, "UH");
        assert_eq!(Reason::RouteNotFound.answer().flag, "NR");
        assert_eq!(Reason::PolicyDenied.answer().flag, "-");
        assert_eq!(Reason::RequestTimeout.answer().flag, "UT");
    }
}
