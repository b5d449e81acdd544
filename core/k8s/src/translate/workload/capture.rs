//! What a pod asks of its capture, by annotations: told to the agent of its node as extensions of the same names.

use tulle_model::Str;
use tulle_model::workload::Workload;

use crate::api::Meta;

/// Annotations that say how a pod is captured, with what their values must be.
const CAPTURE_ANNOTATIONS: [(&str, Values); 4] = [
    ("ambient.istio.io/dns-capture", Values::Choice(&["true", "false"])),
    (
        "ambient.istio.io/bypass-inbound-capture",
        Values::Choice(&["true", "false"]),
    ),
    ("istio.io/reroute-virtual-interfaces", Values::Interfaces),
    (
        "tulle.dev/existing-connections",
        Values::Choice(&["keep", "reset"]),
    ),
];

/// Interfaces are at most 16 names of 15 letters, with commas between.
const INTERFACES_BYTES_MAX: usize = 16 * 16;

#[derive(Debug, Clone, Copy)]
enum Values {
    Choice(&'static [&'static str]),
    Interfaces,
}

impl Values {
    fn allow(self, value: &str) -> bool {
        match self {
            Self::Choice(choices) => choices.contains(&value),
            Self::Interfaces => {
                let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ',' | ' ');
                value.len() <= INTERFACES_BYTES_MAX && value.chars().all(plain)
            }
        }
    }

    fn name(self) -> String {
        match self {
            Self::Choice(choices) => choices.join(" or "),
            Self::Interfaces => "names of interfaces, separated by commas".to_owned(),
        }
    }
}

/// Adds the extensions of a workload that has an agent; a value that means nothing is left out and told.
pub(super) fn extend(workload: &mut Workload, meta: &Meta, findings: &mut Vec<String>) {
    if workload.node.is_empty() {
        return;
    }
    for (name, values) in CAPTURE_ANNOTATIONS {
        let Some(value) = meta.annotations.get(name) else {
            continue;
        };
        if values.allow(value) {
            workload.extensions.insert(Str::from(name), value.clone());
        } else {
            findings.push(format!(
                "annotation {name} must be {}; it is left out",
                values.name()
            ));
        }
    }
}
