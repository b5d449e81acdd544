//! What is put in place by netlink is what nft puts in place from the text of the design.

use serde_json::Value;
use tulle_agent::rules::Backend;
use tulle_agent::rules::Comparison::Equal;
use tulle_agent::rules::plan::{self, Chain, Hook, Table, Variant};

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
    };
    vec![
        ("capture", plan::capture(&Variant::default())),
        ("capture with DNS", plan::capture(&dns)),
        ("no inbound", plan::capture(&no_inbound)),
        ("DNS and virtual interfaces", plan::capture(&everything)),
        ("drain", plan::drain()),
    ]
}

/// The table as nft shows it, without what the kernel numbers and counts.
fn listed(world: &World) -> Value {
    let mut listed = serde_json::from_str(&world.output("nft", "-j list table inet tulle")).unwrap();
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
            shown.push((listed(&world), world.output("nft", "list ruleset")));
        }
        let (netlink, nft) = (&shown[0], &shown[1]);
        assert_eq!(netlink.1, nft.1, "{variant}, as text");
        assert_eq!(netlink.0, nft.0, "{variant}, as JSON");
        let chains = netlink.0["nftables"].as_array().unwrap();
        assert!(chains.len() > table.chains.len(), "{variant}: {chains:?}");
    }
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
    let standing = plan::drain();
    rules.apply(&world.pod, &standing).await.unwrap();
    let mut table = plan::capture(&Variant::default());
    // The kernel takes names of at most 255 bytes.
    let name: &'static str = Box::leak("x".repeat(300).into_boxed_str());
    table.chains.push(Chain {
        name,
        hook: Hook::MangleOutput,
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
        rules.remove(&world.pod).await.unwrap();
    }
}
