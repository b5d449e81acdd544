//! What a changed weight costs on the wire, among many routes.

use super::waypoints::{POD, WAY, WEB};
use super::*;
use crate::serve::frame::{Encoding, Payload};
use crate::serve::session::{Request, Response, Session};
use crate::serve::viewer::Viewer;

/// Routes of one service.
const ROUTES: usize = 500;
/// What a waypoint may be sent for one changed weight, all responses together.
const BYTES_MAX: usize = 1024;

/// A route with a canary that gets this share; what it says beside is much more than that.
fn canary(number: usize, share: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: canary-{number}, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web}}]
  rules:
  - matches: [{{path: {{value: /{number}}}, headers: [{{name: x-team, value: blue}}]}}]
    filters:
    - type: ExternalAuth
      externalAuth: {{protocol: GRPC, backendRef: {{name: web, port: 80}}}}
    - type: RequestHeaderModifier
      requestHeaderModifier: {{set: [{{name: x-route, value: '{number}'}}]}}
    timeouts: {{request: 10s}}
    backendRefs: [{{name: web, port: 80, weight: {}}}, {{name: web, port: 90, weight: {share}}}]
---
",
        100 - share
    )
}

/// Everything that is sent to a waypoint until nothing is left, each response answered.
fn sent(session: &mut Session<Arc<Snapshot>>, cut: &Arc<Snapshot>) -> Vec<Response> {
    let mut all = Vec::new();
    while let Some(response) = session.poll_send(cut, Instant::now()) {
        let ack = Request {
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            ..Request::default()
        };
        session.on_request(&ack, cut).expect("the stream goes on");
        all.push(response);
    }
    all
}

fn bytes(response: &Response) -> usize {
    let payload = Payload::encode(&response.type_url, &response.resources, &response.removed);
    let message = payload.message(&response.type_url, response.cut, &response.nonce, Encoding::Raw);
    message.len()
}

#[test]
fn a_changed_weight_among_many_routes_costs_a_waypoint_less_than_a_kibibyte() {
    let routes: String = (0..ROUTES).map(|number| canary(number, 1)).collect();
    let text = WAY.to_owned() + WEB + POD + &routes;
    let mut engine = Engine::new(MeshConfig::default());
    let before = Arc::new(engine.apply(batch(objects(&text).into_iter().map(set).collect())));
    let mut session = Session::new(7, Viewer::of_waypoint("shop/way"), before.clone());
    for ty in ResourceType::ALL {
        let request = Request {
            type_url: ty.type_url().into(),
            subscribe: vec!["*".into()],
            ..Request::default()
        };
        session.on_request(&request, &before).expect("the stream goes on");
    }
    let first = sent(&mut session, &before);
    let rules = first.iter().flat_map(|response| response.resources.iter());
    let rules = rules.filter(|slot| slot.name.starts_with("HTTPRoute/shop/canary-"));
    assert_eq!(rules.count(), ROUTES, "the waypoint follows all of them");

    let after = engine.apply(batch(objects(&canary(77, 50)).into_iter().map(set).collect()));
    let after = Arc::new(after);
    let changed = sent(&mut session, &after);
    let names: Vec<Str> = changed
        .iter()
        .flat_map(|response| response.resources.iter().map(|slot| slot.name.clone()))
        .collect();
    assert_eq!(names, [Str::from("HTTPRoute/shop/canary-77/0")]);
    let total: usize = changed.iter().map(bytes).sum();
    assert!((100..BYTES_MAX).contains(&total), "{total} bytes");
}
