//! `tulle config delete`: takes objects out of the configuration folder.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use tulle_k8s::{Key, Kind};
use tulle_runtime::exit::Exit;

use super::super::folder::{Folder, Target};
use crate::output::Form;

/// What is to go.
#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    /// Objects as KIND/NAMESPACE/NAME, or KIND/NAME for kinds without a namespace
    #[arg(value_name = "OBJECT", value_parser = key, required_unless_present = "file")]
    objects: Vec<Key>,
    /// Every object of a manifest
    #[arg(short, long = "file", value_name = "FILE", conflicts_with = "objects")]
    file: Option<PathBuf>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// `Kind/namespace/name`, or `Kind/name`.
fn key(text: &str) -> Result<Key, String> {
    let mut parts = text.splitn(3, '/');
    let (kind, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let known = Kind::ALL
        .iter()
        .copied()
        .find(|known| known.as_str().eq_ignore_ascii_case(kind));
    let kind = known.ok_or_else(|| format!("`{kind}` is no kind that is read"))?;
    match (kind.is_namespaced(), second, third) {
        (true, Some(namespace), Some(name)) => Ok(Key::new(kind, namespace, name)),
        (false, Some(name), None) => Ok(Key::new(kind, "", name)),
        (true, ..) => Err(format!("name it as {}/NAMESPACE/NAME", kind.as_str())),
        (false, ..) => Err(format!("name it as {}/NAME", kind.as_str())),
    }
}

/// Takes the objects out: all of them, or none if one is not there.
pub(super) fn run(delete: &Delete, target: Target<'_>) -> anyhow::Result<Exit> {
    let folder = Folder::read(target.config_dir)?;
    let wanted = match &delete.file {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Folder::of_text(&text).keys()
        }
        None => delete.objects.clone(),
    };
    let mut gone = Vec::new();
    for key in &wanted {
        let Some(document) = folder.object(key) else {
            bail!(
                "{} has no document with {key}; `tulle config status -o json` lists what is in force and its file",
                target.config_dir.display()
            );
        };
        gone.push(document);
    }
    let message = match &*delete.message {
        "" => format!("deleted {} objects", gone.len()),
        message => message.to_owned(),
    };
    let exit = target.write(&folder.without(&gone), &message, delete.dry_run)?;
    if exit == Exit::Ok && target.form == Form::Table {
        let done = if delete.dry_run {
            "would be deleted"
        } else {
            "deleted"
        };
        for (key, document) in wanted.iter().zip(&gone) {
            println!("{done}: {key} of {}", document.file);
        }
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use tulle_k8s::translate::MeshConfig;

    use super::*;

    const BOTH: &str = "# why\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {clusterIPs: [10.9.0.1], ports: [{port: 80}]}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

    struct Folders {
        config: tempfile::TempDir,
        state: tempfile::TempDir,
    }

    impl Folders {
        fn new() -> Self {
            let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            std::fs::write(config.path().join("both.yaml"), BOTH).unwrap();
            Self { config, state }
        }

        fn delete(&self, objects: &[&str], dry_run: bool) -> anyhow::Result<Exit> {
            let delete = Delete {
                objects: objects.iter().map(|text| key(text).unwrap()).collect(),
                file: None,
                message: String::new(),
                dry_run,
            };
            let target = Target {
                config_dir: self.config.path(),
                state_dir: self.state.path(),
                mesh: &MeshConfig::default(),
                form: Form::Json,
            };
            run(&delete, target)
        }

        fn text(&self) -> Option<String> {
            std::fs::read_to_string(self.config.path().join("both.yaml")).ok()
        }
    }

    #[test]
    fn an_object_goes_and_its_neighbours_stay_as_they_were_written() {
        let folders = Folders::new();
        assert_eq!(folders.delete(&["namespace/shop"], true).unwrap(), Exit::Ok);
        assert_eq!(folders.text().as_deref(), Some(BOTH), "a dry run");
        assert_eq!(folders.delete(&["Namespace/shop"], false).unwrap(), Exit::Ok);
        assert_eq!(
            folders.text().as_deref(),
            BOTH.split_once("---\n").map(|(first, _)| first)
        );
        assert_eq!(folders.delete(&["Service/shop/a"], false).unwrap(), Exit::Ok);
        assert_eq!(folders.text(), None, "nothing is left of the file");
    }

    #[test]
    fn two_objects_of_one_file_go_together() {
        let folders = Folders::new();
        let objects = ["Service/shop/a", "Namespace/shop"];
        assert_eq!(folders.delete(&objects, false).unwrap(), Exit::Ok);
        assert_eq!(folders.text(), None);
    }

    #[test]
    fn nothing_goes_if_one_is_not_there() {
        let folders = Folders::new();
        let error = folders
            .delete(&["Namespace/shop", "Service/shop/b"], false)
            .unwrap_err();
        assert!(error.to_string().contains("shop/b"), "{error}");
        assert_eq!(folders.text().as_deref(), Some(BOTH));
    }

    #[test]
    fn a_name_says_kind_and_namespace() {
        assert_eq!(
            key("service/shop/a").unwrap(),
            Key::new(Kind::Service, "shop", "a")
        );
        for text in ["Service/a", "Deployment/shop/a", "Namespace/a/b", "Service", ""] {
            assert!(key(text).is_err(), "{text}");
        }
    }
}
