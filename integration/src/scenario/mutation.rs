//! Every field of every resource that a proxy is told, changed one at a time.

mod cases;

use std::collections::BTreeMap;

use serde_json::Value;
use tulle_xds_client::ResourceType;

use super::fed::{Fed, NODE, resource};
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::load::Plan;
use crate::mutants::mutants;
use cases::{Case, cases};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F22",
    60,
    "every field of every resource is changed, one at a time",
    f22,
)];

/// What the dump of a proxy says of one resource.
fn shown(dump: &Value, (list, field, wanted): (&str, &str, &str)) -> Value {
    let list = dump[list].as_array().map_or(&[][..], Vec::as_slice);
    list.iter()
        .find(|one| one[field] == wanted)
        .cloned()
        .unwrap_or(Value::Null)
}

/// Names of the resources whose newest form is not in force.
fn rejected(dump: &Value) -> Vec<String> {
    let types = dump["configuration"]["status"]["types"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let named = types
        .iter()
        .flat_map(|one| one["rejected"].as_array().cloned().unwrap_or_default());
    named
        .filter_map(|one| Some(one["name"].as_str()?.to_owned()))
        .collect()
}

/// What was counted.
#[derive(Debug, Default)]
struct Counts {
    mutants: u64,
    refused: u64,
    wrong_verdict: u64,
    not_named: u64,
    last_good_lost: u64,
    neighbour_missed: u64,
    notes: BTreeMap<String, String>,
}

impl Counts {
    fn note(&mut self, which: fn(&mut Self) -> &mut u64, change: &str, what: &str) {
        *which(self) += 1;
        self.notes.insert(change.to_owned(), what.to_owned());
    }
}

fn f22(scale: Scale) -> Run {
    Box::pin(async move {
        let every = scale.pick(10, 1);
        let mesh = TestMesh::new(&["n1", NODE]).await;
        let mut fed = Fed::start(mesh, Plan::light()).await;
        let quiet = fed.load.observe(scale.window()).await;
        let (begun, mut counts) = (tokio::time::Instant::now(), Counts::default());
        for case in cases() {
            mutate(&mut fed, &case, every, &mut counts).await;
        }
        let during = fed.load.report(begun, tokio::time::Instant::now());
        let notes = counts
            .notes
            .iter()
            .map(|(change, what)| format!("{change}: {what}"));
        Figure::new("F22")
            .with("mutants", counts.mutants)
            .with("refused", counts.refused)
            .with("still_valid", counts.mutants - counts.refused)
            .none("wrong_verdict", counts.wrong_verdict)
            .none("not_named_alone", counts.not_named)
            .none("last_good_lost", counts.last_good_lost)
            .none("neighbour_missed", counts.neighbour_missed)
            .losses(&fed.load, &[&quiet, &during])
            .noting(notes.collect())
    })
}

async fn mutate(fed: &mut Fed, case: &Case, every: usize, counts: &mut Counts) {
    let type_url = case.kind.type_url();
    let good = || resource(type_url, case.name, "good", case.body.clone());
    assert!(case.kind.decode(case.name, &case.body).is_ok(), "{}", case.name);
    let answer = fed
        .impostor
        .tell(type_url, vec![good(), (case.neighbour)(0)], &[])
        .await;
    assert_eq!(answer.refused, None, "{}", case.name);
    let base = shown(&fed.dump().await, case.shown);
    assert!(!base.is_null(), "{} is shown", case.name);
    for (number, mutant) in mutants(&case.body)
        .into_iter()
        .enumerate()
        .filter(|(number, _)| number % every == 0)
    {
        let round = number + 1;
        counts.mutants += 1;
        let change = format!("{} {}", case.name, mutant.change);
        let is_bad = case.kind.decode(case.name, &mutant.bytes).is_err();
        let changed = resource(type_url, case.name, &format!("m{round}"), mutant.bytes);
        let answer = fed
            .impostor
            .tell(type_url, vec![changed, (case.neighbour)(round)], &[])
            .await;
        let dump = fed.dump().await;
        if answer.refused.is_some() != is_bad {
            counts.note(
                |counts| &mut counts.wrong_verdict,
                &change,
                &format!("{answer:?}"),
            );
        }
        if is_bad {
            counts.refused += 1;
            let names = answer
                .refused
                .as_ref()
                .is_some_and(|text| text.contains(case.name));
            if !names || rejected(&dump) != [case.name] {
                counts.note(
                    |counts| &mut counts.not_named,
                    &change,
                    &format!("{answer:?} {:?}", rejected(&dump)),
                );
            }
            if shown(&dump, case.shown) != base {
                counts.note(
                    |counts| &mut counts.last_good_lost,
                    &change,
                    &shown(&dump, case.shown).to_string(),
                );
            }
        }
        let neighbour = match case.kind {
            ResourceType::Authorization => shown(&dump, ("policies", "name", "neighbour")),
            _ => shown(&dump, ("workloads", "name", "neighbour")),
        };
        if !neighbour.to_string().contains(&format!("v{round}")) {
            counts.note(
                |counts| &mut counts.neighbour_missed,
                &change,
                &neighbour.to_string(),
            );
        }
        let restored = fed.impostor.tell(type_url, vec![good()], &[]).await;
        assert_eq!(restored.refused, None, "{change}");
    }
}
