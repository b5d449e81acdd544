use super::*;
use crate::document::documents;

fn reading(text: &str) -> Reading {
    read(documents(text)[0].as_ref().expect("readable"))
}

#[test]
fn a_missing_namespace_is_default() {
    let Reading::Good { key, object, .. } = reading("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    else {
        panic!("good");
    };
    assert_eq!(key.to_string(), "Service default/a");
    assert_eq!(&*object.meta().namespace, "default");
}

#[test]
fn an_unknown_field_warns_and_is_an_error_in_security_kinds() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  selectr: {app: a}\n";
    let Reading::Good { warnings, .. } = reading(service) else {
        panic!("good")
    };
    assert_eq!(
        warnings[0].to_string(),
        "line 5, column 3: there is no field `spec.selectr`; did you mean `selector`?"
    );
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n  - from:\n    - source:\n        principles: [x]\n";
    let Reading::Bad { faults, stand_in, .. } = reading(policy) else {
        panic!("bad")
    };
    assert_eq!(
        faults[0].to_string(),
        "line 8, column 9: there is no field `spec.rules[0].from[0].source.principles`; did you mean `principals`?"
    );
    assert!(stand_in.is_some());
}

#[test]
fn a_value_that_does_not_fit_names_its_place_and_the_fix() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec:\n  address: 10.0.0.1\n  labels:\n    version: 1\n";
    let Reading::Bad { faults, stand_in, .. } = reading(entry) else {
        panic!("bad")
    };
    assert_eq!(
        faults[0].to_string(),
        "line 7, column 14: `spec.labels.version`: invalid type: integer `1`, expected a string; put the value in quotes"
    );
    assert!(stand_in.is_none());
}

#[test]
fn kinds_that_are_not_read_are_skipped() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n";
    assert!(matches!(reading(deployment), Reading::Skipped(_)));
    let knative = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n";
    assert!(matches!(reading(knative), Reading::Skipped(_)));
}

#[test]
fn a_name_that_is_no_name_is_not_trusted_as_a_key() {
    for name in ["../../etc/passwd", "a/b", "UPPER", "", "-a", "a\u{7}"] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: \"{name}\"}}\n");
        let documents = documents(&text);
        if let Ok(node) = &documents[0] {
            assert!(matches!(read(node), Reading::Unknown(_)), "{name}");
        }
    }
}

#[test]
fn a_stand_in_keeps_a_readable_selector() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  selector: {matchLabels: {app: web}}\n  rules: 7\n";
    let Reading::Bad { stand_in, .. } = reading(text) else {
        panic!("bad")
    };
    let stand_in = stand_in.expect("a security kind");
    let Object::AuthorizationPolicy(policy) = &*stand_in else {
        panic!("policy")
    };
    assert!(policy.spec.selector.is_some());
    assert!(!policy.unreadable.as_ref().expect("unreadable").selector);
}

#[test]
fn a_selector_that_cannot_be_honoured_is_unreadable() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  selector: {matchExpressions: []}\n";
    let Reading::Bad { stand_in, .. } = reading(text) else {
        panic!("bad")
    };
    let stand_in = stand_in.expect("a security kind");
    let Object::AuthorizationPolicy(policy) = &*stand_in else {
        panic!("policy")
    };
    assert!(policy.unreadable.as_ref().expect("unreadable").selector);
}

#[test]
fn a_rare_kind_does_not_make_the_common_ones_large() {
    let (object, pod) = (size_of::<Object>(), size_of::<Pod>());
    assert!(object <= pod + 8, "{object} bytes for a pod of {pod}");
    // There may be a hundred thousand of them; lists that pods have in common and what few have stand apart.
    assert!(pod <= 280, "{pod} bytes");
}
