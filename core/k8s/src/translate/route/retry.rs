//! What is tried again. Routes name statuses of HTTP alone, so those of gRPC are named by an annotation.

use tulle_model::route::Retry;

use crate::api::meta::Meta;
use crate::api::route::RouteRetry;

/// Annotation of HTTPRoutes and GRPCRoutes: statuses of gRPC, by name or number, with commas between them.
const GRPC_CODES: &str = "tulle.dev/retry-grpc-codes";

/// The statuses of gRPC that are no success, by number.
const NAMES: [&str; 16] = [
    "cancelled",
    "unknown",
    "invalid-argument",
    "deadline-exceeded",
    "not-found",
    "already-exists",
    "permission-denied",
    "resource-exhausted",
    "failed-precondition",
    "aborted",
    "out-of-range",
    "unimplemented",
    "internal",
    "unavailable",
    "data-loss",
    "unauthenticated",
];

/// The stanza of a rule of HTTP, with the statuses of gRPC that its route names.
pub(super) fn of_http(stanza: Option<&RouteRetry>, meta: &Meta) -> Result<Option<Retry>, String> {
    let grpc_codes = named(meta)?.unwrap_or_default();
    Ok(stanza.map(|of| Retry {
        attempts: of.attempts,
        codes: of.codes.clone(),
        grpc_codes,
        backoff: of.backoff.map(|span| span.0),
    }))
}

/// What rules of gRPC try again: they have no stanza of their own, so that the annotation is all there is.
pub(super) fn of_grpc(meta: &Meta) -> Result<Option<Retry>, String> {
    Ok(named(meta)?.map(|grpc_codes| Retry {
        grpc_codes,
        ..Retry::default()
    }))
}

/// The statuses that the annotation names, if there is one.
fn named(meta: &Meta) -> Result<Option<Vec<u32>>, String> {
    let Some(text) = meta.annotation(GRPC_CODES) else {
        return Ok(None);
    };
    let mut codes = Vec::new();
    for word in text.split(',').map(str::trim) {
        let code = code(word).ok_or_else(|| {
            let word: String = word.chars().take(64).collect();
            format!(
                "the annotation {GRPC_CODES} names `{}`, which is no status of gRPC; write names such as unavailable, or \
                 1 to 16",
                word.escape_default()
            )
        })?;
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    codes.sort_unstable();
    Ok(Some(codes))
}

fn code(word: &str) -> Option<u32> {
    let plain = word.to_ascii_lowercase().replace('_', "-");
    let named = NAMES.iter().zip(1..).find(|(name, _)| **name == plain);
    let number = || word.parse().ok().filter(|code| (1..=16).contains(code));
    named.map(|(_, code)| code).or_else(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(value: &str) -> Meta {
        Meta {
            annotations: std::iter::once((GRPC_CODES.into(), value.into())).collect(),
            ..Meta::default()
        }
    }

    fn codes(value: &str) -> Result<Vec<u32>, String> {
        named(&annotated(value)).map(Option::unwrap_or_default)
    }

    #[test]
    fn statuses_are_named_as_people_write_them() {
        assert_eq!(
            codes("unavailable, RESOURCE_EXHAUSTED,unavailable,10"),
            Ok(vec![8, 10, 14])
        );
        assert_eq!(codes("cancelled,unauthenticated"), Ok(vec![1, 16]));
        assert_eq!(named(&Meta::default()), Ok(None));
        for wrong in ["", "ok", "0", "17", "unavailable,", "never"] {
            let said = codes(wrong).unwrap_err();
            assert!(
                said.contains(GRPC_CODES) && said.contains("1 to 16"),
                "{wrong}: {said}"
            );
        }
    }

    #[test]
    fn a_rule_of_http_needs_its_stanza_and_one_of_grpc_has_none() {
        let meta = annotated("aborted");
        let stanza = RouteRetry {
            attempts: Some(1),
            codes: vec![503],
            ..RouteRetry::default()
        };
        let http = of_http(Some(&stanza), &meta).unwrap().unwrap();
        assert_eq!(
            (http.attempts, http.codes, http.grpc_codes),
            (Some(1), vec![503], vec![10])
        );
        assert_eq!(of_http(None, &meta), Ok(None));
        assert_eq!(of_grpc(&meta).unwrap().unwrap().grpc_codes, [10]);
        assert_eq!(of_grpc(&Meta::default()), Ok(None));
    }
}
