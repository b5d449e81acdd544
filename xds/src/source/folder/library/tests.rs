//! Facts about what stays in force; no disk, no clock.

use tulle_k8s::Kind;

use super::*;
use crate::source::folder::packed::Packed;
use crate::source::folder::scan::File;

mod mutation;
mod own;

/// A folder on paper.
struct Paper {
    library: Library,
    scan: Scan,
}

impl Paper {
    fn new() -> Self {
        Self {
            library: Library::default(),
            scan: Scan::default(),
        }
    }

    fn put(mut self, path: &str, text: &str) -> Self {
        let file = File {
            text: Ok(Arc::new(Packed::of(text))),
            is_fresh: false,
            changed: None,
        };
        self.scan.files.insert(path.into(), file);
        self
    }

    fn remove(mut self, path: &str) -> Self {
        self.scan.files.remove(path);
        self
    }

    fn settle(&mut self) -> Settled {
        self.library.settle(&self.scan, Timestamp::UNIX_EPOCH)
    }

    fn settled(mut self) -> Self {
        self.settle();
        self
    }

    fn object(&self, key: &Key) -> Option<&InForce> {
        self.library.entries.get(key).map(|entry| &entry.in_force)
    }

    fn label(&self, name: &str) -> Option<String> {
        let object = self.object(&service_key(name))?;
        object.object.meta().label("v").map(str::to_owned)
    }

    fn codes(&self) -> Vec<String> {
        self.library
            .problems
            .iter()
            .map(|problem| format!("{}:{} {}", problem.file, problem.line, problem.reason.code()))
            .collect()
    }
}

fn service_key(name: &str) -> Key {
    Key::new(Kind::Service, "default", name)
}

fn service(name: &str, version: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{v: {version}}}}}\nspec: {{clusterIP: 10.9.0.1}}\n---\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n---\n"
    )
}

fn policy_key() -> Key {
    Key::new(Kind::AuthorizationPolicy, "default", "p")
}

#[test]
fn a_scan_that_says_nothing_new_is_no_generation() {
    let mut paper = Paper::new().put("a.yaml", &service("a", "v1"));
    assert_eq!(paper.settle().batch.expect("new").generation, 1);
    assert!(paper.settle().batch.is_none());
    // Comments and order are nothing new either.
    let mut paper = paper.put("a.yaml", &format!("# comment\n{}", service("a", "v1")));
    assert!(paper.settle().batch.is_none());
}

#[test]
fn a_changed_and_a_removed_object_are_events() {
    let paper = Paper::new()
        .put("a.yaml", &(service("a", "v1") + &service("b", "v1")))
        .settled();
    let mut paper = paper.put("a.yaml", &service("a", "v2"));
    let events = paper.settle().batch.expect("new").events;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.key.to_string(), event.object.is_some()))
        .collect();
    assert_eq!(
        told,
        [
            ("Service default/b".to_owned(), false),
            ("Service default/a".to_owned(), true)
        ]
    );
}

#[test]
fn a_broken_file_keeps_all_of_its_objects() {
    let paper = Paper::new()
        .put("a.yaml", &(service("a", "v1") + &service("b", "v1")))
        .settled();
    let paper = paper.put("a.yaml", &(service("a", "v2") + "{broken")).settled();
    assert_eq!(paper.label("a").as_deref(), Some("v1"));
    assert_eq!(paper.label("b").as_deref(), Some("v1"));
    assert_eq!(paper.object(&service_key("a")).unwrap().stale_since, Some(2));
    assert_eq!(paper.codes().len(), 1);
    let paper = paper.put("a.yaml", &service("a", "v3")).settled();
    assert_eq!(
        (paper.label("a").as_deref(), paper.label("b")),
        (Some("v3"), None)
    );
    assert_eq!(paper.object(&service_key("a")).unwrap().stale_since, None);
}

#[test]
fn a_broken_file_does_not_hold_up_the_others() {
    let paper = Paper::new()
        .put("a.yaml", "{broken")
        .put("b.yaml", &service("b", "v1"))
        .settled();
    assert_eq!(paper.label("b").as_deref(), Some("v1"));
}

#[test]
fn a_bad_object_is_refused_alone() {
    let paper = Paper::new()
        .put("a.yaml", &(service("a", "v1") + &service("b", "v1")))
        .settled();
    let paper = paper
        .put("a.yaml", &(service("a", "7") + &service("b", "v2")))
        .settled();
    assert_eq!(paper.label("a").as_deref(), Some("v1"));
    assert_eq!(paper.label("b").as_deref(), Some("v2"));
    assert_eq!(paper.codes(), ["a.yaml:3 T0201"]);
}

/// A service, a policy and another service in one file.
fn three(version: &str, policy: &str) -> String {
    service("a", version) + policy + &service("b", version)
}

#[test]
fn an_object_whose_name_or_kind_is_spoilt_stays_and_so_does_nothing_else() {
    let good = policy("{action: DENY, rules: [{}]}");
    let before = Paper::new().put("a.yaml", &three("v1", &good)).settled();
    for (spoilt, code) in [
        (good.replace("name: p", "name: P!"), "T0201"),
        (good.replace("name: p", "nam: p"), "T0201"),
        (good.replace("kind: ", "knd: "), "T0201"),
        (good.replace("apiVersion: ", "version: "), "T0201"),
        (
            good.replace("AuthorizationPolicy", "AuthorisationPolicy"),
            "T0207",
        ),
        (good.replace("security.istio", "securty.istio"), "T0207"),
    ] {
        let mut paper = Paper {
            library: before.library.clone(),
            scan: before.scan.clone(),
        };
        paper = paper.put("a.yaml", &three("v2", &spoilt)).settled();
        for name in ["a", "b"] {
            assert_eq!(paper.label(name).as_deref(), Some("v2"), "beside {spoilt}");
        }
        let kept = paper.object(&policy_key()).expect("it may be that document");
        assert_eq!(kept.stale_since, Some(2), "{spoilt}");
        let codes = paper.codes();
        assert_eq!(codes.len(), 2, "the document and the object: {codes:?}");
        assert!(codes.iter().any(|told| told.ends_with(code)), "{codes:?}");
        let paper = paper.put("a.yaml", &three("v3", "")).settled();
        assert!(paper.object(&policy_key()).is_none(), "now it is gone");
        assert_eq!(paper.codes(), [""; 0]);
    }
}

#[test]
fn what_stands_beside_a_document_that_is_not_read_may_go() {
    let foreign = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\n---\n";
    let paper = Paper::new()
        .put("a.yaml", &(service("a", "v1") + foreign))
        .settled();
    let paper = paper.put("a.yaml", foreign).settled();
    assert_eq!(paper.label("a"), None);
}

#[test]
fn an_object_that_moves_away_from_a_document_without_name_is_taken_from_where_it_is() {
    let stray = service("P!", "v1");
    let paper = Paper::new()
        .put("a.yaml", &(service("a", "v1") + &stray))
        .settled();
    let paper = paper
        .put("a.yaml", &stray)
        .put("b.yaml", &service("a", "v2"))
        .settled();
    assert_eq!(paper.label("a").as_deref(), Some("v2"));
    assert_eq!(paper.codes(), ["a.yaml:3 T0201"]);
}

#[test]
fn what_may_restrict_access_and_names_no_object_is_waited_for_at_the_first_start() {
    for (text, synced) in [
        (service("A!", "v1"), true),
        (policy("{rules: [{}]}").replace("name: p", "name: P!"), false),
        (
            policy("{rules: [{}]}").replace("Authorization", "Authorisation"),
            false,
        ),
    ] {
        let mut paper = Paper::new()
            .put("a.yaml", &service("a", "v1"))
            .put("b.yaml", &text);
        assert_eq!(paper.settle().batch.expect("new").synced, synced, "{text}");
        // Once everything was known, nothing that is added takes it back.
        let mut paper = Paper::new().put("a.yaml", &service("a", "v1")).settled();
        paper = paper.put("a.yaml", &(service("a", "v2") + &text));
        assert!(paper.settle().batch.expect("new").synced, "{text}");
        assert_eq!(paper.label("a").as_deref(), Some("v2"));
    }
}

#[test]
fn a_file_that_is_cut_off_between_a_kind_and_its_name_keeps_all_of_its_objects() {
    let whole = service("a", "v1") + &service("b", "v1");
    let mut paper = Paper::new()
        .put("a.yaml", &whole)
        .settled()
        .put("a.yaml", "apiVersion: v1\nkind: Service\n");
    paper.scan.files.get_mut("a.yaml").unwrap().is_fresh = true;
    let first = paper.settle();
    assert!(first.read_again && first.news.is_empty());
    assert!(paper.label("a").is_some() && paper.label("b").is_some());
    let paper = paper.put("a.yaml", &whole).settled();
    assert_eq!(paper.codes(), [""; 0]);
}

#[test]
fn a_policy_that_never_was_good_denies() {
    let paper = Paper::new().put("p.yaml", &policy("{rulez: []}")).settled();
    assert!(
        paper
            .object(&policy_key())
            .expect("a stand-in")
            .object
            .is_stand_in()
    );
    assert_eq!(paper.codes(), ["p.yaml:4 T0003"]);
}

#[test]
fn a_policy_that_was_good_stays_as_it_was() {
    let paper = Paper::new().put("p.yaml", &policy("{rules: [{}]}")).settled();
    let paper = paper.put("p.yaml", &policy("{rulez: []}")).settled();
    let kept = paper.object(&policy_key()).expect("the good one");
    assert!(!kept.object.is_stand_in());
    assert_eq!(kept.stale_since, Some(2));
}

#[test]
fn a_new_policy_in_a_broken_file_is_not_lost() {
    let paper = Paper::new()
        .put(
            "p.yaml",
            &(policy("{action: DENY, rules: [{}]}") + &service("a", "v1") + "{broken"),
        )
        .settled();
    assert!(paper.object(&policy_key()).is_some());
    assert!(paper.label("a").is_none());
}

#[test]
fn the_first_path_wins_and_the_other_is_refused() {
    let paper = Paper::new()
        .put("b.yaml", &service("a", "second"))
        .put("a.yaml", &service("a", "first"))
        .settled();
    assert_eq!(paper.label("a").as_deref(), Some("first"));
    assert_eq!(paper.codes(), ["b.yaml:1 T0203"]);
    let paper = paper.remove("a.yaml").settled();
    assert_eq!(paper.label("a").as_deref(), Some("second"));
}

#[test]
fn one_key_twice_in_a_file_is_refused_too() {
    let paper = Paper::new()
        .put("a.yaml", &(service("a", "first") + &service("a", "second")))
        .settled();
    assert_eq!(paper.label("a").as_deref(), Some("first"));
    assert_eq!(paper.codes(), ["a.yaml:6 T0203"]);
}

#[test]
fn an_emptied_folder_keeps_ten_objects_and_gives_up_nine() {
    for (count, kept) in [(9, 0), (10, 10)] {
        let all: String = (0..count)
            .map(|number| service(&format!("s{number}"), "v1"))
            .collect();
        let mut paper = Paper::new().put("a.yaml", &all).settled().remove("a.yaml");
        let batch = paper.settle().batch.expect("new");
        assert_eq!(paper.library.entries.len(), kept);
        assert_eq!(batch.degraded.is_some(), kept > 0);
    }
}

#[test]
fn a_vanished_root_keeps_everything_until_it_is_back() {
    let mut paper = Paper::new().put("a.yaml", &service("a", "v1")).settled();
    let files = std::mem::take(&mut paper.scan.files);
    paper.scan.no_root = Some("gone".into());
    let batch = paper.settle().batch.expect("new");
    assert!(batch.degraded.is_some() && batch.synced && batch.events.is_empty());
    (paper.scan.files, paper.scan.no_root) = (files, None);
    assert_eq!(paper.settle().batch.expect("new").degraded, None);
}

#[test]
fn a_directory_that_cannot_be_read_keeps_its_objects() {
    let mut paper = Paper::new()
        .put("team/a.yaml", &service("a", "v1"))
        .settled()
        .remove("team/a.yaml");
    paper
        .scan
        .unreadable
        .insert("team".into(), "permission denied".into());
    paper.settle();
    assert_eq!(paper.label("a").as_deref(), Some("v1"));
    assert_eq!(paper.codes(), ["team:0 T0202"]);
}

#[test]
fn a_fresh_broken_file_is_read_again_before_it_is_told() {
    let mut paper = Paper::new()
        .put("a.yaml", &service("a", "v1"))
        .settled()
        .put("a.yaml", "{half");
    paper.scan.files.get_mut("a.yaml").unwrap().is_fresh = true;
    let first = paper.settle();
    assert!(first.read_again && first.news.is_empty());
    let second = paper.settle();
    assert!(!second.read_again);
    assert_eq!(second.news.len(), 1);
    assert_eq!(paper.label("a").as_deref(), Some("v1"));
}

#[test]
fn a_part_of_the_files_is_no_mesh_until_all_were_read_once() {
    let mut paper = Paper::new()
        .put("a.yaml", &service("a", "v1"))
        .put("b.yaml", "{broken");
    paper.scan.files.get_mut("b.yaml").unwrap().is_fresh = true;
    for _ in 0..2 {
        // Whether it was told of the file yet or not.
        assert!(!paper.settle().batch.expect("new").synced);
    }
    let mut paper = paper.put("b.yaml", &service("b", "v1"));
    assert!(paper.settle().batch.expect("new").synced);
    let mut paper = paper.put("b.yaml", "{broken");
    assert!(
        paper.settle().batch.expect("new").synced,
        "its last good form is known"
    );
    assert_eq!(paper.label("b").as_deref(), Some("v1"));
    // One that was only being written, and is gone before it was told of.
    let mut paper = Paper::new()
        .put("a.yaml", &service("a", "v1"))
        .put("b.yaml", "{half");
    paper.scan.files.get_mut("b.yaml").unwrap().is_fresh = true;
    assert!(!paper.settle().batch.expect("new").synced);
    let mut paper = paper.remove("b.yaml");
    assert!(paper.settle().batch.expect("that it is whole is news").synced);
    let mut unreadable = Paper::new().put("a.yaml", &service("a", "v1"));
    let denied = "permission denied".to_owned();
    unreadable.scan.unreadable.insert("team".into(), denied);
    assert!(!unreadable.settle().batch.expect("new").synced);
}

#[test]
fn findings_are_told_once() {
    let mut paper = Paper::new().put("a.yaml", "{broken");
    assert_eq!(paper.settle().news.len(), 1);
    let mut paper = paper.put("b.yaml", &service("b", "v1"));
    assert_eq!(paper.settle().news.len(), 0);
}

#[test]
fn age_is_what_is_written_or_the_first_sight() {
    let paper = Paper::new().put("a.yaml", &service("a", "v1"));
    let mut paper = paper;
    paper
        .library
        .settle(&paper.scan, Timestamp::from_second(10).unwrap());
    let mut paper = paper.put("a.yaml", &service("a", "v2"));
    paper
        .library
        .settle(&paper.scan, Timestamp::from_second(20).unwrap());
    let object = paper.object(&service_key("a")).unwrap();
    assert_eq!(
        object.object.meta().creation_timestamp,
        Some(Timestamp::from_second(10).unwrap())
    );
}

#[test]
fn an_object_that_moves_to_another_file_stays_in_force() {
    let paper = Paper::new().put("a.yaml", &service("a", "v1")).settled();
    let mut paper = paper.remove("a.yaml").put("b.yaml", &service("a", "v1"));
    let events = paper.settle().batch.expect("new").events;
    assert!(events.iter().all(|event| event.object.is_some()));
}

/// The first address of a service, given or not.
fn given(paper: &Paper, name: &str) -> String {
    let Object::Service(service) = &*paper.object(&service_key(name)).expect("it is in force").object else {
        panic!("a Service is one");
    };
    let addresses = [&service.spec.cluster_ip]
        .into_iter()
        .chain(&service.spec.cluster_ips);
    let mut addresses = addresses.filter(|address| !address.is_empty());
    addresses.next().expect("it has one").to_string()
}

#[test]
fn an_address_that_a_user_names_is_the_users_and_who_was_given_it_moves() {
    let open = "apiVersion: v1\nkind: Service\nmetadata: {name: open}\nspec: {ports: [{port: 80}]}\n";
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: [e.example], resolution: STATIC, ports: [{number: 80, name: http}]}\n";
    let first = Paper::new().put("a.yaml", open).settled();
    let taken = given(&first, "open");
    let [_, _, high, low] = taken.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let number = u16::from_be_bytes([high, low]);
    for named in [
        service("c", "v1").replace("clusterIP: 10.9.0.1", &format!("clusterIPs: [{taken}]")),
        service("c", "v1").replace("10.9.0.1", &taken),
        service("c", "v1").replace("10.9.0.1", &format!("'2001:2::{number:x}'")),
        entry.to_owned() + &format!("status: {{addresses: [{{value: {taken}, host: e.example}}]}}\n"),
        entry.replace("STATIC,", &format!("STATIC, addresses: [{taken}],")),
    ] {
        let mut paper = Paper {
            library: first.library.clone(),
            scan: first.scan.clone(),
        };
        paper = paper.put("b.yaml", &named).settled();
        let moved = given(&paper, "open");
        assert!(
            moved != taken && moved.starts_with("240.240."),
            "{moved}, beside {named}"
        );
        assert!(paper.settle().batch.is_none(), "and stays there");
        // It keeps what it was given then, also when nobody names the other any more.
        let paper = paper.remove("b.yaml").settled();
        assert_eq!(given(&paper, "open"), moved);
    }
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way}\n\
    spec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";

fn instance(address: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: way-1}}\nspec: {{address: {address}, \
         labels: {{gateway.networking.k8s.io/gateway-name: way}}}}\n"
    )
}

fn addresses(paper: &Paper) -> Vec<String> {
    let key = Key::new(Kind::Gateway, "default", "way");
    let Object::Gateway(gateway) = &*paper.object(&key).unwrap().object else {
        panic!("a Gateway is one");
    };
    let addresses = gateway.status.addresses.iter();
    addresses.map(|address| address.value.to_string()).collect()
}

#[test]
fn a_gateway_is_where_its_instances_are_and_never_nowhere_again() {
    let mut paper = Paper::new().put("way.yaml", GATEWAY).settled();
    assert_eq!(addresses(&paper), [""; 0]);
    paper = paper.put("instance.yaml", &instance("10.0.0.7"));
    assert!(paper.settle().batch.is_some(), "the engine hears of it");
    assert_eq!(addresses(&paper), ["10.0.0.7"]);
    assert!(paper.settle().batch.is_none(), "nothing is new");
    paper = paper.put("instance.yaml", &instance("10.0.0.8")).settled();
    assert_eq!(addresses(&paper), ["10.0.0.8"], "they moved");
    paper = paper.remove("instance.yaml").settled();
    assert_eq!(addresses(&paper), ["10.0.0.8"], "traffic never goes around it");
}

#[test]
fn a_gateway_that_says_where_it_is_is_there() {
    let told = format!("{GATEWAY}status: {{addresses: [{{value: 10.0.0.1}}]}}\n");
    let paper = Paper::new()
        .put("way.yaml", &told)
        .put("instance.yaml", &instance("10.0.0.7"))
        .settled();
    assert_eq!(addresses(&paper), ["10.0.0.1"]);
}
