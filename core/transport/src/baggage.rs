//! The `baggage` header: how one side of a tunnel describes its workload to the other, for telemetry only.

use std::fmt;

use tulle_model::Workload;
use tulle_model::workload::WorkloadType;

/// Longest value that is taken over; a longer one counts as absent.
const VALUE_LENGTH_MAX: usize = 256;

/// Kinds of owners in the order the keys are tried.
const KINDS: [WorkloadType; 4] = [
    WorkloadType::Deployment,
    WorkloadType::CronJob,
    WorkloadType::Job,
    WorkloadType::Pod,
];

/// A workload as its own proxy describes it. Every field is a claim; none takes part in authorization.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// Kind and name of the owner: `k8s.deployment.name`, `k8s.cronjob.name`, `k8s.job.name` or `k8s.pod.name`.
    pub workload: Option<(WorkloadType, String)>,
    /// `service.name`, the canonical name.
    pub service_name: Option<String>,
    /// `service.version`, the canonical revision.
    pub service_version: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
}

impl Baggage {
    /// Describes `workload`.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        Self {
            cluster: present(&workload.cluster_id),
            namespace: present(&workload.namespace),
            workload: present(&workload.workload_name).map(|name| (workload.workload_type, name)),
            service_name: present(&workload.canonical_name),
            service_version: present(&workload.canonical_revision),
            region: present(&workload.locality.region),
            zone: present(&workload.locality.zone),
        }
    }

    /// Reads what is understood; unknown keys are skipped, the last value of a key wins.
    #[must_use]
    pub fn parse(header: &str) -> Self {
        let mut baggage = Self::default();
        for member in header.split(',') {
            if let Some((key, value)) = member.split_once('=') {
                baggage.set(key.trim(), present(value.trim()));
            }
        }
        baggage
    }

    /// Whether nothing is described.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn set(&mut self, key: &str, value: Option<String>) {
        match key {
            "k8s.cluster.name" => self.cluster = value,
            "k8s.namespace.name" => self.namespace = value,
            "service.name" => self.service_name = value,
            "service.version" => self.service_version = value,
            "cloud.region" => self.region = value,
            "cloud.availability_zone" => self.zone = value,
            _ => {
                let kind = KINDS.into_iter().find(|kind| key == workload_key(*kind));
                if let Some(kind) = kind {
                    self.workload = value.map(|name| (kind, name));
                }
            }
        }
    }
}

impl fmt::Display for Baggage {
    /// The header's value, keys in the order of the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match &self.workload {
            Some((kind, name)) => (workload_key(*kind), Some(name)),
            None => ("", None),
        };
        let members = [
            ("k8s.cluster.name", self.cluster.as_ref()),
            ("k8s.namespace.name", self.namespace.as_ref()),
            (kind, name),
            ("service.name", self.service_name.as_ref()),
            ("service.version", self.service_version.as_ref()),
            ("cloud.region", self.region.as_ref()),
            ("cloud.availability_zone", self.zone.as_ref()),
        ];
        let mut separator = "";
        for (key, value) in members {
            if let Some(value) = value {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

fn workload_key(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Job => "k8s.job.name",
        WorkloadType::Pod => "k8s.pod.name",
    }
}

/// A value that can stand in the header: not empty, printable, without the header's own separators.
fn present(value: &str) -> Option<String> {
    let usable = (1..=VALUE_LENGTH_MAX).contains(&value.len())
        && value
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b',' && b != b'=');
    usable.then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_stand_in_the_order_of_the_wire() {
        let text = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,\
                    service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        assert_eq!(Baggage::parse(text).to_string(), text);
    }

    #[test]
    fn empty_values_are_absent_and_the_last_one_wins() {
        let baggage =
            Baggage::parse("service.name=a,service.name=b,cloud.region=,unknown=x,k8s.pod.name=p,noise");
        assert_eq!(baggage.service_name.as_deref(), Some("b"));
        assert_eq!(baggage.region, None);
        assert_eq!(baggage.workload, Some((WorkloadType::Pod, "p".to_owned())));
    }

    #[test]
    fn values_that_would_break_the_header_are_left_out() {
        let long = "x".repeat(VALUE_LENGTH_MAX + 1);
        assert_eq!(Baggage::parse(&format!("service.name={long}")).service_name, None);
        assert_eq!(present("a,b=c"), None);
        assert_eq!(present("a\r\nb"), None);
    }

    proptest! {
        #[test]
        fn what_was_parsed_is_written_and_parsed_alike(text in "([a-z0-9.]{0,24}=[ -~]{0,12},?){0,8}") {
            let parsed = Baggage::parse(&text);
            prop_assert_eq!(Baggage::parse(&parsed.to_string()), parsed);
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            let parsed = Baggage::parse(&text);
            prop_assert_eq!(Baggage::parse(&parsed.to_string()), parsed);
        }
    }
}
