//! Where private keys are, and where they are not.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use tulle_world::Component;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::mesh::eventually;
use crate::traffic::{Echo, gets_through};
use crate::{TestMesh, manifest};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F35",
    40,
    "encoded private keys are looked for on disk and in processes that have no business with them",
    f35,
)];

/// What the encodings of a P-256 private key have in common: the start of PKCS #8 (RFC 5208, RFC 5915) up to the key, and
/// the line that begins its text form (RFC 7468).
const ENCODINGS: [&[u8]; 2] = [
    &[
        0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
        0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
    ],
    b"-----BEGIN PRIVATE KEY-----\nMI",
];

fn f35(scale: Scale) -> Run {
    Box::pin(async move {
        let pods = scale.pick(5, 50);
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        let web = mesh.pod("n1", "web").await;
        let mut all = vec![web.clone()];
        for index in 0..pods {
            all.push(
                mesh.pod_in(
                    manifest::NAMESPACE,
                    "n2",
                    &format!("app-{index}"),
                    &format!("app-{index}"),
                )
                .await,
            );
        }
        mesh.start().await;
        mesh.captured(&all.iter().collect::<Vec<_>>()).await;
        let echo = Echo::start(all[1].namespace(), all[1].ipv4(), PORT).await;
        let (from, to) = (web.namespace(), echo.address());
        assert!(
            eventually(async || gets_through(from, to).await).await,
            "{}",
            mesh.logs()
        );
        let component = Component::Ztunnel("n2".into());
        let proxy = mesh.mesh.process(&component).expect("it runs").id();
        let live = eventually(async || certificates(&mesh).await >= pods).await;
        let elsewhere = hits_in_agents(&mut mesh);
        let folders = mesh.mesh.folders();
        let root = folders.state.parent().expect("the folders share a root");
        let on_disk = hits_below(root);
        // The authority's own key is a file: a search that does not find it would find nothing else either.
        let authority = hits_below(&folders.state.join("ca"));
        let off = dumps_are_off(proxy);
        let closed = !readable_by_others(proxy);
        Figure::new("F35")
            .expect("live_certificates", pods, live, "every pod has one")
            .expect(
                "authority_found",
                authority,
                authority > 0,
                "> 0, else nothing was searched",
            )
            .none("on_disk_elsewhere", on_disk - authority)
            .none("in_agents", elsewhere)
            .expect("core_dumps_off", off, off, "true")
            .expect("memory_closed_to_other_uids", closed, closed, "true")
    })
}

/// Certificates that n2's proxy can use.
async fn certificates(mesh: &TestMesh) -> usize {
    let dump = mesh.ask(&Component::Ztunnel("n2".into()), "/config_dump").await;
    let all = dump["certificates"].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter(|one| one["state"] == "valid").count()
}

/// How often an encoded key is in the memory of agents, which have no business with keys of workloads.
fn hits_in_agents(mesh: &mut TestMesh) -> u64 {
    let mut found = 0;
    for node in ["n1", "n2"] {
        let component = Component::Agent(node.into());
        let process = mesh.mesh.process(&component).expect("it runs").id();
        found += memory(process).iter().map(|region| hits(region)).sum::<u64>();
    }
    found
}

fn dumps_are_off(process: u32) -> bool {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    limits
        .lines()
        .any(|line| line.starts_with("Max core file size") && line.split_whitespace().nth(4) == Some("0"))
}

/// How often an encoded key is in the files below a folder.
fn hits_below(folder: &Path) -> u64 {
    files_below(folder).iter().map(|file| hits(file)).sum()
}

fn hits(bytes: &[u8]) -> u64 {
    let count = |encoding| memchr::memmem::find_iter(bytes, encoding).count() as u64;
    ENCODINGS.iter().copied().map(count).sum()
}

/// Every writable region of a process that can be read.
fn memory(process: u32) -> Vec<Vec<u8>> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mut file = std::fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let mut regions = Vec::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((start, end)) = range.split_once('-') else {
            continue;
        };
        if !rights.starts_with("rw") {
            continue;
        }
        let (start, end) = (
            u64::from_str_radix(start, 16).unwrap(),
            u64::from_str_radix(end, 16).unwrap(),
        );
        let mut region = vec![0; usize::try_from(end - start).unwrap()];
        // A region may have gone since it was listed.
        if file.seek(SeekFrom::Start(start)).is_ok() && file.read_exact(&mut region).is_ok() {
            regions.push(region);
        }
    }
    regions
}

fn files_below(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_below(&entry.path()));
        } else if kind.is_file()
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            found.push(bytes);
        }
    }
    found
}

/// Whether another user could read the process's memory: the kernel gives the file of a process that may not be
/// dumped to root.
fn readable_by_others(process: u32) -> bool {
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "head", "-c1"]);
    command.arg(format!("/proc/{process}/environ"));
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
