//! The manifests of the configuration folder, document by document, so that one of them can be changed.

mod label;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tulle_k8s::translate::MeshConfig;
use tulle_runtime::exit::Exit;
use tulle_xds::analyze::apply;
use tulle_xds::history::{View, Writing};
use tulle_xds::snapshot::Severity;
use tulle_xds::source::folder::DIRECTORIES_DEEP_MAX;

use self::label::USE_WAYPOINT;
use super::analyze;
use super::config::{actor, writing};
use crate::output::Form;

/// Everything in the folder.
#[derive(Debug, Default)]
pub(in crate::command) struct Folder {
    documents: Vec<Document>,
}

/// One document of a file.
#[derive(Debug)]
pub(in crate::command) struct Document {
    /// The file, below the folder.
    pub(in crate::command) file: String,
    /// Its text; documents that cannot be read have no value.
    text: String,
    value: Value,
}

/// A file as it is to be.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::command) struct Change {
    /// The file, below the folder.
    pub(in crate::command) file: String,
    /// Its text; `None` removes it.
    pub(in crate::command) text: Option<String>,
}

impl Folder {
    /// Reads every manifest.
    pub(in crate::command) fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut this = Self::default();
        this.walk(folder, "", &mut Vec::new())
            .with_context(|| format!("cannot read the configuration folder {}", folder.display()))?;
        this.documents.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(this)
    }

    /// The documents of one manifest.
    pub(in crate::command) fn of_text(text: &str) -> Self {
        let mut this = Self::default();
        this.add("", text);
        this
    }

    /// What the objects are called; documents of kinds that are not read are left out.
    pub(in crate::command) fn keys(&self) -> Vec<tulle_k8s::Key> {
        let kinds = tulle_k8s::Kind::ALL;
        let keys = self.documents.iter().filter_map(|document| {
            let name = document.value["kind"].as_str()?;
            let kind = kinds.iter().copied().find(|kind| kind.as_str() == name)?;
            let namespace = if kind.is_namespaced() {
                document.namespace()
            } else {
                ""
            };
            Some(tulle_k8s::Key::new(kind, namespace, document.name()))
        });
        keys.collect()
    }

    /// `open` are the folders that are being read: one of them found again is a loop of links.
    fn walk(&mut self, folder: &Path, below: &str, open: &mut Vec<PathBuf>) -> anyhow::Result<()> {
        let real = folder.canonicalize()?;
        if open.contains(&real) {
            return Ok(());
        }
        if open.len() > DIRECTORIES_DEEP_MAX {
            bail!("{below} is more than {DIRECTORIES_DEEP_MAX} folders deep; move it out of the folder");
        }
        open.push(real);
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{below}{name}");
            let is_manifest = [".yaml", ".yml", ".json"]
                .iter()
                .any(|ending| name.ends_with(ending));
            if name.starts_with('.') {
                continue;
            }
            if entry.path().is_dir() {
                self.walk(&entry.path(), &format!("{path}/"), open)?;
            } else if is_manifest {
                self.add(&path, &std::fs::read_to_string(entry.path())?);
            }
        }
        open.pop();
        Ok(())
    }

    fn add(&mut self, file: &str, text: &str) {
        let mut document = String::new();
        let mut documents = Vec::new();
        for line in text.lines() {
            if line.trim_end() == "---" {
                documents.push(std::mem::take(&mut document));
            } else {
                document.push_str(line);
                document.push('\n');
            }
        }
        documents.push(document);
        let filled = documents.into_iter().filter(|text| !text.trim().is_empty());
        self.documents.extend(filled.map(|text| Document {
            file: file.to_owned(),
            value: serde_saphyr::from_str(&text).unwrap_or(Value::Null),
            text,
        }));
    }

    /// The object of this kind and name.
    pub(in crate::command) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Document> {
        self.of_kind(kind).find(|document| {
            document.name() == name && (kind == "Namespace" || document.namespace() == namespace)
        })
    }

    /// The object that is called so; the names of kinds are compared without case.
    pub(in crate::command) fn object(&self, key: &tulle_k8s::Key) -> Option<&Document> {
        self.documents.iter().find(|document| {
            let kind = document.value["kind"].as_str().unwrap_or_default();
            kind == key.kind.as_str()
                && document.name() == &*key.name
                && (!key.kind.is_namespaced() || document.namespace() == &*key.namespace)
        })
    }

    /// Whether a document could not be read.
    pub(in crate::command) fn has_unread(&self) -> bool {
        let is_text = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
        let unread = |document: &Document| document.value.is_null() && document.text.lines().any(is_text);
        self.documents.iter().any(unread)
    }

    /// Every object of a kind.
    pub(in crate::command) fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Document> {
        self.documents
            .iter()
            .filter(move |document| document.value["kind"] == kind)
    }

    /// The waypoint that a namespace goes through.
    pub(in crate::command) fn enrolled(&self, namespace: &str) -> Option<String> {
        let found = self.find("Namespace", "", namespace)?;
        let label = &found.value["metadata"]["labels"][USE_WAYPOINT];
        label.as_str().map(str::to_owned)
    }

    /// The file with one document replaced.
    pub(in crate::command) fn replace(&self, document: &Document, text: &str) -> Change {
        self.rewritten(document, Some(text))
    }

    /// The file without one document; no file if it was the only one.
    pub(in crate::command) fn remove(&self, document: &Document) -> Change {
        self.rewritten(document, None)
    }

    /// Labels a namespace, or takes the label away.
    pub(in crate::command) fn label(
        &self,
        namespace: &str,
        waypoint: Option<&str>,
        changes: &mut Vec<Change>,
    ) -> anyhow::Result<()> {
        let Some(found) = self.find("Namespace", "", namespace) else {
            changes.extend(waypoint.map(|waypoint| Change {
                file: format!("namespace-{namespace}.yaml"),
                text: Some(format!(
                    "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels:\n    \
                     istio.io/dataplane-mode: ambient\n    {USE_WAYPOINT}: {waypoint}\n"
                )),
            }));
            return Ok(());
        };
        if self.enrolled(namespace).as_deref() == waypoint {
            return Ok(());
        }
        if changes.iter().any(|change| change.file == found.file) {
            bail!(
                "{} holds both the waypoint and its namespace; move one of them to a file of its own",
                found.file
            );
        }
        let mut value = found.value.clone();
        let labels = &mut value["metadata"]["labels"];
        match (labels.as_object_mut(), waypoint) {
            (Some(labels), Some(waypoint)) => drop(labels.insert(USE_WAYPOINT.to_owned(), json!(waypoint))),
            (Some(labels), None) => {
                labels.remove(USE_WAYPOINT);
                if labels.is_empty()
                    && let Some(metadata) = value["metadata"].as_object_mut()
                {
                    metadata.remove("labels");
                }
            }
            (None, Some(waypoint)) => *labels = json!({USE_WAYPOINT: waypoint}),
            (None, None) => {}
        }
        let says = |text: &String| serde_saphyr::from_str::<Value>(text).is_ok_and(|said| said == value);
        let text = match label::set(&found.text, waypoint).filter(says) {
            Some(text) => text,
            // In a layout that is not known, what it says matters more than how.
            None => serde_saphyr::to_string(&value).context("the Namespace cannot be written")?,
        };
        changes.push(self.replace(found, &text));
        Ok(())
    }

    /// The files without some of their documents; a file with nothing left goes.
    pub(in crate::command) fn without(&self, gone: &[&Document]) -> Vec<Change> {
        let mut files: Vec<&str> = gone.iter().map(|document| &*document.file).collect();
        files.sort_unstable();
        files.dedup();
        let is_gone = |document: &Document| gone.iter().any(|gone| std::ptr::eq(*gone, document));
        let left = files
            .into_iter()
            .map(|file| self.joined(file, |document| (!is_gone(document)).then_some(&*document.text)));
        left.collect()
    }

    fn rewritten(&self, document: &Document, text: Option<&str>) -> Change {
        self.joined(&document.file, |other| match std::ptr::eq(other, document) {
            true => text,
            false => Some(&*other.text),
        })
    }

    /// A file with these texts in the place of its documents.
    fn joined<'a>(&'a self, file: &str, text: impl Fn(&'a Document) -> Option<&'a str>) -> Change {
        let same_file = self.documents.iter().filter(|other| other.file == file);
        let texts = same_file.filter_map(text);
        let texts: Vec<_> = texts.map(|text| text.trim_end().to_owned() + "\n").collect();
        Change {
            file: file.to_owned(),
            text: (!texts.is_empty()).then(|| texts.join("---\n")),
        }
    }
}

impl Document {
    /// Name of the object.
    pub(in crate::command) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// All that it says; nothing if it cannot be read.
    pub(in crate::command) fn value(&self) -> &Value {
        &self.value
    }

    /// Namespace of the object.
    pub(in crate::command) fn namespace(&self) -> &str {
        self.value["metadata"]["namespace"].as_str().unwrap_or("default")
    }

    /// Whether it is a waypoint.
    pub(in crate::command) fn is_waypoint(&self) -> bool {
        let class = self.value["spec"]["gatewayClassName"].as_str();
        matches!(class, Some("tulle-waypoint" | "istio-waypoint"))
    }

    /// Which traffic it takes.
    pub(in crate::command) fn purpose(&self) -> &str {
        let label = &self.value["metadata"]["labels"]["istio.io/waypoint-for"];
        label.as_str().unwrap_or("service")
    }

    /// Whether it says the same as this text.
    pub(in crate::command) fn says(&self, text: &str) -> bool {
        serde_saphyr::from_str::<Value>(text).is_ok_and(|value| value == self.value)
    }
}

/// Where changes are written and who is told of them.
#[derive(Debug, Clone, Copy)]
pub(in crate::command) struct Target<'a> {
    /// The configuration folder.
    pub(in crate::command) config_dir: &'a Path,
    /// The control plane's state folder.
    pub(in crate::command) state_dir: &'a Path,
    /// The mesh that they are checked for.
    pub(in crate::command) mesh: &'a MeshConfig,
    /// How findings are printed.
    pub(in crate::command) form: Form,
}

impl Target<'_> {
    /// Checks every changed file, then writes all of them; nothing if one is refused.
    pub(in crate::command) fn write(
        self,
        changes: &[Change],
        message: &str,
        dry_run: bool,
    ) -> anyhow::Result<Exit> {
        let check = |change: &Change, writing| match &change.text {
            Some(text) => apply(
                self.config_dir,
                &change.file.as_str().into(),
                text,
                self.mesh,
                writing,
            ),
            None => Ok(Vec::new()),
        };
        for change in changes {
            let found = check(change, Writing::Dry)?;
            if found.iter().any(|finding| finding.severity == Severity::Error) {
                analyze::print(&found, self.form)?;
                return Ok(Exit::BadInput);
            }
        }
        if dry_run || changes.is_empty() {
            return Ok(Exit::Ok);
        }
        let files = changes
            .iter()
            .map(|change| (change.file.as_str().into(), change.text.as_deref()));
        View::of(self.state_dir).announce(&actor(), message, files)?;
        for change in changes {
            check(change, writing(false))?;
            if change.text.is_none() {
                std::fs::remove_file(self.config_dir.join(&change.file))?;
            }
        }
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str =
        "kind: Gateway\nmetadata: {name: way, namespace: shop}\nspec: {gatewayClassName: tulle-waypoint}\n";

    fn folder(files: &[(&str, &str)]) -> Folder {
        let mut folder = Folder::default();
        files.iter().for_each(|(file, text)| folder.add(file, text));
        folder
    }

    fn labelled(folder: &Folder, waypoint: Option<&str>) -> Vec<Change> {
        let mut changes = Vec::new();
        folder.label("shop", waypoint, &mut changes).unwrap();
        changes
    }

    #[test]
    fn a_namespace_that_is_not_there_is_made() {
        let changes = labelled(&Folder::default(), Some("way"));
        let [change] = &changes[..] else {
            panic!("{changes:?}")
        };
        assert_eq!(change.file, "namespace-shop.yaml");
        assert!(
            change
                .text
                .as_ref()
                .unwrap()
                .contains("istio.io/use-waypoint: way")
        );
        assert_eq!(labelled(&Folder::default(), None), []);
    }

    #[test]
    fn a_namespace_keeps_its_other_labels_and_its_neighbours() {
        let text = "# kept\nkind: Service\nmetadata: {name: a}\n---\nkind: Namespace\nmetadata: {name: shop, labels: {team: x}}\n";
        let folder = folder(&[("all.yaml", text)]);
        let changes = labelled(&folder, Some("way"));
        let text = changes[0].text.as_ref().unwrap();
        assert!(text.starts_with("# kept\nkind: Service"), "{text}");
        assert!(
            text.contains("team: x") && text.contains("istio.io/use-waypoint: way"),
            "{text}"
        );
        let after = self::folder(&[("all.yaml", text)]);
        assert_eq!(after.enrolled("shop").as_deref(), Some("way"));
        assert_eq!(labelled(&after, Some("way")), [], "nothing to do");
        let back = labelled(&after, None);
        assert!(!back[0].text.as_ref().unwrap().contains("use-waypoint"));
    }

    #[test]
    fn a_file_with_nothing_left_goes() {
        let alone = folder(&[("way.yaml", GATEWAY)]);
        let found = alone.find("Gateway", "shop", "way").unwrap();
        assert_eq!(
            alone.remove(found),
            Change {
                file: "way.yaml".to_owned(),
                text: None
            }
        );
        let two = folder(&[(
            "way.yaml",
            &format!("{GATEWAY}---\nkind: Service\nmetadata: {{name: a}}\n"),
        )]);
        let change = two.remove(two.find("Gateway", "shop", "way").unwrap());
        assert_eq!(
            change.text.as_deref(),
            Some("kind: Service\nmetadata: {name: a}\n")
        );
    }

    #[test]
    fn folders_are_read_as_deep_as_the_control_plane_does_and_never_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let deep = |folders: usize| root.path().join("d/".repeat(folders));
        std::fs::create_dir_all(deep(DIRECTORIES_DEEP_MAX)).unwrap();
        std::fs::write(deep(DIRECTORIES_DEEP_MAX).join("way.yaml"), GATEWAY).unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).unwrap();
        let found = Folder::read(root.path()).unwrap();
        assert_eq!(found.documents.len(), 1, "once, whatever links lead to it");
        std::fs::create_dir_all(deep(DIRECTORIES_DEEP_MAX + 1)).unwrap();
        let error = Folder::read(root.path()).unwrap_err();
        assert!(
            format!("{error:#}").contains("more than 32 folders deep"),
            "{error:#}"
        );
    }

    #[test]
    fn an_object_is_found_by_its_namespace_too() {
        let folder = folder(&[("way.yaml", GATEWAY)]);
        assert!(folder.find("Gateway", "default", "way").is_none());
        let found = folder.find("Gateway", "shop", "way").unwrap();
        assert!(found.is_waypoint() && found.says(GATEWAY));
        assert_eq!(found.purpose(), "service");
    }
}
