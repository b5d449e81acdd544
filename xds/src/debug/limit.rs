//! How much a page tells: as many entries as were asked for, what is wrong first, and how many there are beyond them.

use std::cmp::Reverse;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tulle_k8s::translate::condition;

use crate::history::Generation;
use crate::snapshot::{FileProblem, ObjectStatus, Objects};
use crate::status::ClientStatus;

use super::Status;

/// Entries of each list of a page, unless `?limit=` says otherwise.
const PAGE_ENTRIES_DEFAULT: usize = 10_000;

/// Most entries of each list of a page, whatever is asked for; also the resources of a type, unless less is asked for.
const PAGE_ENTRIES_MAX: usize = 100_000;

/// How many entries a list may have.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Limit {
    limit: Option<usize>,
}

/// Entries that are left out, by list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct More {
    problems: usize,
    objects: usize,
    answers: usize,
    clients: usize,
}

/// Answer of `GET /debug/world`.
#[derive(Debug, Serialize)]
pub(super) struct World {
    #[serde(flatten)]
    objects: Objects,
    more: More,
}

/// Some clients, and how many are left out.
#[derive(Debug, Serialize)]
pub(super) struct SomeClients<T> {
    clients: Vec<T>,
    more: usize,
}

/// Some resources, and how many are left out.
#[derive(Debug, Serialize)]
pub(super) struct SomeResources {
    pub(super) resources: Vec<Value>,
    pub(super) more: usize,
}

/// Every generation, and how many names of objects and files are left out.
#[derive(Debug, Serialize)]
pub(super) struct SomeHistory {
    generations: Vec<Generation>,
    more: usize,
}

impl Limit {
    fn entries(self) -> usize {
        self.limit.unwrap_or(PAGE_ENTRIES_DEFAULT).min(PAGE_ENTRIES_MAX)
    }

    /// The first resources that fit, and how many do not.
    pub(super) fn resources<T>(self, mut all: Vec<T>) -> (Vec<T>, usize) {
        let fits = self.limit.unwrap_or(PAGE_ENTRIES_MAX).min(PAGE_ENTRIES_MAX);
        let more = all.len().saturating_sub(fits);
        all.truncate(fits);
        (all, more)
    }

    /// As much of a status as fits.
    pub(super) fn status(self, mut status: Status) -> Status {
        let told = self.objects(&mut status.source);
        let answers = status.answers.len();
        if told.objects > 0 {
            let objects = &status.source.objects;
            let shown: Vec<String> = objects.keys().map(ToString::to_string).collect();
            let mut shown: Vec<&str> = shown.iter().map(AsRef::as_ref).collect();
            shown.sort_unstable();
            status
                .answers
                .retain(|object, _| shown.binary_search(&object.as_str()).is_ok());
        }
        let SomeClients { clients, more } = self.clients(std::mem::take(&mut status.clients));
        status.more = More {
            answers: answers - status.answers.len(),
            clients: more,
            ..told
        };
        status.clients = clients;
        status
    }

    /// As much of the source as fits.
    pub(super) fn world(self, mut objects: Objects) -> World {
        let more = self.objects(&mut objects);
        World { objects, more }
    }

    fn objects(self, source: &mut Objects) -> More {
        let mut told = More::default();
        if source.problems.len() > self.entries() {
            let worst_first = |problem: &FileProblem| Reverse(problem.severity);
            let (problems, more) = fitting(source.problems.to_vec(), self.entries(), worst_first);
            (source.problems, told.problems) = (Arc::new(problems), more);
        }
        if source.objects.size() > self.entries() {
            let all = source.objects.values().cloned().collect();
            let (objects, more) = fitting(all, self.entries(), |object: &Arc<ObjectStatus>| is_well(object));
            source.objects = objects
                .into_iter()
                .map(|object| (object.key.clone(), object))
                .collect();
            told.objects = more;
        }
        told
    }

    /// As many clients as fit.
    pub(super) fn clients(self, clients: Vec<ClientStatus>) -> SomeClients<ClientStatus> {
        let has_all = |client: &ClientStatus| {
            let behind = client.types.values().any(|ty| ty.behind > 0 || ty.unacked > 0);
            client.rejections.is_empty() && !behind
        };
        let (clients, more) = fitting(clients, self.entries(), has_all);
        SomeClients { clients, more }
    }

    /// Every generation, with as many names as fit; those of the newest go first.
    pub(super) fn history(self, mut generations: Vec<Generation>) -> SomeHistory {
        let (mut room, mut more) = (self.entries(), 0);
        let mut take = |names: usize| {
            let taken = names.min(room);
            room -= taken;
            more += names - taken;
            taken
        };
        for generation in generations.iter_mut().rev() {
            for names in [
                &mut generation.added,
                &mut generation.changed,
                &mut generation.removed,
                &mut generation.rejected,
            ] {
                names.truncate(take(names.len()));
            }
            let files = take(generation.files.len());
            if let Some(beyond) = generation.files.keys().nth(files).cloned() {
                generation.files.split_off(&beyond);
            }
        }
        SomeHistory { generations, more }
    }
}

impl<T> SomeClients<T> {
    /// The same clients, told otherwise.
    pub(super) fn map<U>(self, tell: impl FnMut(T) -> U) -> SomeClients<U> {
        SomeClients {
            clients: self.clients.into_iter().map(tell).collect(),
            more: self.more,
        }
    }
}

/// The entries that fit, those of the least rank first; they stay in their order. And how many do not fit.
fn fitting<T, R: Ord>(all: Vec<T>, limit: usize, rank: impl Fn(&T) -> R) -> (Vec<T>, usize) {
    let more = all.len().saturating_sub(limit);
    if more == 0 {
        return (all, 0);
    }
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|index| rank(&all[*index]));
    let mut fits = vec![false; all.len()];
    order.iter().take(limit).for_each(|index| fits[*index] = true);
    let entries = all.into_iter().zip(fits);
    (
        entries
            .filter(|(_, fits)| *fits)
            .map(|(entry, _)| entry)
            .collect(),
        more,
    )
}

/// Whether nothing is to be said against an object.
fn is_well(object: &ObjectStatus) -> bool {
    let conditions = object.conditions.iter();
    object.stale_since.is_none()
        && conditions
            .map(|one| one.status)
            .all(|status| status == condition::Status::True)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tulle_k8s::Kind;
    use tulle_k8s::translate::condition::Condition;
    use tulle_model::Reason;

    use super::*;
    use crate::serve::admit;
    use crate::serve::viewer::Features;
    use crate::snapshot::{ObjectKey, Severity};

    fn limit(entries: usize) -> Limit {
        Limit { limit: Some(entries) }
    }

    fn object(name: &str, is_well: bool) -> Arc<ObjectStatus> {
        let refused = Condition::fails(condition::ACCEPTED, "Invalid", "it is");
        Arc::new(ObjectStatus {
            key: ObjectKey::new(Kind::Service, "shop", name),
            file: "a.yaml".into(),
            generation: 1,
            stale_since: None,
            conditions: if is_well { Vec::new() } else { vec![refused] },
            resources: Vec::new(),
        })
    }

    fn problem(file: &str, severity: Severity) -> FileProblem {
        FileProblem {
            file: file.into(),
            line: 1,
            column: 1,
            severity,
            reason: Reason::UnparsableFile,
            object: None,
            cause: String::new(),
            fix: String::new(),
        }
    }

    fn source() -> Objects {
        let objects = [("a", true), ("b", true), ("c", false), ("d", true)];
        let objects = objects.map(|(name, is_well)| object(name, is_well));
        let problems = [
            problem("a", Severity::Note),
            problem("b", Severity::Warning),
            problem("c", Severity::Error),
        ];
        let mut source = Objects::default();
        for object in objects {
            source.objects.insert_mut(object.key.clone(), object);
        }
        source.problems = Arc::new(problems.to_vec());
        source
    }

    #[test]
    fn what_is_wrong_is_told_first_and_the_rest_is_counted() {
        let world = limit(2).world(source());
        let names: Vec<&str> = world.objects.objects.keys().map(|key| &*key.name).collect();
        assert_eq!(names, ["a", "c"]);
        let files: Vec<&str> = world.objects.problems.iter().map(|one| &*one.file).collect();
        assert_eq!(files, ["b", "c"]);
        assert_eq!((world.more.objects, world.more.problems), (2, 1));
        let page = serde_json::to_value(&world).unwrap();
        assert_eq!(
            (&page["more"]["objects"], &page["objects"][1]["key"]["name"]),
            (&2.into(), &"c".into())
        );
    }

    #[test]
    fn without_a_limit_ten_thousand_are_told() {
        let mut source = source();
        for number in 0..PAGE_ENTRIES_DEFAULT {
            let object = object(&format!("s{number}"), true);
            source.objects.insert_mut(object.key.clone(), object);
        }
        let world = Limit::default().world(source);
        assert_eq!(world.objects.objects.size(), PAGE_ENTRIES_DEFAULT);
        assert_eq!((world.more.objects, world.more.problems), (4, 0));
    }

    #[test]
    fn no_page_is_longer_than_the_bound_and_what_it_leaves_out_is_counted() {
        assert_eq!(limit(usize::MAX).entries(), PAGE_ENTRIES_MAX);
        for (asked, told) in [
            (Limit::default(), PAGE_ENTRIES_MAX),
            (limit(usize::MAX), PAGE_ENTRIES_MAX),
            (limit(7), 7),
        ] {
            let (resources, more) = asked.resources(vec![(); PAGE_ENTRIES_MAX + 3]);
            assert_eq!(
                (resources.len(), resources.len() + more),
                (told, PAGE_ENTRIES_MAX + 3)
            );
        }
        assert_eq!(Limit::default().resources(vec![(); 3]), (vec![(); 3], 0));
    }

    #[test]
    fn who_rejects_something_is_told_before_who_has_everything() {
        let client = |node: &str| ClientStatus::new(node.into(), admit::Kind::Ztunnel, Features::default());
        let mut rejecting = client("n3");
        rejecting.unknown_types = 0;
        rejecting.rejections.push(crate::status::RejectionStatus {
            type_url: "t",
            name: "a".into(),
            version: "1".into(),
            text: "bad CIDR".into(),
        });
        let some = limit(2).clients(vec![client("n1"), client("n2"), rejecting]);
        let nodes: Vec<&str> = some.clients.iter().map(|one| &*one.node).collect();
        assert_eq!((nodes, some.more), (vec!["n1", "n3"], 1));
    }

    #[test]
    fn the_names_of_the_newest_generation_are_told_first() {
        let generation = |generation: u64| Generation {
            generation,
            time: Timestamp::UNIX_EPOCH,
            parent: None,
            actor: "".into(),
            message: "".into(),
            files: [("a.yaml".into(), "1".into()), ("b.yaml".into(), "2".into())].into(),
            added: vec!["Service/shop/a".to_owned(), "Service/shop/b".to_owned()],
            changed: Vec::new(),
            removed: Vec::new(),
            rejected: Vec::new(),
        };
        let told = limit(5).history(vec![generation(1), generation(2)]);
        let counts = |one: &Generation| (one.added.len(), one.files.len());
        let counted: Vec<_> = told.generations.iter().map(counts).collect();
        assert_eq!((counted, told.more), (vec![(1, 0), (2, 2)], 3));
    }
}
