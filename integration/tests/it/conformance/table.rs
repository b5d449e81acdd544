//! The files of behaviours: what is asked, what is expected, and the manifests between.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use serde::Deserialize;

use super::client::Answer;

/// One behaviour.
#[derive(Debug)]
pub(super) struct Behaviour {
    pub(super) name: String,
    pub(super) cases: Vec<Case>,
    pub(super) manifests: String,
}

/// One request and what is expected of it. What is not said is not looked at.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Case {
    /// Who asks; the client of the services' own namespace unless said.
    pub(super) from: Option<String>,
    /// The service that is asked, also by the `host` of the request.
    pub(super) to: Option<String>,
    /// The pod that is asked by its own address.
    pub(super) to_pod: Option<String>,
    #[serde(default = "port")]
    pub(super) port: u16,
    #[serde(default)]
    pub(super) grpc: bool,
    #[serde(default = "path")]
    pub(super) path: String,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(default = "status")]
    status: u16,
    /// Which application answers.
    backend: Option<String>,
    /// The path that it sees.
    seen_path: Option<String>,
    /// Headers that it sees, and that it does not.
    #[serde(default)]
    seen: BTreeMap<String, String>,
    #[serde(default)]
    unseen: Vec<String>,
    /// Headers of the answer, and those that it has not.
    #[serde(default)]
    answer: BTreeMap<String, String>,
    #[serde(default)]
    no_answer: Vec<String>,
    location: Option<String>,
    /// The weights by which applications answer.
    #[serde(default)]
    pub(super) shares: BTreeMap<String, u32>,
}

fn port() -> u16 {
    80
}

fn path() -> String {
    "/".to_owned()
}

fn status() -> u16 {
    200
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    cases: Vec<Case>,
}

/// Every behaviour of a folder, by name.
pub(super) fn read(folder: &Path) -> Vec<Behaviour> {
    let entries = std::fs::read_dir(folder).expect("the folder of behaviours");
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let (table, manifests) = text.split_once("\n---\n").unwrap_or((&text, ""));
        let table: Table =
            serde_saphyr::from_str(table).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Behaviour {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            cases: table.cases,
            manifests: manifests.to_owned(),
        }
    };
    files.iter().map(read).collect()
}

/// The virtual address of a service, as its manifest says it.
pub(super) fn address_of(service: &str) -> IpAddr {
    let last = match service {
        "echo" => 1,
        "echo-v1" => 2,
        "echo-v2" => 3,
        other => panic!("there is no service {other}"),
    };
    Ipv4Addr::new(10, 96, 77, last).into()
}

impl Case {
    /// What is not as expected.
    pub(super) fn wrong(&self, answer: &Answer) -> Option<String> {
        let seen = |name: &str| answer.seen.headers.get(&name.to_ascii_lowercase());
        let told = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        let checks = [
            answer.status == self.status,
            self.backend
                .as_ref()
                .is_none_or(|backend| answer.seen.backend == *backend),
            self.seen_path
                .as_ref()
                .is_none_or(|path| answer.seen.path == *path),
            self.seen.iter().all(|(name, value)| seen(name) == Some(value)),
            self.unseen.iter().all(|name| seen(name).is_none()),
            self.answer.iter().all(|(name, value)| told(name) == Some(value)),
            self.no_answer.iter().all(|name| told(name).is_none()),
            self.location
                .as_ref()
                .is_none_or(|location| told("location") == Some(location)),
            !self.grpc || answer.grpc_status.as_deref() == Some("0"),
        ];
        (!checks.iter().all(|holds| *holds)).then(|| format!("{answer:?}"))
    }
}
