//! From manifests, as users write them, to what waypoints are told. Every value differs from its neighbours, so that two
//! fields that change places are seen.

use std::time::Duration;

use super::*;
use crate::testing::{Around, objects};
use crate::translate::condition::Status;

mod backend_tls;
mod bound;
mod security;
mod traffic;

/// A namespace with a waypoint, services behind it, and somebody to ask.
const SHOP: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec:
  gatewayClassName: tulle-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{value: 10.0.0.9}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: way}}
spec:
  clusterIPs: [10.9.0.1]
  ports:
  - {name: http, port: 80}
  - {name: https, port: 443}
  - {port: 5432}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner, namespace: shop, labels: {istio.io/use-waypoint: way}}
spec:
  hosts: [a.partner.example, b.partner.example]
  ports:
  - {name: plain, number: 8080, protocol: HTTP}
  - {name: tls, number: 8443, protocol: HTTP}
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: shop}
spec: {clusterIPs: [10.9.0.2], ports: [{name: grpc, port: 9000}, {name: http, port: 9001}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: checkout, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - name: pay
    backendRefs: [{name: web, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: store, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 5432}]
  rules: [{name: all, backendRefs: [{name: web, port: 5432}]}]
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {name: store, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 5432}]
  rules: [{backendRefs: [{name: web, port: 5432}]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: roots, namespace: shop}
data:
  ca.crt: |
    -----BEGIN CERTIFICATE-----
    roots
---
apiVersion: v1
kind: ConfigMap
metadata: {name: more-roots, namespace: shop}
data:
  ca.crt: |
    -----BEGIN CERTIFICATE-----
    more
---
apiVersion: v1
kind: ConfigMap
metadata: {name: no-roots, namespace: shop}
data: {ca.crt: nothing}
";

fn seconds(number: u64) -> Option<Duration> {
    Some(Duration::from_secs(number))
}

fn texts(all: &[&str]) -> Vec<Str> {
    all.iter().map(|text| Str::from(*text)).collect()
}

/// What becomes of the first object of a text.
fn translate(text: &str, around: &Around) -> Translated {
    policy(&objects(text).remove(0), &[], around)
}

/// Reasons of conditions that do not hold, with their messages.
fn flaws(translated: &Translated) -> Vec<(&str, &str)> {
    let conditions = translated.conditions.iter();
    let failing = conditions.filter(|condition| condition.status == Status::False);
    failing
        .map(|condition| (&*condition.reason, &*condition.message))
        .collect()
}

fn on_service(host: &str, port: Option<u16>) -> Target {
    Target {
        on: On::Service(NamespacedHostname::new("shop", host)),
        port,
        section: None,
    }
}

const WEB: &str = "web.shop.svc.cluster.local";
