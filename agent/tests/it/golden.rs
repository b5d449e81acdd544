//! What is put in place by netlink is what nft puts in place from the text of the design.

use serde_json::Value;
use tulle_agent::rules::Backend;
use tulle_agent::rules::Comparison::Equal;
use tulle_agent::rules::host::{guard, probes};
use tulle_agent::rules::plan::{self, Cgroup, Hook, ProxyMark, Table, Variant};
use tulle_agent::rules::table::Chain;

use crate::pod::World;

fn tables() -> Vec<(&'static str, Table)> {
    let dns = Variant {
        dns: true,
        ..Variant::default()
    };
    let no_inbound = Variant {
        inbound: false,
        ..Variant::default()
    };
    let everything = Variant {
        dns: true,
        inbound: true,
        reroute: vec!["eth1".parse().unwrap(), "virtual-machine".parse().unwrap()],
        ..Variant::default()
    };
    let secret = Variant {
        mark: ProxyMark::Secret(0x8123_4567),
        ..dns.clone()
    };
    let pods = ["10.9.0.7", "10.9.0.9", "fd00:9::7"].map(|text| text.parse().unwrap());
    let ranges = ["10.9.0.0/24", "10.9.1.0/24", "10.10.0.5", "fd00:9::/64"].map(|text| text.parse().unwrap());
    vec![
        ("capture", plan::capture(&Variant::default())),
        ("capture with DNS", plan::capture(&dns)),
        ("no inbound", plan::capture(&no_inbound)),
        ("DNS and virtual interfaces", plan::capture(&everything)),
        ("secret mark", plan::capture(&secret)),
        ("probes", probes(&pods.into())),
        ("probes of no pod", probes(&[].into())),
        ("guard of ranges", guard(&ranges, &pods.into())),
        ("guard of nobody", guard(&[], &[].into())),
        ("drain", plan::drain(ProxyMark::WellKnown)),
    ]
}

/// The table as nft shows it, without what the kernel numbers and counts.
fn listed(world: &World, table: &Table) -> Value {
    let json = world.output("nft", &format!("-j list table inet {}", table.name));
    let mut listed = serde_json::from_str(&json).unwrap();
    strip(&mut listed);
    listed
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            if let Some(counter) = fields.get_mut("counter") {
                *counter = Value::Null;
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        _ => {}
    }
}

#[tokio::test]
async fn netlink_puts_in_place_what_nft_does() {
    for (variant, table) in tables() {
        let mut shown = Vec::new();
        for backend in [Backend::Netlink, Backend::Nft] {
            let Some(world) = World::new("netlink_puts_in_place_what_nft_does") else {
                return;
            };
            backend.rules().apply(&world.pod, &table).await.unwrap();
            shown.push((listed(&world, &table), world.output("nft", "list ruleset")));
        }
        let (netlink, nft) = (&shown[0], &shown[1]);
        assert_eq!(netlink.1, nft.1, "{variant}, as text");
        assert_eq!(netlink.0, nft.0, "{variant}, as JSON");
        let chains = netlink.0["nftables"].as_array().unwrap();
        assert!(chains.len() > table.chains.len(), "{variant}: {chains:?}");
    }
}

/// A group of the unified hierarchy, where it is mounted below the folder in which nft looks; it goes with the value.
pub(crate) struct Group(std::path::PathBuf);

impl Group {
    /// Where it is.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.0
    }

    /// A group of this name and process, and how rules name it.
    pub(crate) fn new(name: &str) -> Option<(Self, Cgroup)> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2" && point.starts_with("/sys/fs/cgroup")).then(|| point.to_owned())
        })?;
        let folder = std::path::Path::new(&mount).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        let group = Self(folder);
        let path = group.0.strip_prefix("/sys/fs/cgroup").unwrap();
        let cgroup = Cgroup {
            id: std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&group.0).unwrap()),
            level: 1,
            path: path.to_str().unwrap().to_owned(),
        };
        Some((group, cgroup))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn the_guard_of_marks_is_what_nft_makes_of_it() {
    let Some((_group, cgroup)) = Group::new("tulle-golden") else {
        eprintln!(
            "skipped: the_guard_of_marks_is_what_nft_makes_of_it: no unified hierarchy to make a group in"
        );
        return;
    };
    let table = plan::capture(&Variant {
        proxies: vec![cgroup],
        ..Variant::default()
    });
    let mut shown = Vec::new();
    for backend in [Backend::Netlink, Backend::Nft] {
        let Some(world) = World::new("the_guard_of_marks_is_what_nft_makes_of_it") else {
            return;
        };
        backend.rules().apply(&world.pod, &table).await.unwrap();
        shown.push(world.output("nft", "list ruleset"));
    }
    assert!(shown[0].contains("socket cgroupv2 level 1"), "{}", shown[0]);
    assert_eq!(shown[0], shown[1]);
}

#[tokio::test]
async fn each_backend_takes_the_others_table_for_the_planned_one() {
    let (netlink, nft) = (Backend::Netlink.rules(), Backend::Nft.rules());
    for (variant, table) in tables() {
        let Some(world) = World::new("each_backend_takes_the_others_table_for_the_planned_one") else {
            return;
        };
        netlink.apply(&world.pod, &table).await.unwrap();
        assert_eq!(nft.compare(&world.pod, &table).await.unwrap(), Equal, "{variant}");
    }
}

#[tokio::test]
async fn a_refused_message_is_named_and_nothing_of_the_transaction_stays() {
    let Some(world) = World::new("a_refused_message_is_named_and_nothing_of_the_transaction_stays") else {
        return;
    };
    let rules = Backend::Netlink.rules();
    let standing = plan::drain(ProxyMark::WellKnown);
    rules.apply(&world.pod, &standing).await.unwrap();
    let mut table = plan::capture(&Variant::default());
    // The kernel takes names of at most 255 bytes.
    let name: &'static str = Box::leak("x".repeat(300).into_boxed_str());
    table.chains.push(Chain {
        name,
        hook: Some(Hook::MangleOutput),
        rules: Vec::new(),
    });
    let error = rules.apply(&world.pod, &table).await.unwrap_err();
    assert_eq!(error.reason().token(), "rules_refused");
    assert!(
        error.to_string().starts_with("packet rules: chain xxx"),
        "{error}"
    );
    let stays = rules.compare(&world.pod, &standing).await.unwrap();
    assert_eq!(stays, Equal);

    table.chains.pop();
    // Translation is not for chains of this type. Which message the kernel lays it to depends on when it looks.
    table.chains[0].rules.push(plan::Rule::RedirectOutbound);
    let error = rules.apply(&world.pod, &table).await.unwrap_err();
    assert_eq!(error.reason().token(), "rules_refused");
    assert!(error.to_string().contains("Operation not supported"), "{error}");
    let stays = rules.compare(&world.pod, &standing).await.unwrap();
    assert_eq!(stays, Equal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_apply_at_the_same_time_leave_one_whole_table() {
    const ATTEMPTS: usize = 10;
    let Some(world) = World::new("two_that_apply_at_the_same_time_leave_one_whole_table") else {
        return;
    };
    let rules = Backend::Netlink.rules();
    let table = plan::capture(&Variant::default());
    for _ in 0..ATTEMPTS {
        let (one, other) = tokio::join!(rules.apply(&world.pod, &table), rules.apply(&world.pod, &table));
        one.and(other).unwrap();
        let found = rules.compare(&world.pod, &table).await.unwrap();
        assert_eq!(found, Equal);
        rules.remove(&world.pod, "tulle").await.unwrap();
    }
}
