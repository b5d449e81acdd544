//! How an object became what it is, step by step.

use super::*;
use crate::engine::trace::Step;

const MESH: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way}}\n---\n\
apiVersion: v1\nkind: Node\nmetadata: {name: n1, annotations: {tulle.dev/enrolment: derived}}\n---\n\
apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, clusterIPs: [10.96.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}\n---\n\
apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{}]}\n---\n";
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, labels: {app: web}}\nspec: {nodeName: n1}\nstatus: {phase: Running, podIP: 10.0.0.1}\n";

fn steps(text: &str, key: &Key) -> Vec<Step> {
    let mut engine = Engine::new(MeshConfig::default());
    engine.apply(batch(objects(text).into_iter().map(set).collect()));
    engine.explain(key)
}

fn pod() -> Key {
    Key::new(Kind::Pod, "shop", "web-1")
}

fn of<'a>(steps: &'a [Step], rule: &str) -> Vec<&'a Step> {
    steps.iter().filter(|step| step.rule == rule).collect()
}

#[test]
fn the_way_from_a_pod_to_its_workload_is_told_in_order() {
    let steps = steps(&format!("{MESH}{POD}"), &pod());
    let rules: Vec<&str> = steps.iter().map(|step| step.rule).collect();
    let expected = [
        "service",
        "enrolment",
        "policy",
        "waypoint",
        "condition",
        "resource",
        "resource",
    ];
    assert_eq!(rules, expected, "its waypoint is told of it, too");
    let service = of(&steps, "service")[0];
    assert_eq!(service.outcome, "shop/web.shop.svc.cluster.local");
    assert_eq!(service.object, Some(Key::new(Kind::Service, "shop", "web")));
    assert_eq!(service.text, "ports 80 -> 8080");
    assert_eq!(of(&steps, "enrolment")[0].outcome, "HBONE");
    assert_eq!(of(&steps, "policy")[0].outcome, "shop/deny");
    assert_eq!(of(&steps, "resource")[1].outcome, "Kubernetes//Pod/shop/web-1");
}

#[test]
fn why_nothing_became_of_a_pod_is_told() {
    let waiting = POD.replace(", podIP: 10.0.0.1", "");
    let told = steps(&format!("{MESH}{waiting}"), &pod());
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].field, &*told[0].outcome), ("status.podIP", "none"));
    let over = POD.replace("Running", "Succeeded");
    let told = steps(&format!("{MESH}{over}"), &pod());
    assert_eq!((told[0].field, &*told[0].outcome), ("status.phase", "Succeeded"));
    let other = POD.replace("web-1", "web-0");
    let told = steps(&format!("{MESH}{POD}---\n{other}"), &pod());
    assert_eq!(of(&told, "condition").len(), 1);
    assert!(
        of(&told, "condition")[0]
            .text
            .contains("web-0 has address 10.0.0.1 too")
    );
    assert!(of(&told, "resource").is_empty());
    assert!(steps(MESH, &pod()).is_empty(), "there is no such object");
}

#[test]
fn a_service_tells_its_waypoint_and_who_means_it() {
    let told = steps(MESH, &Key::new(Kind::Service, "shop", "web"));
    let waypoint = of(&told, "waypoint")[0];
    assert!(waypoint.outcome.starts_with("Pending: "), "{waypoint:?}");
    assert_eq!(waypoint.object, Some(Key::new(Kind::Gateway, "shop", "way")));
    assert_eq!(of(&told, "canonical").len(), 1);
}
