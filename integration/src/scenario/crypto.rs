//! Where private keys are, and where they are not.

use std::collections::BTreeSet;
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
    "live keys of a node proxy are looked for on disk and in every other process",
    f35,
)];

/// The start of a P-256 private key in PKCS #8 (RFC 5208, RFC 5915), up to the key itself.
const PKCS8_P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
];
/// Bytes of a P-256 private key.
const KEY_BYTES: usize = 32;

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
        let mut keys = BTreeSet::new();
        let held = eventually(async || {
            keys = keys_in_memory(proxy);
            keys.len() >= pods
        })
        .await;
        let elsewhere = hits_in_others(&mut mesh, &keys);
        let root = mesh
            .mesh
            .folders()
            .state
            .parent()
            .expect("the folders share a root");
        let on_disk = files_below(root)
            .iter()
            .map(|file| hits(file, &keys))
            .sum::<u64>();
        let off = dumps_are_off(proxy);
        let closed = !readable_by_others(proxy);
        Figure::new("F35")
            .expect(
                "keys",
                keys.len(),
                held,
                &format!("≥ {pods}, found in the proxy's own memory"),
            )
            .none("in_other_processes", elsewhere)
            .none("on_disk", on_disk)
            .expect("core_dumps_off", off, off, "true")
            .expect("memory_closed_to_other_uids", closed, closed, "true")
    })
}

/// How often keys of n2's proxy are in the memory of other components.
fn hits_in_others(mesh: &mut TestMesh, keys: &BTreeSet<[u8; KEY_BYTES]>) -> u64 {
    let others = [
        Component::Control,
        Component::Agent("n2".into()),
        Component::Agent("n1".into()),
        Component::Ztunnel("n1".into()),
    ];
    let mut found = 0;
    for component in others {
        let other = mesh.mesh.process(&component).expect("it runs").id();
        found += memory(other).iter().map(|region| hits(region, keys)).sum::<u64>();
    }
    found
}

fn dumps_are_off(process: u32) -> bool {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    limits
        .lines()
        .any(|line| line.starts_with("Max core file size") && line.split_whitespace().nth(4) == Some("0"))
}

/// Private keys in a process's memory, told by the encoding round them.
fn keys_in_memory(process: u32) -> BTreeSet<[u8; KEY_BYTES]> {
    let mut keys = BTreeSet::new();
    for region in memory(process) {
        for at in memchr::memmem::find_iter(&region, PKCS8_P256) {
            let start = at + PKCS8_P256.len();
            if let Some(key) = region.get(start..start + KEY_BYTES) {
                keys.insert(key.try_into().expect("the length is right"));
            }
        }
    }
    keys
}

fn hits(bytes: &[u8], keys: &BTreeSet<[u8; KEY_BYTES]>) -> u64 {
    keys.iter()
        .map(|key| memchr::memmem::find_iter(bytes, key).count() as u64)
        .sum()
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
