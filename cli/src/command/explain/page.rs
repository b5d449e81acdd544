//! The explanation as people read it.

use serde_json::Value;
use tulle_model::reason::Reason;

use super::Explained;

/// Marks what decides.
const DECIDES: &str = "        ◀ decides";

/// Writes it, line by line.
pub(super) fn write(explained: &Explained) -> String {
    let source = &explained.source;
    let mut lines = vec![format!(
        "source   spiffe://{}/ns/{}/sa/{}   (node {})",
        text(&source["trustDomain"]),
        text(&source["namespace"]),
        text(&source["serviceAccount"]),
        text(&source["node"])
    )];
    lines.push(format!("path     {} {}", explained.destination, way(explained)));
    lines.push(verdict("caller  ", &explained.outbound));
    if let Some(waypoint) = &explained.waypoint {
        requests(waypoint, &mut lines);
    }
    if let Some(inbound) = &explained.inbound {
        lines.push(verdict("server  ", inbound));
    }
    lines.push(format!("verdict  {}", explained.verdict));
    lines.join("\n") + "\n"
}

fn way(explained: &Explained) -> String {
    let plan = &explained.outbound["plan"];
    match (plan["kind"].as_str(), &explained.waypoint) {
        (Some(_), Some(waypoint)) => {
            let last = onward(&waypoint["backends"][0]["endpoints"][0]);
            format!("──HBONE──▶ waypoint {}{last}", text(&waypoint["waypoint"]))
        }
        (Some("hbone"), None) => format!(
            "──HBONE──▶ {} for {}",
            text(&plan["next_hop"]),
            text(&plan["authority"])
        ),
        (Some(_), None) => format!("──plain──▶ {}", text(&plan["next_hop"])),
        (None, _) => "refused by the caller's proxy".to_owned(),
    }
}

/// From the waypoint to an endpoint, if there is one.
fn onward(endpoint: &Value) -> String {
    let Some(address) = endpoint["address"].as_str() else {
        return String::new();
    };
    match (endpoint["encryption"].as_str(), endpoint["tunnelled"].as_bool()) {
        (Some("tls"), _) => format!(" ──TLS──▶ {address}"),
        (Some("none"), _) | (None, Some(false)) => format!(" ──plain──▶ {address} (unencrypted)"),
        _ => format!(" ──HBONE──▶ {address}"),
    }
}

/// The stages at the waypoint; the last one decides where it does not go on.
fn requests(waypoint: &Value, lines: &mut Vec<String>) {
    let status = waypoint["status"]
        .as_u64()
        .map_or_else(String::new, |status| format!(" {status}"));
    let word = match waypoint["verdict"].as_str() {
        Some("deny") => "DENY",
        Some("reply") => "REPLY",
        _ => "ALLOW",
    };
    let by = waypoint["decidedBy"]
        .as_str()
        .map_or_else(String::new, |by| format!(" by {by}"));
    let because = waypoint["reason"]
        .as_str()
        .map_or_else(String::new, |reason| format!("   {}", helped(reason)));
    lines.push(format!(
        "waypoint {word}{status}{by}{because}   (generation {})",
        waypoint["generation"]
    ));
    let steps = waypoint["steps"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, step) in steps.iter().enumerate() {
        let decides = index + 1 == steps.len() && waypoint["verdict"] != "allow";
        lines.push(format!(
            "  {:<10} {}{}",
            text(&step["stage"]),
            text(&step["outcome"]),
            if decides { DECIDES } else { "" }
        ));
        let details = step["details"].as_array().into_iter().flatten();
        lines.extend(details.map(|detail| format!("             {}", text(detail))));
    }
}

fn verdict(place: &str, answer: &Value) -> String {
    let generation = &answer["generation"];
    let policy = answer["policy"]
        .as_str()
        .map(|policy| format!(" by {policy}"))
        .unwrap_or_default();
    match (answer["verdict"].as_str(), answer["reason"].as_str()) {
        (Some("deny"), Some(reason)) => {
            format!(
                "{place} DENY{policy}   {}   (generation {generation})",
                helped(reason)
            )
        }
        (Some("deny"), None) => format!("{place} DENY{policy}   (generation {generation})"),
        _ => format!("{place} ALLOW{policy}   (generation {generation})"),
    }
}

/// A code and its token, with what it means.
fn helped(reason: &str) -> String {
    let code = reason.split(' ').next();
    let help = code.and_then(Reason::from_code).map_or("", Reason::help);
    format!("{reason}: {help}")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_encrypted_is_said_to_be_so() {
        for (endpoint, expect) in [
            (
                json!({"address": "10.0.0.7:80", "tunnelled": true, "encryption": "mutual_tls"}),
                " ──HBONE──▶ 10.0.0.7:80",
            ),
            (
                json!({"address": "10.0.0.7:80", "tunnelled": false, "encryption": "tls"}),
                " ──TLS──▶ 10.0.0.7:80",
            ),
            (
                json!({"address": "10.0.0.7:80", "tunnelled": false, "encryption": "none"}),
                " ──plain──▶ 10.0.0.7:80 (unencrypted)",
            ),
            (Value::Null, ""),
        ] {
            assert_eq!(onward(&endpoint), expect);
        }
    }

    #[test]
    fn the_stage_that_decides_is_marked() {
        let explained = Explained {
            source: json!({"trustDomain": "cluster.local", "namespace": "shop", "serviceAccount": "web", "node": "n1"}),
            destination: "10.96.0.13:9080".parse().unwrap(),
            outbound: json!({"plan": {"kind": "hbone", "next_hop": "10.11.2.9:15008"}, "generation": 3}),
            waypoint: Some(json!({
                "waypoint": "shop/way", "generation": 4, "verdict": "deny", "status": 403,
                "reason": "T0412 policy_denied", "decidedBy": "AuthorizationPolicy/shop/no-admin/authz",
                "steps": [{"stage": "request", "outcome": "GET ratings/admin"},
                    {"stage": "policy", "outcome": "denied", "details": ["DENY no-admin: rule[0] matches"]}],
                "backends": [],
            })),
            inbound: None,
            verdict: "deny",
        };
        assert_eq!(
            write(&explained),
            "source   spiffe://cluster.local/ns/shop/sa/web   (node n1)\n\
             path     10.96.0.13:9080 ──HBONE──▶ waypoint shop/way\n\
             caller   ALLOW   (generation 3)\n\
             waypoint DENY 403 by AuthorizationPolicy/shop/no-admin/authz   T0412 policy_denied: a DENY rule matched   \
             (generation 4)\n  \
             request    GET ratings/admin\n  \
             policy     denied        ◀ decides\n             \
             DENY no-admin: rule[0] matches\n\
             verdict  deny\n"
        );
    }
}
