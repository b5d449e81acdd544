//! What is wrong, or not as meant, in manifests: the same reading, rules and computation as in a running control
//! plane, without one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use tulle_k8s::Key;
use tulle_k8s::document::node::{Node, Place};
use tulle_k8s::document::{Fault, documents};
use tulle_k8s::object::{Weight, unread};
use tulle_k8s::translate::MeshConfig;
use tulle_k8s::translate::condition::{CONFLICTED, Condition, Status};
use tulle_model::{Reason, Str};

use crate::engine::Engine;
use crate::engine::advice::Advice;
use crate::history::{ViewError, Writing};
use crate::snapshot::{FileProblem, Severity};
use crate::source::folder::library::{Library, Settled};
use crate::source::folder::scan::{Scan, Scanner};

pub mod enforced;

/// What stands in files, by their names: text, or why it cannot be read.
type Texts = BTreeMap<Str, Result<Arc<str>, String>>;

/// Most files of one analysis.
const FILES_MAX: usize = 20_000;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// File, as it was named.
    pub file: Str,
    /// Line, counted from 1; zero where the whole file is meant.
    pub line: u64,
    /// How bad it is.
    pub severity: Severity,
    /// The stable code.
    pub code: &'static str,
    /// The stable token.
    pub token: &'static str,
    /// The object.
    pub object: Option<String>,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl std::fmt::Display for Finding {
    /// `warning[T0206] a.yaml:3: AuthorizationPolicy shop/a: <cause>`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}[{}] {}", self.code, self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.cause)?;
        if !self.fix.is_empty() {
            write!(f, "\n  fix: {}", self.fix)?;
        }
        Ok(())
    }
}

/// Reads files and folders and says everything that is to be said of them.
///
/// # Errors
/// A path cannot be read at all.
pub fn analyze(paths: &[PathBuf], mesh: &MeshConfig) -> io::Result<Vec<Finding>> {
    let mut texts = Texts::new();
    for path in paths {
        if fs::metadata(path)?.is_dir() {
            let scan = Scanner::new(path.clone()).scan();
            for (below, text) in scan.texts() {
                let name = if paths.len() == 1 {
                    below.to_string()
                } else {
                    path.join(&**below).display().to_string()
                };
                texts.insert(name.into(), text);
            }
        } else {
            let text = fs::read_to_string(path)
                .map(Arc::from)
                .map_err(|error| error.to_string());
            texts.insert(path.display().to_string().into(), text);
        }
        if texts.len() > FILES_MAX {
            return Err(io::Error::other(format!("there are more than {FILES_MAX} files")));
        }
    }
    Ok(findings(&texts, mesh))
}

/// Some texts, read as those of a folder that somebody has just begun to look at.
fn settled(texts: &Texts) -> (Library, Settled) {
    let mut library = Library::default();
    let scan = Scan::of_texts(texts.iter().map(|(path, text)| (path.clone(), text.clone())));
    let settled = library.settle(&scan, Timestamp::UNIX_EPOCH);
    (library, settled)
}

/// The findings of some texts.
fn findings(texts: &Texts, mesh: &MeshConfig) -> Vec<Finding> {
    let (library, settled) = settled(texts);
    let mut found: Vec<Finding> = library.problems().iter().map(of_problem).collect();
    // Those are told with their names, below.
    found.retain(|finding| finding.code != Reason::KindNotRead.code());
    let places: BTreeMap<&Key, (&Str, Place)> = library
        .places()
        .map(|(key, file, place)| (key, (file, place)))
        .collect();
    if let Some(batch) = settled.batch {
        let mut engine = Engine::new(mesh.clone());
        let snapshot = engine.apply(batch);
        found.extend(
            engine
                .advice()
                .into_iter()
                .map(|advice| of_advice(advice, &places)),
        );
        for status in snapshot.objects().objects.values() {
            let place = places.get(&status.key);
            let conditions = status.conditions.iter();
            found.extend(conditions.filter_map(|condition| of_condition(&status.key, condition, place)));
        }
    }
    for (path, text) in texts {
        let Ok(text) = text else { continue };
        for node in documents(text).iter().flatten() {
            found.extend(of_kind(path, node));
        }
    }
    found.sort();
    found.dedup();
    found
}

fn of_problem(problem: &FileProblem) -> Finding {
    Finding {
        file: problem.file.clone(),
        line: problem.line,
        severity: problem.severity,
        code: problem.reason.code(),
        token: problem.reason.token(),
        object: problem.object.as_ref().map(ToString::to_string),
        cause: problem.cause.clone(),
        fix: problem.fix.clone(),
    }
}

fn of_advice(advice: Advice, places: &BTreeMap<&Key, (&Str, Place)>) -> Finding {
    let place = places.get(&advice.key);
    Finding {
        file: place.map_or_else(|| "".into(), |(file, _)| (*file).clone()),
        line: place.map_or(0, |(_, place)| place.line),
        severity: Severity::Warning,
        code: advice.reason.code(),
        token: advice.reason.token(),
        object: Some(advice.key.to_string()),
        cause: advice.cause,
        fix: advice.fix.to_owned(),
    }
}

/// What a condition says, if it says that something is not as written.
fn of_condition(key: &Key, condition: &Condition, place: Option<&(&Str, Place)>) -> Option<Finding> {
    let is_conflict = condition.kind == CONFLICTED || condition.kind.ends_with("Conflict");
    let is_partial = condition.kind == "PartiallyInvalid";
    let wrong = condition.status == Status::False || is_conflict || is_partial;
    if !wrong {
        return None;
    }
    let reason = if condition.message.contains("T0206") {
        Reason::PolicyWidenedDeny
    } else {
        Reason::NotEffective
    };
    let severity = if &*condition.reason == "Invalid" {
        Severity::Error
    } else {
        Severity::Warning
    };
    let of = condition
        .of
        .as_ref()
        .map(|of| format!(" for {of}"))
        .unwrap_or_default();
    // What to do stands in the message, after what happened.
    let (cause, fix) = condition
        .message
        .split_once(';')
        .unwrap_or((&condition.message, ""));
    Some(Finding {
        file: place.map_or_else(|| "".into(), |(file, _)| (*file).clone()),
        line: place.map_or(0, |(_, place)| place.line),
        severity,
        code: reason.code(),
        token: reason.token(),
        object: Some(key.to_string()),
        cause: format!("{}={}{of}: {cause}", condition.kind, condition.reason),
        fix: fix.trim().to_owned(),
    })
}

/// What is to be said of a document for its kind, or for labels that mean nothing here.
fn of_kind(file: &Str, node: &Node) -> Option<Finding> {
    let kind = node.text("kind")?;
    let metadata = node.field("metadata");
    let name = metadata
        .and_then(|metadata| metadata.text("name"))
        .unwrap_or_default();
    let namespace = metadata
        .and_then(|metadata| metadata.text("namespace"))
        .unwrap_or("default");
    let shown: String = format!("{kind} {namespace}/{name}")
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    let finding = |severity, reason: Reason, place: Place, cause: &str, fix: &str| Finding {
        file: file.clone(),
        line: place.line,
        severity,
        code: reason.code(),
        token: reason.token(),
        object: Some(shown.clone()),
        cause: cause.to_owned(),
        fix: fix.to_owned(),
    };
    if let Some(unread) = unread(node) {
        let Fault { place, cause, fix } = unread.fault;
        let severity = match unread.weight {
            Weight::Foreign => Severity::Note,
            Weight::Replaced | Weight::Misspelt => Severity::Warning,
            Weight::Restricts => Severity::Error,
        };
        return Some(finding(severity, Reason::KindNotRead, place, &cause, &fix));
    }
    let labels = metadata.and_then(|metadata| metadata.field("labels"));
    let revision = labels.and_then(|labels| labels.field("istio.io/rev"))?;
    Some(finding(
        Severity::Note,
        Reason::NotEffective,
        revision.place,
        "the label istio.io/rev is accepted and means nothing: there are no revisions",
        "remove it once nothing else reads it",
    ))
}

/// Puts the text of a manifest into the configuration folder under a name, if it has no errors; returns what is to
/// be said of it together with the rest of the folder.
///
/// # Errors
/// The folder cannot be read or written.
pub fn apply(
    config_dir: &Path,
    name: &Str,
    text: &str,
    mesh: &MeshConfig,
    writing: Writing,
) -> Result<Vec<Finding>, ViewError> {
    let scan = Scanner::new(config_dir.to_owned()).scan();
    let mut texts: Texts = scan.texts().map(|(path, text)| (path.clone(), text)).collect();
    let before = findings(&texts, mesh);
    texts.insert(name.clone(), Ok(text.into()));
    let mut news = findings(&texts, mesh);
    news.retain(|finding| finding.file == *name || !before.contains(finding));
    let refused = news
        .iter()
        .any(|finding| finding.severity == Severity::Error && finding.file == *name);
    if writing == Writing::Real && !refused {
        crate::history::put(config_dir, name, text)?;
    }
    Ok(news)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<Finding> {
        let texts = BTreeMap::from([(Str::from("a.yaml"), Ok(text.into()))]);
        findings(&texts, &MeshConfig::default())
    }

    #[test]
    fn a_kind_that_is_not_read_names_its_replacement() {
        let found =
            found("---\n\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n");
        assert_eq!((found[0].code, found[0].line), ("T0207", 3));
        assert!(found[0].fix.contains("HTTPRoute"), "{}", found[0]);
        assert_eq!(found[0].object.as_deref(), Some("VirtualService default/a"));
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn no_kind_is_passed_over_in_silence() {
        let told = |version: &str, kind: &str| {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n");
            let found = found(&text);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].code, found[0].severity)
        };
        assert_eq!(told("apps/v1", "Deployment"), ("T0207", Severity::Note));
        assert_eq!(
            told("tulle.dev/v1alpha1", "TrafikPolicy"),
            ("T0207", Severity::Warning)
        );
        assert_eq!(
            told("security.istio.io/v1", "AuthorisationPolicy"),
            ("T0207", Severity::Error)
        );
    }

    #[test]
    fn a_deny_rule_that_denies_more_than_it_says_is_found() {
        let found = found(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n",
        );
        assert_eq!(found[0].code, "T0206");
        assert_eq!(found[0].object.as_deref(), Some("AuthorizationPolicy shop/a"));
        assert_eq!((&*found[0].file, found[0].line), ("a.yaml", 1));
    }

    #[test]
    fn a_misspelt_field_of_a_policy_is_an_error_and_good_manifests_have_no_findings() {
        let bad = found(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {acton: DENY}\n",
        );
        let misspelt = bad
            .iter()
            .find(|finding| finding.code == "T0003")
            .expect("the field");
        assert_eq!(misspelt.severity, Severity::Error);
        let good = found(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIPs: [10.0.0.1], ports: [{port: 80}]}\n",
        );
        assert_eq!(good, []);
    }

    #[test]
    fn a_policy_for_a_service_without_waypoint_is_found() {
        let found = found(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIPs: [10.0.0.1], ports: [{port: 80}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: Service, name: a}], rules: [{}]}\n",
        );
        assert!(
            found
                .iter()
                .any(|finding| finding.cause.contains("AncestorNotBound")),
            "{found:?}"
        );
    }

    const WAYS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: one}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: {addresses: [{value: 10.0.0.9}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: two}\nspec: {gatewayClassName: tulle-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nstatus: {addresses: [{value: 10.0.0.8}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\nspec: {nodeName: n1}\nstatus: {phase: Running, podIP: 10.0.0.1}\n---\n";

    /// A service of the pod behind a waypoint, with a policy of its own.
    fn service(name: &str, waypoint: &str, target: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, labels: {{istio.io/use-waypoint: {waypoint}}}}}\nspec: {{selector: {{app: web}}, clusterIPs: [10.9.0.1], ports: [{{name: http, port: 80, targetPort: {target}}}]}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{{kind: Service, name: {name}}}], rules: [{{}}]}}\n---\n"
        )
    }

    /// The objects that a code is said of.
    fn told(text: &str, code: &str) -> Vec<String> {
        let found = found(text).into_iter().filter(|one| one.code == code);
        found.map(|one| one.object.unwrap_or_default()).collect()
    }

    #[test]
    fn services_that_share_a_port_behind_different_waypoints_are_told_of_each_other() {
        let of = |second: &str, target| {
            let text = WAYS.to_owned() + &service("a", "one", 8080) + &service("b", second, target);
            told(&text, "T0209")
        };
        assert_eq!(of("two", 8080), ["Service default/a", "Service default/b"]);
        assert_eq!(
            of("one", 8080),
            [""; 0],
            "one waypoint knows the policies of both"
        );
        assert_eq!(of("two", 9090), [""; 0], "another port");
        let text = WAYS.to_owned() + &service("a", "one", 8080) + &service("b", "two", 8080);
        let unprotected = text.replace("AuthorizationPolicy", "Ignored");
        assert_eq!(told(&unprotected, "T0209"), [""; 0], "nothing to get past");
    }

    #[test]
    fn a_match_that_can_never_win_is_told_with_what_wins() {
        let route = |name: &str, day: u8, path: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, creationTimestamp: '2026-01-0{day}T00:00:00Z'}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: a}}], rules: [{{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], backendRefs: [{{name: a, port: 80}}]}}]}}\n---\n"
            )
        };
        let of = |path: &str| {
            let text = WAYS.to_owned()
                + &service("a", "one", 8080)
                + &route("young", 2, path)
                + &route("old", 1, "/x");
            let mut found = found(&text);
            found.retain(|one| one.code == "T0210");
            found
        };
        let equal = of("/x/");
        assert_eq!(equal.len(), 1, "{equal:?}");
        assert_eq!(equal[0].object.as_deref(), Some("HTTPRoute default/young"));
        let cause = &equal[0].cause;
        assert!(
            cause.contains("rules[0].matches[0] of HTTPRoute default/old") && cause.ends_with("is older"),
            "{cause}"
        );
        assert_eq!(of("/x/y"), []);
    }

    #[test]
    fn a_match_that_cannot_be_read_is_told_with_its_place() {
        let text = WAYS.to_owned()
            + &service("a", "one", 8080)
            + "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {parentRefs: [{group: '', kind: Service, name: a}], rules: [{matches: [{path: {value: /x}}, {headers: [{name: x-a, type: Prefix, value: b}]}], backendRefs: [{name: a, port: 80}]}]}\n";
        let mut found = found(&text);
        found.retain(|one| one.code == "T0208");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].cause.contains("rules[0].matches[1]: "), "{found:?}");
        assert_eq!(found[0].fix, "it matches no request until it is corrected");
    }

    #[test]
    fn what_is_applied_with_an_error_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mesh = MeshConfig::default();
        let name: Str = "new.yaml".into();
        let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: A}\n";
        assert!(
            !apply(folder.path(), &name, bad, &mesh, Writing::Real)
                .unwrap()
                .is_empty()
        );
        assert!(!folder.path().join("new.yaml").exists());
        let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n";
        apply(folder.path(), &name, good, &mesh, Writing::Dry).unwrap();
        assert!(!folder.path().join("new.yaml").exists());
        assert_eq!(
            apply(folder.path(), &name, good, &mesh, Writing::Real).unwrap(),
            []
        );
        assert!(folder.path().join("new.yaml").exists());
        assert!(apply(folder.path(), &"../out.yaml".into(), good, &mesh, Writing::Real).is_err());
    }
}
