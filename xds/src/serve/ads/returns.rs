//! What a client takes that comes back after a part of a large mesh has changed: the layouts of digests, compared.

use std::sync::Arc;
use std::time::Instant;

use tulle_model::testing::{service, workload};
use tulle_proto::convert::{Resource as Decoded, encode_address};
use tulle_proto::resume::Layout;

use crate::engine::table::{Resource, Table};
use crate::serve::frame::{Encoding, Shared};
use crate::serve::session::{Request, Session, Store as _};
use crate::serve::viewer::Viewer;
use crate::snapshot::{Order, ResourceType, Scope, Snapshot};

/// Pods, and what they are called by, as clusters make them.
const PODS: usize = 14_000;
/// What a return with nothing to tell takes beside its digests, both ways: TLS, the token, the node. It was measured.
const CONNECTION: usize = 5_700;
/// Letters of the ends of names.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Spreads numbers; the same each time.
fn spread(number: usize) -> usize {
    let mut mixed = (number as u64)
        .wrapping_add(1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ (mixed >> 31)) >> 1).expect("63 bits")
}

/// An end of a name.
fn letters(number: usize, count: usize) -> String {
    let letter = |at: usize| char::from(LETTERS[spread(number * 31 + at) % LETTERS.len()]);
    (0..count).map(letter).collect()
}

/// Pods of one owner.
struct Family {
    namespace: String,
    name: String,
    /// Numbers of its pods.
    pods: std::ops::Range<usize>,
}

/// Owners with so many pods each, one after the other.
fn families(sizes: impl Fn(usize) -> usize) -> Vec<Family> {
    const WORDS: [&str; 8] = ["web", "cart", "pay", "user", "mail", "img", "log", "search"];
    let (mut all, mut begin) = (Vec::new(), 0);
    while begin < PODS {
        let (number, end) = (all.len(), begin + sizes(all.len()));
        all.push(Family {
            namespace: format!("team-{}", number % 40),
            name: format!("{}-{number}", WORDS[number % WORDS.len()]),
            pods: begin..end.min(PODS),
        });
        begin = end;
    }
    all
}

impl Family {
    /// One of its pods at its own address, or at another.
    fn pod(&self, number: usize, moved: bool) -> Resource {
        let (namespace, app) = (&self.namespace, &self.name);
        let owner = letters(self.pods.start, 10);
        let name = format!("{app}-{owner}-{}", letters(number, 5));
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        let (high, low) = (number / 250, number % 250);
        let address = match moved {
            true => format!("10.200.{high}.{low}"),
            false => format!("10.100.{high}.{low}"),
        };
        let host = format!("{namespace}/{app}.{namespace}.svc.cluster.local");
        let mut pod = workload(&format!("{namespace}/{name}"))
            .uid(&uid)
            .sa(app)
            .ip(&address)
            .node(&format!("node-{}", spread(number) % 300))
            .serves_on(&host, [(80, 8080)])
            .hbone()
            .build();
        (pod.workload_name, pod.canonical_name) = (app.as_str().into(), app.as_str().into());
        Resource {
            name: uid.into(),
            aliases: vec![format!("/{address}").into()],
            body: encode_address(&Decoded::Workload(pod.into()))
                .expect("an address")
                .into(),
            order: Order::Workload,
            scope: Scope::Everyone,
        }
    }

    fn service(&self) -> Resource {
        let host = format!("{}.{}.svc.cluster.local", self.name, self.namespace);
        let vip = format!("10.96.{}.{}", self.pods.start / 250, self.pods.start % 250);
        let of = service(&format!("{}/{}", self.namespace, self.name));
        let service = of.hostname(&host).vip(&vip).port(80, 8080).build();
        Resource {
            name: format!("{}/{host}", self.namespace).into(),
            aliases: vec![format!("/{vip}").into()],
            body: encode_address(&Decoded::Service(service.into()))
                .expect("an address")
                .into(),
            order: Order::Service,
            scope: Scope::Everyone,
        }
    }
}

fn snapshot(sequence: u64, addresses: Table) -> Arc<Snapshot> {
    Arc::new(Snapshot {
        sequence,
        synced: true,
        addresses,
        ..Snapshot::default()
    })
}

/// Bytes, both ways, of a client that begins with this.
fn taken(cut: &Arc<Snapshot>, shared: &Shared, held: Option<(Layout, String)>) -> usize {
    let asked = held.as_ref().map_or(0, |(_, text)| text.len());
    let held = held.map(|(layout, text)| (layout.name().into(), text.into()));
    let first = Request {
        type_url: ResourceType::Address.type_url().into(),
        initial_versions: held.into_iter().collect(),
        ..Request::default()
    };
    let mut session = Session::new(1, Viewer::node("n1"), cut.clone());
    session.on_request(&first, cut).expect("the stream goes on");
    let mut bytes = CONNECTION + asked;
    while let Some(response) = session.poll_send(cut, Instant::now()) {
        let message = shared.payload(&response);
        let message = message.message(&response.type_url, response.cut, &response.nonce, Encoding::Zstd);
        bytes += message.len();
        let answer = Request {
            type_url: response.type_url.clone(),
            nonce: response.nonce.clone(),
            ..Request::default()
        };
        session.on_request(&answer, cut).expect("the stream goes on");
    }
    bytes
}

/// Which pods changed: one of a hundred.
#[derive(Debug, Clone, Copy)]
enum Changed {
    /// Anywhere.
    Scattered,
    /// Of as few owners as there can be, none of them large.
    OfFew,
}

/// What a return takes of what a whole table takes, in percent, by each layout.
fn shares(families: &[Family], changed: Changed) -> [f64; 2] {
    let all: Vec<(&Family, usize)> = families
        .iter()
        .flat_map(|family| family.pods.clone().map(move |pod| (family, pod)))
        .collect();
    let count = all.len() / 100;
    let changed: Vec<&(&Family, usize)> = match changed {
        Changed::Scattered => {
            let mut order: Vec<_> = all.iter().collect();
            order.sort_by_key(|(_, pod)| spread(pod + 7));
            order.into_iter().take(count).collect()
        }
        Changed::OfFew => {
            let small = all.iter().filter(|(family, _)| family.pods.len() <= count);
            small.take(count).collect()
        }
    };
    let mut table = Table::default();
    for family in families {
        table.set(family.service(), 1);
    }
    for (family, pod) in &all {
        table.set(family.pod(*pod, false), 1);
    }
    let old = snapshot(1, table.clone());
    for (family, pod) in changed {
        assert!(table.set(family.pod(*pod, true), 2));
    }
    let (new, shared) = (snapshot(2, table), Shared::default());
    let whole = taken(&new, &shared, None);
    Layout::ALL.map(|layout| {
        let of = |cut: &Arc<Snapshot>| cut.digests(&Viewer::node("n1"), ResourceType::Address, layout);
        let unchanged = taken(&new, &shared, Some((layout, of(&new).to_text())));
        assert!(unchanged <= 10_000, "{unchanged} bytes where nothing changed");
        100.0 * taken(&new, &shared, Some((layout, of(&old).to_text()))) as f64 / whole as f64
    })
}

/// How many pods each owner has, by its number.
type Sizes = fn(usize) -> usize;

/// A quarter of a whole table is what one of a hundred pods may bring; this leaves some of it.
const SHARE_MAX: f64 = 20.0;

#[test]
#[allow(clippy::print_stdout, reason = "the figures are published")]
fn one_pod_of_a_hundred_brings_less_than_a_fifth_of_a_table_wherever_it_is() {
    let sizes: [(&str, Sizes); 3] = [
        ("ten each", |_| 10),
        ("one to a thousand", |number| {
            [1, 1, 2, 2, 3, 3, 5, 8, 13, 40][number % 10] * if number % 97 == 89 { 25 } else { 1 }
        }),
        (
            "one of four thousand",
            |number| if number == 0 { 4_000 } else { 10 },
        ),
    ];
    for (name, sizes) in sizes {
        let families = families(sizes);
        for changed in [Changed::Scattered, Changed::OfFew] {
            let [fine, coarse] = shares(&families, changed);
            println!("{name}, {changed:?}: fine {fine:.1} %, coarse {coarse:.1} %");
            assert!(
                fine < SHARE_MAX && fine < coarse,
                "{name}, {changed:?}: fine {fine:.1} %, coarse {coarse:.1} %"
            );
        }
    }
}
