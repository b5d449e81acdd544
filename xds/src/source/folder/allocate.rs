//! Virtual addresses for services that name none: by the hash of their host name, kept for as long as it is there.
//!
//! What was given once is input from then on: a restart, or another host that comes first, changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tulle_k8s::api::networking::AllocatedAddress;
use tulle_k8s::translate::service;
use tulle_k8s::{Key, Object};
use tulle_model::Str;

/// Addresses are given out of `240.240.0.0/16` …
const V4: [u8; 2] = [240, 240];
/// … and the same number below `2001:2::/48`.
const V6: [u16; 3] = [0x2001, 0x2, 0];
/// Numbers of the range; the first and the last stay free.
const NUMBERS: u32 = 1 << 16;
/// A freed address is not given to anybody else for this long.
const FREED_KEPT: Duration = Duration::from_secs(3600);

/// The addresses that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Allocations {
    /// Number within the range, by `<namespace>/<hostname>`.
    given: BTreeMap<Str, u16>,
    /// Those that were freed not long ago.
    freed: BTreeMap<Str, Freed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Freed {
    number: u16,
    at: Timestamp,
}

/// The number of an address of the range.
fn number_of(text: &str) -> Option<u16> {
    let host = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128"));
    match host.unwrap_or(text).parse().ok()? {
        IpAddr::V4(address) => match address.octets() {
            [first, second, high, low] if [first, second] == V4 => Some(u16::from_be_bytes([high, low])),
            _ => None,
        },
        IpAddr::V6(address) => match address.segments() {
            [first, second, third, 0, 0, 0, 0, number] if [first, second, third] == V6 => Some(number),
            _ => None,
        },
    }
}

/// The addresses of a number.
fn addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    let v4 = Ipv4Addr::new(V4[0], V4[1], high, low);
    let v6 = Ipv6Addr::new(V6[0], V6[1], V6[2], 0, 0, 0, 0, number);
    [v4.into(), v6.into()]
}

/// Who wants addresses and which are taken, kept by counting, so that a change costs what it touches.
#[derive(Debug, Clone, Default)]
pub(super) struct Demand {
    /// Host names, by the object that wants them.
    wants: BTreeMap<Key, Vec<Str>>,
    hosts: BTreeMap<Str, usize>,
    /// Numbers of the range that users name, by the object that does.
    named: BTreeMap<Key, BTreeSet<u16>>,
    /// How many do.
    taken: BTreeMap<u16, usize>,
    /// Objects with a host that could not be given an address.
    unserved: BTreeSet<Key>,
    /// What nobody wants of all that was given has been taken back.
    is_compared: bool,
}

/// Host names that are wanted from now on, and those that are not any more.
#[derive(Debug, Default)]
struct Moved {
    gained: BTreeSet<Str>,
    lost: BTreeSet<Str>,
    /// Numbers that users name from now on.
    named: BTreeSet<u16>,
}

impl Demand {
    /// Counts an object in the place of an old one.
    fn replace(&mut self, key: &Key, new: Option<&Object>, allocations: &Allocations, moved: &mut Moved) {
        let wanted = new.map(|object| wanted(object, allocations)).unwrap_or_default();
        let mut named: BTreeSet<u16> = new.map(named).unwrap_or_default();
        // What it was given is no user's word.
        for given in wanted.iter().filter_map(|host| allocations.given.get(host)) {
            named.remove(given);
        }
        for number in &named {
            if step(&mut self.taken, number, true) {
                moved.named.insert(*number);
            }
        }
        let before = match named.is_empty() {
            true => self.named.remove(key),
            false => self.named.insert(key.clone(), named),
        };
        for number in before.iter().flatten() {
            step(&mut self.taken, number, false);
        }
        let before = match wanted.is_empty() {
            true => self.wants.remove(key),
            false => self.wants.insert(key.clone(), wanted.clone()),
        };
        for host in before.unwrap_or_default() {
            if step(&mut self.hosts, &host, false) && !moved.gained.remove(&host) {
                moved.lost.insert(host);
            }
        }
        for host in wanted {
            if step(&mut self.hosts, &host, true) && !moved.lost.remove(&host) {
                moved.gained.insert(host);
            }
        }
    }
}

/// Counts up or down; says whether the first came or the last went.
fn step<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>, key: &K, add: bool) -> bool {
    let count = counts.entry(key.clone()).or_default();
    *count = if add { *count + 1 } else { count.saturating_sub(1) };
    let edge = *count == usize::from(add);
    if *count == 0 {
        counts.remove(key);
    }
    edge
}

/// An object of which another form may have come into force.
pub(super) struct Change<'a> {
    pub(super) key: &'a Key,
    pub(super) new: Option<&'a Object>,
}

impl Allocations {
    /// Gives addresses to what needs some of these objects, and takes back those that nobody needs any more. Returns the
    /// objects that are other ones with their addresses.
    pub(super) fn assign<'a>(
        self: &mut Arc<Self>,
        demand: &mut Demand,
        changes: impl Iterator<Item = Change<'a>>,
        object: impl Fn(&Key) -> Option<Arc<Object>>,
        now: Timestamp,
    ) -> Vec<(Key, Object)> {
        let mut moved = Moved::default();
        let mut looked_at = std::mem::take(&mut demand.unserved);
        for Change { key, new } in changes {
            demand.replace(key, new, self, &mut moved);
            looked_at.insert(key.clone());
        }
        if !std::mem::replace(&mut demand.is_compared, true) {
            let given = self.given.keys();
            let unwanted = given.filter(|host| !demand.hosts.contains_key(*host));
            moved.lost.extend(unwanted.cloned());
        }
        let withdrawn = self.withdraw(&moved, demand);
        let of_withdrawn = demand.wants.iter().filter(|(_, hosts)| {
            let mut hosts = hosts.iter();
            !withdrawn.is_empty() && hosts.any(|host| withdrawn.contains_key(host))
        });
        looked_at.extend(of_withdrawn.map(|(key, _)| key.clone()));
        let unserved = looked_at.iter().filter_map(|key| demand.wants.get(key)).flatten();
        let unserved: BTreeSet<Str> = unserved
            .filter(|host| !self.given.contains_key(*host))
            .cloned()
            .collect();
        if !moved.lost.is_empty() || !unserved.is_empty() {
            let taken = demand.taken.keys().copied().collect();
            Arc::make_mut(self).shift(&moved.lost, &unserved, &taken, now);
        }
        let mut completed = Vec::new();
        for key in looked_at {
            let Some(wants) = demand.wants.get(&key) else {
                continue;
            };
            if wants.iter().any(|host| !self.given.contains_key(host)) {
                demand.unserved.insert(key.clone());
            }
            let Some(object) = object(&key) else { continue };
            let without = without(&object, &withdrawn);
            let object = self.complete(without.as_ref().unwrap_or(&object));
            completed.extend(object.or(without).map(|object| (key, object)));
        }
        completed
    }

    /// Takes back what was given before a user named it, by host.
    fn withdraw(self: &mut Arc<Self>, moved: &Moved, demand: &Demand) -> BTreeMap<Str, u16> {
        let is_named = |number: &u16| moved.named.contains(number) && demand.taken.contains_key(number);
        if !moved.named.iter().any(is_named) {
            return BTreeMap::new();
        }
        let given = self.given.iter();
        let given = given.filter(|(host, number)| is_named(number) && !moved.lost.contains(*host));
        let withdrawn: BTreeMap<Str, u16> = given.map(|(host, number)| (host.clone(), *number)).collect();
        if !withdrawn.is_empty() {
            Arc::make_mut(self)
                .given
                .retain(|host, _| !withdrawn.contains_key(host));
        }
        withdrawn
    }

    /// Takes back the addresses of hosts that are gone, and gives some to those that have none.
    fn shift(&mut self, lost: &BTreeSet<Str>, gained: &BTreeSet<Str>, taken: &BTreeSet<u16>, now: Timestamp) {
        for host in lost {
            if let Some(number) = self.given.remove(host) {
                self.freed.insert(host.clone(), Freed { number, at: now });
            }
        }
        let kept = SignedDuration::try_from(FREED_KEPT).unwrap_or_default();
        self.freed.retain(|_, freed| now.duration_since(freed.at) < kept);
        for host in gained {
            if self.given.contains_key(host) {
                continue;
            }
            let again = self.freed.remove(host).map(|freed| freed.number);
            let number = again
                .filter(|number| !taken.contains(number))
                .or_else(|| self.free(host, taken));
            if let Some(number) = number {
                self.given.insert(host.clone(), number);
            }
        }
    }

    /// The first free number from the hash of the host on.
    fn free(&self, host: &str, taken: &BTreeSet<u16>) -> Option<u16> {
        let mut used: BTreeSet<u16> = self.given.values().copied().collect();
        used.extend(self.freed.values().map(|freed| freed.number));
        used.extend(taken);
        let start = hash(host) % NUMBERS;
        let numbers = (0..NUMBERS).map(|step| (start + step) % NUMBERS);
        let mut numbers = numbers.filter_map(|number| u16::try_from(number).ok());
        numbers.find(|number| !matches!(*number, 0 | u16::MAX) && !used.contains(number))
    }

    /// The object with the addresses given to it, if that is a change.
    fn complete(&self, object: &Object) -> Option<Object> {
        match object {
            Object::Service(service) if needs(service) => {
                let number = self.given.get(&name_of(service))?;
                let mut service = service.clone();
                let families = &service.spec.ip_families;
                let fits = |address: &IpAddr| {
                    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                    families.is_empty() || families.iter().any(|known| &**known == family)
                };
                let texts = addresses(*number)
                    .into_iter()
                    .filter(fits)
                    .map(|address| address.to_string().into());
                service.spec.cluster_ips = texts.collect();
                Some(Object::Service(service))
            }
            Object::ServiceEntry(entry) => {
                let mut entry = entry.clone();
                let hosts: Vec<Str> = open_hosts(&entry).cloned().collect();
                for host in &hosts {
                    let key: Str = format!("{}/{host}", entry.metadata.namespace).into();
                    let given = self
                        .given
                        .get(&key)
                        .into_iter()
                        .flat_map(|number| addresses(*number));
                    entry
                        .status
                        .addresses
                        .extend(given.map(|address| AllocatedAddress {
                            value: address.to_string().into(),
                            host: host.clone(),
                        }));
                }
                (!hosts.is_empty()).then_some(Object::ServiceEntry(entry))
            }
            _ => None,
        }
    }
}

/// First four bytes of the SHA-256 of a text.
fn hash(text: &str) -> u32 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let bytes = digest.as_ref();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The host names of an object that have an address of ours, or are to have one.
fn wanted(object: &Object, allocations: &Allocations) -> Vec<Str> {
    let is_ours = |host: &Str, text: &str| {
        let given = allocations.given.get(host).map(|number| addresses(*number));
        given.is_some_and(|given| text.parse().is_ok_and(|address: IpAddr| given.contains(&address)))
    };
    match object {
        Object::Service(service) => {
            let name = name_of(service);
            let ours = service
                .spec
                .cluster_ips
                .first()
                .is_some_and(|text| is_ours(&name, text));
            if needs(service) || ours {
                vec![name]
            } else {
                Vec::new()
            }
        }
        Object::ServiceEntry(entry) => {
            let key = |host: &Str| Str::from(format!("{}/{host}", entry.metadata.namespace));
            let open = open_hosts(entry).map(key);
            let given = entry
                .status
                .addresses
                .iter()
                .filter(|given| !given.host.is_empty());
            let ours = given
                .filter(|given| is_ours(&key(&given.host), &given.value))
                .map(|given| key(&given.host));
            open.chain(ours).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a service has no address and is to have one.
fn needs(service: &tulle_k8s::api::Service) -> bool {
    !service::is_external_name(service)
        && service.spec.cluster_ip.is_empty()
        && service.spec.cluster_ips.is_empty()
}

fn name_of(service: &tulle_k8s::api::Service) -> Str {
    let meta = &service.metadata;
    format!("{}/{}.{}.svc", meta.namespace, meta.name, meta.namespace).into()
}

/// The hosts of an entry without any address. What stands for many names, or for the caller's own destination,
/// has none.
fn open_hosts(entry: &tulle_k8s::api::ServiceEntry) -> impl Iterator<Item = &Str> {
    let none = entry.spec.resolution == tulle_k8s::api::networking::Resolution::None;
    let closed = none || !entry.spec.addresses.is_empty();
    let has = |host: &Str| {
        let mut given = entry.status.addresses.iter();
        given.any(|given| given.host.is_empty() || given.host == *host)
    };
    service::hosts(entry).filter(move |host| !closed && !host.starts_with('*') && !has(host))
}

/// Numbers of the range that stand in an object.
fn named(object: &Object) -> BTreeSet<u16> {
    match object {
        Object::ServiceEntry(entry) => {
            let given = entry.status.addresses.iter().map(|given| &given.value);
            let texts = entry.spec.addresses.iter().chain(given);
            texts.filter_map(|text| number_of(text)).collect()
        }
        Object::Service(service) => {
            let texts = [&service.spec.cluster_ip]
                .into_iter()
                .chain(&service.spec.cluster_ips);
            texts.filter_map(|text| number_of(text)).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// The object without the addresses that were taken back from it, if it has any.
fn without(object: &Object, withdrawn: &BTreeMap<Str, u16>) -> Option<Object> {
    let is_of = |host: &Str, text: &Str| {
        let number = withdrawn.get(host);
        number.is_some_and(|number| number_of(text) == Some(*number))
    };
    match object {
        Object::Service(service) => {
            let host = name_of(service);
            let is_ours = |text: &Str| is_of(&host, text);
            let mut service = service.clone();
            let before = service.spec.cluster_ips.len();
            service.spec.cluster_ips.retain(|text| !is_ours(text));
            (service.spec.cluster_ips.len() < before).then_some(Object::Service(service))
        }
        Object::ServiceEntry(entry) => {
            let namespace = &entry.metadata.namespace;
            let mut entry = entry.clone();
            let before = entry.status.addresses.len();
            entry.status.addresses.retain(|given| {
                let host = format!("{namespace}/{}", given.host).into();
                !is_of(&host, &given.value)
            });
            (entry.status.addresses.len() < before).then_some(Object::ServiceEntry(entry))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> BTreeSet<Str> {
        names.iter().map(|name| Str::from(*name)).collect()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("a time")
    }

    #[test]
    fn an_address_depends_on_the_name_and_stays() {
        let mut one = Allocations::default();
        one.shift(&hosts(&[]), &hosts(&["a/x", "a/y"]), &BTreeSet::new(), at(0));
        let mut other = Allocations::default();
        other.shift(&hosts(&[]), &hosts(&["a/y"]), &BTreeSet::new(), at(0));
        assert_eq!(one.given["a/y"], other.given["a/y"]);
        let before = one.clone();
        one.shift(&hosts(&[]), &hosts(&["a/x", "a/y"]), &BTreeSet::new(), at(10));
        assert_eq!(one, before);
    }

    #[test]
    fn a_collision_takes_the_next_free_one_and_names_of_users_go_first() {
        let mut allocations = Allocations::default();
        allocations.shift(&hosts(&[]), &hosts(&["a/x"]), &BTreeSet::new(), at(0));
        let number = allocations.given["a/x"];
        let mut fresh = Allocations::default();
        fresh.shift(&hosts(&[]), &hosts(&["a/x"]), &BTreeSet::from([number]), at(0));
        assert_eq!(fresh.given["a/x"], number.wrapping_add(1).max(1));
    }

    #[test]
    fn a_freed_address_is_not_reused_for_an_hour_but_comes_back_to_its_host() {
        let mut allocations = Allocations::default();
        allocations.shift(&hosts(&[]), &hosts(&["a/x"]), &BTreeSet::new(), at(0));
        let number = allocations.given["a/x"];
        allocations.shift(&hosts(&["a/x"]), &hosts(&[]), &BTreeSet::new(), at(10));
        assert!(allocations.freed.contains_key("a/x"));
        let mut back = allocations.clone();
        back.shift(&hosts(&[]), &hosts(&["a/x"]), &BTreeSet::new(), at(20));
        assert_eq!(back.given["a/x"], number);
        allocations.shift(&hosts(&[]), &hosts(&[]), &BTreeSet::new(), at(10 + 3600));
        assert!(allocations.freed.is_empty());
    }

    #[test]
    fn objects_get_their_addresses_and_keep_those_they_have() {
        let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: a}\nspec: {hosts: [api.example, '*.wild.example'], resolution: DNS, ports: [{number: 80, name: http}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: a}\nspec: {clusterIP: None, ports: [{port: 80}]}\n";
        let parsed = super::super::parse::parse(&"a.yaml".into(), text);
        let statements = parsed.statements.iter();
        let mut objects: BTreeMap<Key, Arc<Object>> = statements
            .map(|statement| {
                let good = statement.good().expect("good");
                (statement.key.clone(), good.object.clone())
            })
            .collect();
        let mut allocations: Arc<Allocations> = Arc::default();
        let mut demand = Demand::default();
        let mut assign = |objects: &mut BTreeMap<Key, Arc<Object>>| {
            let before = objects.clone();
            let changes = before.iter().map(|(key, object)| Change {
                key,
                new: Some(object),
            });
            let find = |key: &Key| before.get(key).cloned();
            for (key, object) in allocations.assign(&mut demand, changes, find, at(0)) {
                objects.insert(key, Arc::new(object));
            }
        };
        assign(&mut objects);
        let after: Vec<Arc<Object>> = objects.values().cloned().collect();
        let Object::Service(service) = &*after[1] else {
            panic!("service")
        };
        assert!(
            service.spec.cluster_ips[0].starts_with("240.240."),
            "{:?}",
            service.spec.cluster_ips
        );
        let Object::ServiceEntry(entry) = &*after[2] else {
            panic!("entry")
        };
        assert_eq!(entry.status.addresses.len(), 2);
        assert!(
            entry
                .status
                .addresses
                .iter()
                .all(|given| &*given.host == "api.example")
        );
        let Object::Service(headless) = &*after[0] else {
            panic!("service")
        };
        assert!(headless.spec.cluster_ips.is_empty());
        assign(&mut objects);
        let again: Vec<Arc<Object>> = objects.values().cloned().collect();
        assert_eq!(after, again);
    }

    #[test]
    fn a_number_of_the_range_is_read_from_either_family() {
        for number in [1, 300] {
            let [v4, v6] = addresses(number);
            for text in [
                v4.to_string(),
                v6.to_string(),
                format!("{v4}/32"),
                format!("{v6}/128"),
            ] {
                assert_eq!(number_of(&text), Some(number), "{text}");
            }
        }
        for text in [
            "10.0.0.1",
            "2001:2:0:1::5",
            "2001:2:1::5",
            "240.240.0.0/24",
            "None",
            "",
        ] {
            assert_eq!(number_of(text), None, "{text}");
        }
    }

    #[test]
    fn what_goes_and_comes_in_one_change_keeps_its_address() {
        let mut demand = Demand::default();
        let text =
            "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {ports: [{port: 80}]}\n";
        let parsed = super::super::parse::parse(&"a.yaml".into(), text);
        let statement = &parsed.statements[0];
        let object = statement.good().expect("good").object.clone();
        let (one, other) = (
            statement.key.clone(),
            Key::new(tulle_k8s::Kind::Service, "b", "t"),
        );
        let (allocations, mut moved) = (Allocations::default(), Moved::default());
        demand.replace(&one, Some(&object), &allocations, &mut moved);
        assert_eq!((moved.gained.len(), moved.lost.len()), (1, 0));
        let mut moved = Moved::default();
        demand.replace(&one, None, &allocations, &mut moved);
        demand.replace(&other, Some(&object), &allocations, &mut moved);
        assert_eq!((moved.gained.len(), moved.lost.len()), (0, 0));
    }
}
