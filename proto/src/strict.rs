//! Finds field numbers that a schema does not name, which decoding would drop without a word.
//!
//! Decoders skip unknown fields, so that old readers take new messages. For a policy that is the wrong way
//! round: the skipped part may be the condition that made it refuse.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use crate::convert::{Cause, Flaw, undecodable};

/// The fields of one message type.
pub(crate) struct Schema {
    fields: &'static [Field],
}

struct Field {
    number: u32,
    name: &'static str,
    inner: Option<&'static Schema>,
}

const fn leaf(number: u32, name: &'static str) -> Field {
    Field {
        number,
        name,
        inner: None,
    }
}

const fn message(number: u32, name: &'static str, schema: &'static Schema) -> Field {
    Field {
        number,
        name,
        inner: Some(schema),
    }
}

/// `istio.security.Authorization` with everything below it.
pub(crate) static AUTHORIZATION: Schema = Schema {
    fields: &[
        leaf(1, "name"),
        leaf(2, "namespace"),
        leaf(3, "scope"),
        leaf(4, "action"),
        message(5, "rules", &RULE),
        leaf(6, "dry_run"),
        message(7, "extensions", &EXTENSION),
    ],
};

static RULE: Schema = Schema {
    fields: &[message(1, "clauses", &CLAUSE)],
};

static CLAUSE: Schema = Schema {
    fields: &[message(2, "matches", &MATCH)],
};

static MATCH: Schema = Schema {
    fields: &[
        message(1, "namespaces", &STRING_MATCH),
        message(2, "not_namespaces", &STRING_MATCH),
        message(3, "principals", &STRING_MATCH),
        message(4, "not_principals", &STRING_MATCH),
        message(5, "source_ips", &ADDRESS),
        message(6, "not_source_ips", &ADDRESS),
        message(7, "destination_ips", &ADDRESS),
        message(8, "not_destination_ips", &ADDRESS),
        leaf(9, "destination_ports"),
        leaf(10, "not_destination_ports"),
        message(11, "service_accounts", &SERVICE_ACCOUNT),
        message(12, "not_service_accounts", &SERVICE_ACCOUNT),
        message(13, "extensions", &EXTENSION),
    ],
};

static STRING_MATCH: Schema = Schema {
    fields: &[
        leaf(1, "exact"),
        leaf(2, "prefix"),
        leaf(3, "suffix"),
        message(4, "presence", &EMPTY),
    ],
};

static ADDRESS: Schema = Schema {
    fields: &[leaf(1, "address"), leaf(2, "length")],
};

static SERVICE_ACCOUNT: Schema = Schema {
    fields: &[leaf(1, "namespace"), leaf(2, "serviceAccount")],
};

static EXTENSION: Schema = Schema {
    fields: &[leaf(1, "name"), message(2, "config", &ANY)],
};

static ANY: Schema = Schema {
    fields: &[leaf(1, "type_url"), leaf(2, "value")],
};

static EMPTY: Schema = Schema { fields: &[] };

/// `tulle.waypoint.v1.Policy` as far as it decides who may do what; below other concerns anything goes.
pub(crate) static POLICY: Schema = Schema {
    fields: &[
        message(1, "origin", &ORIGIN),
        message(2, "targets", &TARGET),
        leaf(3, "dry_run"),
        leaf(4, "object"),
        message(10, "authz", &AUTHZ),
        message(11, "jwt", &JWT),
        message(12, "ext_authz", &EXT_AUTHZ),
        leaf(13, "deny_all"),
        leaf(20, "fault"),
        leaf(21, "local_rate_limit"),
        leaf(22, "global_rate_limit"),
        leaf(23, "circuit"),
        leaf(24, "outlier"),
        leaf(25, "load_balancing"),
        leaf(26, "retry_budget"),
        leaf(27, "session"),
        leaf(28, "backend_tls"),
    ],
};

static ORIGIN: Schema = Schema {
    fields: &[
        leaf(1, "kind"),
        leaf(2, "namespace"),
        leaf(3, "name"),
        leaf(4, "rule_index"),
        leaf(5, "rule_name"),
        leaf(6, "created"),
        leaf(7, "generation"),
    ],
};

static HOSTNAME: Schema = Schema {
    fields: &[leaf(1, "namespace"), leaf(2, "hostname")],
};

static TARGET: Schema = Schema {
    fields: &[
        message(1, "service", &HOSTNAME),
        message(2, "route", &ORIGIN),
        leaf(3, "waypoint"),
        leaf(4, "mesh"),
        leaf(5, "workload_uid"),
        leaf(6, "port"),
        leaf(7, "section"),
        leaf(8, "class"),
    ],
};

static AUTHZ: Schema = Schema {
    fields: &[
        leaf(1, "action"),
        message(2, "rules", &AUTHZ_RULE),
        leaf(3, "provider"),
    ],
};

static AUTHZ_RULE: Schema = Schema {
    fields: &[
        message(1, "from", &AUTHZ_FROM),
        message(2, "to", &AUTHZ_TO),
        message(3, "when", &AUTHZ_WHEN),
        leaf(4, "is_partial"),
    ],
};

static AUTHZ_FROM: Schema = Schema {
    fields: &[
        message(1, "principals", &STRING_SET),
        message(2, "namespaces", &STRING_SET),
        message(3, "request_principals", &STRING_SET),
        message(4, "ips", &CIDR_SET),
        message(5, "remote_ips", &CIDR_SET),
        message(6, "service_accounts", &SERVICE_ACCOUNT_SET),
    ],
};

static AUTHZ_TO: Schema = Schema {
    fields: &[
        message(1, "hosts", &STRING_SET),
        message(2, "ports", &PORT_SET),
        message(3, "methods", &STRING_SET),
        message(4, "paths", &PATH_SET),
    ],
};

static AUTHZ_WHEN: Schema = Schema {
    fields: &[
        leaf(1, "key"),
        message(2, "values", &STRING_SET),
        message(3, "ips", &CIDR_SET),
    ],
};

static STRING_SET: Schema = Schema {
    fields: &[
        message(1, "any", &STRING_MATCH),
        message(2, "none", &STRING_MATCH),
    ],
};

static CIDR_SET: Schema = Schema {
    fields: &[message(1, "any", &ADDRESS), message(2, "none", &ADDRESS)],
};

static PORT_SET: Schema = Schema {
    fields: &[leaf(1, "any"), leaf(2, "none")],
};

static SERVICE_ACCOUNT_SET: Schema = Schema {
    fields: &[
        message(1, "any", &SERVICE_ACCOUNT),
        message(2, "none", &SERVICE_ACCOUNT),
    ],
};

static PATH_SET: Schema = Schema {
    fields: &[
        message(1, "any", &PATH_PATTERN),
        message(2, "none", &PATH_PATTERN),
    ],
};

static PATH_PATTERN: Schema = Schema {
    fields: &[message(1, "text", &STRING_MATCH), leaf(2, "template")],
};

static JWT: Schema = Schema {
    fields: &[message(1, "rules", &JWT_RULE)],
};

static JWT_RULE: Schema = Schema {
    fields: &[
        leaf(1, "issuer"),
        leaf(2, "audiences"),
        leaf(3, "inline"),
        leaf(4, "uri"),
        message(5, "discover", &EMPTY),
        message(6, "from_headers", &PAIR),
        leaf(7, "from_params"),
        leaf(8, "from_cookies"),
        leaf(9, "forward_token"),
        leaf(10, "payload_to_header"),
        message(11, "claims_to_headers", &PAIR),
        leaf(12, "timeout"),
    ],
};

static PAIR: Schema = Schema {
    fields: &[leaf(1, "first"), leaf(2, "second")],
};

static EXT_AUTHZ: Schema = Schema {
    fields: &[
        leaf(1, "provider"),
        message(2, "grpc", &BACKEND),
        message(3, "http", &HTTP_ASK),
        leaf(4, "headers"),
        leaf(5, "response_headers"),
        leaf(6, "body_bytes_max"),
        leaf(7, "allow_partial"),
        leaf(8, "timeout"),
        leaf(9, "fail_open"),
        leaf(10, "status_on_error"),
    ],
};

static HTTP_ASK: Schema = Schema {
    fields: &[message(1, "backend", &BACKEND), leaf(2, "path")],
};

static BACKEND: Schema = Schema {
    fields: &[
        message(1, "service", &HOSTNAME),
        leaf(2, "invalid"),
        leaf(3, "port"),
        leaf(4, "weight"),
        leaf(5, "filters"),
    ],
};

/// Succeeds if every field in `body`, at every depth, is one of the schema. Depth is that of the schema.
pub(crate) fn check(mut body: &[u8], schema: &Schema) -> Result<(), Flaw> {
    let mut seen = vec![0_usize; schema.fields.len()];
    while body.has_remaining() {
        let (number, wire_type) = decode_key(&mut body).map_err(undecodable)?;
        let unknown = || Flaw::new("message", Cause::UnknownField(number));
        let index = schema
            .fields
            .iter()
            .position(|field| field.number == number)
            .ok_or_else(unknown)?;
        let value = take_value(&mut body, wire_type)?;
        let field = &schema.fields[index];
        if let (Some(inner), WireType::LengthDelimited) = (field.inner, wire_type) {
            let place = |flaw: Flaw| flaw.within(format_args!("{}[{}]", field.name, seen[index]));
            check(value, inner).map_err(place)?;
        }
        seen[index] += 1;
    }
    Ok(())
}

/// What a policy calls itself and selects, read without decoding the rest.
pub(crate) struct Heading<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) namespace: &'a [u8],
    pub(crate) scope: i32,
}

/// The heading of an Authorization whose top level can be walked to its end; absent fields are zero.
pub(crate) fn heading(mut body: &[u8]) -> Option<Heading<'_>> {
    let mut heading = Heading {
        name: &[],
        namespace: &[],
        scope: 0,
    };
    while body.has_remaining() {
        let (number, wire_type) = decode_key(&mut body).ok()?;
        match (number, wire_type) {
            (1, WireType::LengthDelimited) => heading.name = take_value(&mut body, wire_type).ok()?,
            (2, WireType::LengthDelimited) => heading.namespace = take_value(&mut body, wire_type).ok()?,
            (3, WireType::Varint) => heading.scope = i32::try_from(decode_varint(&mut body).ok()?).ok()?,
            _ => take_value(&mut body, wire_type).map(drop).ok()?,
        }
    }
    Some(heading)
}

/// Steps over one value and returns the bytes of a length-delimited one.
fn take_value<'a>(body: &mut &'a [u8], wire_type: WireType) -> Result<&'a [u8], Flaw> {
    let truncated = || Flaw::new("message", Cause::Truncated);
    let length = match wire_type {
        WireType::Varint => return decode_varint(body).map(|_| &[][..]).map_err(undecodable),
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => {
            // A length beyond memory is beyond the body too.
            usize::try_from(decode_varint(body).map_err(undecodable)?).unwrap_or(usize::MAX)
        }
        WireType::StartGroup | WireType::EndGroup => return Err(truncated()),
    };
    let (value, rest) = body.split_at_checked(length).ok_or_else(truncated)?;
    *body = rest;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::security;

    fn unknown(body: &[u8]) -> Option<(String, Cause)> {
        check(body, &AUTHORIZATION)
            .map_err(|flaw| flaw.of("p"))
            .err()
            .map(|flaw| (flaw.field, flaw.cause))
    }

    #[test]
    fn a_known_policy_passes() {
        let policy = security::Authorization {
            name: "p".into(),
            ..Default::default()
        };
        assert_eq!(unknown(&policy.encode_to_vec()), None);
        assert_eq!(unknown(&[]), None);
    }

    #[test]
    fn an_unknown_field_deep_inside_is_found_with_its_path() {
        // rules { clauses { matches { namespaces { 9: 1 } } } }
        let text_match = [0x48, 0x01];
        let wrap = |key: u8, inner: &[u8]| {
            let length = u8::try_from(inner.len()).expect("a short message");
            [&[key, length], inner].concat()
        };
        let body = wrap(0x2a, &wrap(0x0a, &wrap(0x12, &wrap(0x0a, &text_match))));
        let (path, cause) = unknown(&body).expect("field 9 is unknown");
        assert_eq!(path, "rules[0].clauses[0].matches[0].namespaces[0].message");
        assert_eq!(cause, Cause::UnknownField(9));
    }

    #[test]
    fn a_clause_that_uses_field_one_is_unknown() {
        assert_eq!(unknown(&[0x2a, 2, 0x0a, 0]), None);
        assert!(matches!(
            unknown(&[0x2a, 4, 0x0a, 2, 0x0a, 0]),
            Some((_, Cause::UnknownField(1)))
        ));
    }

    #[test]
    fn truncated_bytes_are_an_error_and_not_a_panic() {
        assert!(matches!(unknown(&[0x2a, 100]), Some((_, Cause::Truncated))));
        assert!(matches!(unknown(&[0x2a, 5, 1]), Some((_, Cause::Truncated))));
        assert!(matches!(unknown(&[0x2b]), Some((_, Cause::Truncated))));
    }
}
