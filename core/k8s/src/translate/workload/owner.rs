//! What a pod belongs to; for telemetry.

use tulle_model::Str;
use tulle_model::workload::WorkloadType;

use crate::api::Meta;

/// The name and kind of a pod's owner.
pub(super) fn of(meta: &Meta) -> (Str, WorkloadType) {
    let owner = meta.owner_references.iter().find(|owner| owner.controller);
    let Some(owner) = owner else {
        return (meta.name.clone(), WorkloadType::Pod);
    };
    match &*owner.kind {
        "ReplicaSet" => match deployment(&owner.name, meta.label("pod-template-hash")) {
            Some(name) => (name.into(), WorkloadType::Deployment),
            None => (owner.name.clone(), WorkloadType::Pod),
        },
        "Job" => match cron_job(&owner.name) {
            Some(name) => (name.into(), WorkloadType::CronJob),
            None => (owner.name.clone(), WorkloadType::Job),
        },
        _ => (owner.name.clone(), WorkloadType::Pod),
    }
}

/// A Deployment names its ReplicaSets after itself and a hash.
fn deployment<'a>(replica_set: &'a str, hash: Option<&str>) -> Option<&'a str> {
    replica_set.strip_suffix(hash?)?.strip_suffix('-')
}

/// A CronJob names its Jobs after itself and a time of 8 to 10 digits.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    ((8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}
