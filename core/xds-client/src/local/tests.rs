use std::io::Write;

use tulle_model::Mesh;
use tulle_model::authz::policy::{Action, Scope, StringMatch};
use tulle_model::workload::TunnelProtocol;

use super::*;

const FILE: &str = r#"
workloads:
- uid: c//Pod/shop/web
  name: web
  namespace: shop
  serviceAccount: web
  workloadIps: ["10.0.0.1", "fd00::1"]
  protocol: HBONE
  node: n1
  network: ""
  waypoint:
    destination: shop/waypoint.local
    hboneMtlsPort: 15008
  authorizationPolicies: ["shop/deny-9999"]
  services:
    "shop/web.local":
      80: 8080
    "shop/admin.local": {}
- name: plain
  namespace: shop
  workloadIps: ["10.0.0.2"]
  protocol: TCP
policies:
- name: deny-9999
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  rules:
  - - - notDestinationPorts:
        - 9999
      - principals:
        - Exact: cluster.local/ns/shop/sa/web
        - Presence: []
  dryRun: false
services:
- name: web
  namespace: shop
  hostname: web.local
  vips:
  - /127.10.0.1
  - remote/127.10.0.2
  cidrVips:
  - network: ""
    cidr: 10.9.0.0/16
  ports:
    80: 8080
  subjectAltNames:
  - spiffe://cluster.local/ns/shop/sa/web
  canonical: true
"#;

fn parse(text: &str) -> LocalConfig {
    LocalConfig::parse("file.yaml", text).expect("a good file")
}

#[test]
fn a_whole_file_is_read() {
    let config = parse(FILE);
    let web = &config.workloads[&"c//Pod/shop/web".into()];
    assert_eq!(web.tunnel_protocol, TunnelProtocol::Hbone);
    assert_eq!(web.addresses.len(), 2);
    let ports = &web.services[&NamespacedHostname::new("shop", "web.local")];
    assert_eq!(ports[&80], 8080);
    assert!(web.waypoint.is_some());
    let plain = &config.workloads[&"shop/plain".into()];
    assert_eq!(
        (plain.tunnel_protocol, plain.service_account.as_ref()),
        (TunnelProtocol::None, "default")
    );

    let service = &config.services[&NamespacedHostname::new("shop", "web.local")];
    assert_eq!(service.addresses[1].to_string(), "remote/127.10.0.2");
    assert_eq!(service.cidrs[0].to_string(), "/10.9.0.0/16");
    assert_eq!(service.ports[&80].target_port, Some(8080));

    let policy = &config.policies[&NamespacedName::new("shop", "deny-9999")];
    assert_eq!(
        (policy.scope, policy.action),
        (Scope::WorkloadSelector, Action::Allow)
    );
    let matches = &policy.rules[0].clauses[0].matches;
    assert_eq!(matches[0].not_destination_ports, [9999]);
    assert_eq!(
        matches[1].principals[0],
        StringMatch::Exact("cluster.local/ns/shop/sa/web".into())
    );
    assert_eq!(matches[1].principals[1], StringMatch::Presence);
}

#[test]
fn an_error_tells_file_line_and_cause() {
    for (from, to, cause) in [
        (
            "network: \"\"\n  waypoint",
            "networks: \"\"\n  waypoint",
            "networks",
        ),
        (
            "- /127.10.0.1",
            "- 127.10.0.1",
            "`127.10.0.1` is not <network>/<ip>",
        ),
        ("Allow", "Permit", "Permit"),
        (
            "\"shop/admin.local\"",
            "\"admin.local\"",
            "`admin.local` is not <namespace>/<name>",
        ),
    ] {
        let text = FILE.replace(from, to);
        let line = text[..text.find(to).expect("the replacement")].lines().count();
        let error = LocalConfig::parse("file.yaml", &text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("file.yaml:{line}:")), "{error}");
        assert!(error.contains(cause) && !error.contains("error:"), "{error}");
    }
}

#[test]
fn an_empty_file_is_an_empty_mesh() {
    assert_eq!(parse("{}"), LocalConfig::default());
    assert_eq!(parse("workloads: []\n"), LocalConfig::default());
}

#[test]
fn only_differences_are_applied() {
    let before = parse(FILE);
    let after = parse(&FILE.replace("workloadIps: [\"10.0.0.2\"]", "workloadIps: [\"10.0.0.3\"]"));
    let updates = after.updates_from(&before);
    assert!(matches!(&updates[..], [MeshUpdate::Workload(changed)] if changed.name.as_ref() == "plain"));
    let gone = LocalConfig::default().updates_from(&before);
    assert_eq!(gone.len(), 4);
    assert!(before.updates_from(&before).is_empty());
}

#[test]
fn a_broken_file_keeps_the_last_good_one() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(FILE.as_bytes()).expect("written");
    let state = MeshState::new(Mesh::new());
    let mut local = Local::load(LocalSource::File(file.path().into()), state.clone()).expect("loaded");
    assert!(state.synced());
    assert_eq!(state.snapshot().workloads().count(), 2);

    std::fs::write(file.path(), "workloads: [").expect("written");
    assert!(local.reload().is_err());
    assert_eq!(state.snapshot().workloads().count(), 2);

    std::fs::write(file.path(), "{}").expect("written");
    local.modified = None;
    local.look();
    assert_eq!(state.snapshot().workloads().count(), 0);
}

#[test]
fn a_missing_file_is_named() {
    let source = LocalSource::File("/no/such/file".into());
    let error = Local::load(source, MeshState::new(Mesh::new())).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/file: "), "{error}");
}
