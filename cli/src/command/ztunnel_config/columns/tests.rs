use serde_json::{Value, json};

use super::*;

/// The cells of the one row, and of the header.
fn shown(what: What, width: Width, item: &Value) -> (String, Vec<String>) {
    let header: Vec<_> = match width {
        Width::Usual => usual_header(what).to_vec(),
        Width::Wide => [usual_header(what), wide_header(what)].concat(),
    };
    let row = row(what, width, item);
    assert_eq!(header.len(), row.len(), "{what:?} {width:?}");
    (header.join("|"), row)
}

fn check(what: What, item: &Value, header: &str, row: &str) {
    let (names, cells) = shown(what, Width::Usual, item);
    assert_eq!((names.as_str(), cells.join("|").as_str()), (header, row));
    // What reads the usual columns by their place reads the wide ones, too.
    let (wider, more) = shown(what, Width::Wide, item);
    assert!(wider.starts_with(header) && wider.len() > header.len(), "{wider}");
    assert_eq!(more[..cells.len()], cells[..]);
}

#[test]
fn workloads_are_shown_as_by_istioctl() {
    let way =
        json!({"destination": {"hostname": {"namespace": "shop", "hostname": "way.shop.svc.cluster.local"}}});
    let reviews = json!({"namespace": "shop", "name": "reviews-v1", "addresses": ["10.1.2.7", "fd00::7"], "hostname": "",
        "node": "n2", "waypoint": way, "tunnelProtocol": "HBONE"});
    let header = "NAMESPACE|POD NAME|ADDRESS|NODE|WAYPOINT|PROTOCOL";
    check(
        What::Workloads,
        &reviews,
        header,
        "shop|reviews-v1|10.1.2.7,fd00::7|n2|way|HBONE",
    );
    let by_name = json!({"namespace": "out", "name": "db", "addresses": [], "hostname": "db.example",
        "node": "n1", "waypoint": null, "tunnelProtocol": "NONE"});
    check(What::Workloads, &by_name, header, "out|db|db.example|n1|None|TCP");
}

#[test]
fn services_say_how_many_of_their_endpoints_are_healthy() {
    let vip = |address: &str| json!({"network": "west", "address": address});
    let item = json!({"namespace": "shop", "name": "reviews", "hostname": "reviews.shop.svc.cluster.local",
        "addresses": [vip("10.96.0.1"), vip("10.96.0.2")], "waypoint": null, "ports": {"80": {}, "443": {}},
        "endpoints": [{"status": "HEALTHY"}, {"status": "UNHEALTHY"}, {"status": "HEALTHY"}]});
    check(
        What::Services,
        &item,
        "NAMESPACE|SERVICE NAME|SERVICE VIP|WAYPOINT|ENDPOINTS",
        "shop|reviews|10.96.0.1,10.96.0.2|None|2/3",
    );
    let wide = shown(What::Services, Width::Wide, &item).1;
    assert_eq!(wide[5..], ["reviews.shop.svc.cluster.local", "80,443", "west"]);
}

#[test]
fn a_policy_of_several_nodes_is_one_row_and_in_the_wide_table_one_of_each() {
    let policy = |node: &str, scope: &str| {
        json!({"namespace": "default", "name": "allow-waypoint", "action": "ALLOW", "scope": scope,
            "rules": [{}], "dryRun": false, "onNode": node})
    };
    let header = "NAMESPACE|POLICY NAME|ACTION|SCOPE";
    check(
        What::Policies,
        &policy("n1", "WORKLOAD_SELECTOR"),
        header,
        "default|allow-waypoint|Allow|WorkloadSelector",
    );
    let both = [policy("n1", "NAMESPACE"), policy("n2", "NAMESPACE")];
    assert_eq!(
        rows(What::Policies, Width::Usual, &both),
        [["default", "allow-waypoint", "Allow", "Namespace"]]
    );
    assert_eq!(rows(What::Policies, Width::Wide, &both).len(), 2);
}

#[test]
fn certificates_say_whether_they_are_there_on_their_way_or_refused() {
    let header = "CERTIFICATE NAME|TYPE|STATUS|VALID CERT|SERIAL NUMBER|NOT AFTER|NOT BEFORE";
    let item = |state: &str, serial: Value, error: Value| {
        let time = |time: &str| {
            if serial.is_null() {
                Value::Null
            } else {
                json!(time)
            }
        };
        json!({"identity": "spiffe://td/ns/a/sa/b", "state": state, "serial": serial,
            "notAfter": time("2026-01-02T00:00:00Z"), "notBefore": time("2026-01-01T00:00:00Z"), "lastError": error})
    };
    let held = "e5df|2026-01-02T00:00:00Z|2026-01-01T00:00:00Z";
    for (state, serial, error, row) in [
        (
            "valid",
            json!("e5df"),
            Value::Null,
            format!("Leaf|Available|true|{held}"),
        ),
        (
            "expired",
            json!("e5df"),
            json!("no answer"),
            format!("Leaf|Available|false|{held}"),
        ),
        (
            "pending",
            Value::Null,
            Value::Null,
            "NA|Initializing|false|NA|NA|NA".to_owned(),
        ),
        (
            "pending",
            Value::Null,
            json!("no answer"),
            "NA|Unavailable|false|NA|NA|NA".to_owned(),
        ),
    ] {
        let row = format!("spiffe://td/ns/a/sa/b|{row}");
        check(What::Certificates, &item(state, serial, error), header, &row);
    }
}

#[test]
fn connections_are_seen_from_the_pod_of_the_node() {
    let header = "WORKLOAD|DIRECTION|LOCAL|REMOTE|REMOTE TARGET|PROTOCOL";
    let item = |direction: &str, service: Value, tls: bool| {
        json!({"id": "00ab", "direction": direction, "src": "10.0.0.1:40000", "dst": "10.0.0.2:15008",
            "authority": "10.0.0.2:8080", "service": service, "mutualTls": tls,
            "sourceWorkload": "web", "sourceNamespace": "shop",
            "destinationWorkload": "db-0", "destinationNamespace": "data",
            "bytesSent": 3, "bytesRecv": 4, "openMs": 5, "onNode": "n1"})
    };
    check(
        What::Connections,
        &item("outbound", json!("db.data.svc.cluster.local"), true),
        header,
        "web.shop|Outbound|10.0.0.1:40000|10.0.0.2:15008|db.data.svc.cluster.local|HBONE",
    );
    let inbound = item("inbound", Value::Null, false);
    check(
        What::Connections,
        &inbound,
        header,
        "db-0.data|Inbound|10.0.0.2:15008|10.0.0.1:40000|10.0.0.2:8080|TCP",
    );
    let wide = shown(What::Connections, Width::Wide, &inbound).1;
    assert_eq!(wide[6..], ["web.shop", "7", "5ms", "00ab", "n1"]);
}

#[test]
fn rows_stand_in_the_order_of_namespace_and_name() {
    let named = |namespace: &str, name: &str| json!({"namespace": namespace, "name": name});
    let items = [named("b", "a"), named("a", "z"), named("a", "b")];
    let names: Vec<_> = rows(What::Workloads, Width::Usual, &items)
        .into_iter()
        .map(|row| row[..2].join("/"))
        .collect();
    assert_eq!(names, ["a/b", "a/z", "b/a"]);
}
