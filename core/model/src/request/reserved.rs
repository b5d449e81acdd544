//! Header fields that are not the application's: those of one hop, those that frame a message, and the mesh's own.

/// Fields that end at the next hop, besides those that `connection` names.
pub const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What the mesh alone says to applications and to itself: never taken from a client or an application.
const OWN: &[&str] = &["x-tulle-", "x-envoy-", "x-istio-"];

/// Whether a client can never set this field. The name is in lower case.
#[must_use]
pub fn is_own(name: &str) -> bool {
    name == "x-forwarded-client-cert" || OWN.iter().any(|start| name.starts_with(start))
}

/// Whether the field says where a request came from. Only gateways are believed. The name is in lower case.
#[must_use]
pub fn is_forwarding(name: &str) -> bool {
    name == "forwarded" || name.starts_with("x-forwarded-")
}

/// Whether an application can never set this field of its answers. The name is in lower case.
#[must_use]
pub fn is_own_of_answers(name: &str) -> bool {
    name.starts_with("x-envoy-") || name.starts_with("x-tulle-")
}

/// Whether no filter, provider or claim may touch this field. The name is in lower case.
#[must_use]
pub fn is_untouchable(name: &str) -> bool {
    let framing = matches!(name, "host" | "content-length" | "trailer");
    framing || name.starts_with(':') || HOP_BY_HOP.contains(&name) || is_own(name) || is_forwarding(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_touch_only_what_is_the_application_s() {
        for name in [
            "host",
            ":path",
            "te",
            "content-length",
            "x-envoy-x",
            "x-forwarded-for",
            "forwarded",
        ] {
            assert!(is_untouchable(name), "{name}");
        }
        for name in ["x-request-id", "cookie", "authorization", "x-tull", "x-forwarded"] {
            assert!(!is_untouchable(name), "{name}");
        }
    }
}
