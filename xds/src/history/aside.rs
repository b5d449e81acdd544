//! What is dropped is put aside at once, and a thread removes it: freeing what a file took may take a file system as long as
//! its disk does (one that is mounted with `discard`: tenths of a second), and the next generation need not wait for that.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

/// Where files lie until they are removed, below the history.
const FOLDER: &str = "dropped";
/// Files that may lie there while others are removed. Whoever drops more waits.
const FILES_MAX: usize = 1_000;

/// Files that are in no generation any more.
#[derive(Debug)]
pub(super) struct Aside {
    folder: PathBuf,
    /// Files put there: each has a name of its own.
    count: u64,
    /// Those that came after the thread had begun.
    waiting: usize,
    removing: Option<JoinHandle<()>>,
}

impl Aside {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            folder: root.join(FOLDER),
            count: 0,
            waiting: 0,
            removing: None,
        }
    }

    /// Takes a file from its place, and returns the bytes that it had; none if it is not there or stays.
    pub(super) fn take(&mut self, path: &Path) -> u64 {
        let bytes = fs::metadata(path).map_or(0, |file| file.len());
        let gone = self.put(path).or_else(|_| fs::remove_file(path));
        gone.map_or(0, |()| bytes)
    }

    fn put(&mut self, path: &Path) -> io::Result<()> {
        let mut folder = fs::DirBuilder::new();
        folder.recursive(true).mode(0o700).create(&self.folder)?;
        fs::rename(path, self.folder.join(self.count.to_string()))?;
        self.count += 1;
        self.waiting += 1;
        Ok(())
    }

    /// Begins to remove what lies there, unless that is under way.
    pub(super) fn remove(&mut self) {
        let is_removing = self.removing.as_ref().is_some_and(|thread| !thread.is_finished());
        if is_removing && self.waiting < FILES_MAX {
            return;
        }
        self.wait();
        self.waiting = 0;
        let folder = self.folder.clone();
        let begun = thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || empty(&folder));
        if begun.is_err() {
            empty(&self.folder);
        }
        self.removing = begun.ok();
    }

    /// Waits for what is being removed.
    pub(super) fn wait(&mut self) {
        // One that panicked left files behind, which the next one removes.
        let _ = self.removing.take().map(JoinHandle::join);
    }
}

/// What cannot be removed now is tried again with the next files.
fn empty(folder: &Path) {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    for file in files {
        let _ = fs::remove_file(file.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_gone_from_its_place_at_once_and_from_the_disk_soon() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        fs::write(file("1.json"), "one").unwrap();
        fs::write(file("2.json"), "number two").unwrap();
        let mut aside = Aside::new(root.path());
        assert_eq!(
            (aside.take(&file("1.json")), aside.take(&file("2.json"))),
            (3, 10)
        );
        assert_eq!(aside.take(&file("3.json")), 0, "there is none");
        let lying = || fs::read_dir(file(FOLDER)).unwrap().count();
        assert_eq!(
            (file("1.json").exists(), file("2.json").exists(), lying()),
            (false, false, 2)
        );
        aside.remove();
        aside.wait();
        assert_eq!(lying(), 0);
    }

    #[test]
    fn what_a_former_process_left_there_goes_too() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(FOLDER)).unwrap();
        let left = root.path().join(FOLDER).join("7");
        fs::write(&left, "left").unwrap();
        let mut aside = Aside::new(root.path());
        aside.remove();
        aside.wait();
        assert!(!left.exists());
    }

    #[test]
    fn what_cannot_be_put_aside_is_removed_at_once() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(FOLDER), "no folder").unwrap();
        let file = root.path().join("1.json");
        fs::write(&file, "one").unwrap();
        assert_eq!(Aside::new(root.path()).take(&file), 3);
        assert!(!file.exists());
    }
}
