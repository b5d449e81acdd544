//! Who changed the folder, where nobody said so: the owners of the files that changed, and the newest commit of the git
//! work tree that the folder is in. Both are read from files; git itself is never run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Folders above the configuration in which a work tree may begin.
const ABOVE_MAX: usize = 16;
/// Bytes read from the end of git's log; its last line is far shorter.
const LOG_BYTES_MAX: u64 = 16 << 10;
/// Longest text taken from it.
const TEXT_CHARS_MAX: usize = 200;

/// `uid 1000`, or several, of the files that changed and are still there; else of the folder.
pub(super) fn owners<'a>(root: &Path, changed: impl Iterator<Item = &'a str>) -> String {
    let owner = |path: &Path| fs::symlink_metadata(path).ok().map(|file| file.uid());
    let mut owners: BTreeSet<u32> = changed.filter_map(|file| owner(&root.join(file))).collect();
    if owners.is_empty() {
        owners.extend(owner(root));
    }
    let named: Vec<String> = owners.iter().map(|uid| format!("uid {uid}")).collect();
    named.join(", ")
}

/// The newest commit of the work tree: `commit <hash> by <name> <email>: <message>`.
pub(super) fn commit(root: &Path) -> Option<String> {
    let trees = root.ancestors().take(ABOVE_MAX);
    let log = trees
        .map(|tree| tree.join(".git/logs/HEAD"))
        .find(|log| log.is_file())?;
    let line = last_line(&log)?;
    // <old> <new> <name> <email> <seconds> <zone>\t<message>
    let (head, message) = line.split_once('\t')?;
    let mut words = head.splitn(3, ' ');
    let (_, new, rest) = (words.next()?, words.next()?, words.next()?);
    let author = &rest[..=rest.rfind('>')?];
    let is_hash = new.len() >= 40 && new.bytes().all(|byte| byte.is_ascii_hexdigit());
    let text = format!(
        "commit {} by {author}: {message}",
        new.get(..12).filter(|_| is_hash)?
    );
    let text = text.chars().filter(|character| !character.is_control());
    Some(text.take(TEXT_CHARS_MAX).collect())
}

fn last_line(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().last().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_what_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "").unwrap();
        let own = format!("uid {}", fs::metadata(folder.path()).unwrap().uid());
        assert_eq!(owners(folder.path(), ["a.yaml", "gone.yaml"].into_iter()), own);
        assert_eq!(owners(folder.path(), std::iter::empty()), own);
    }

    #[test]
    fn the_newest_commit_is_read_from_the_work_tree() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("mesh/config");
        fs::create_dir_all(&config).unwrap();
        assert_eq!(commit(&config), None);
        let logs = folder.path().join(".git/logs");
        fs::create_dir_all(&logs).unwrap();
        let line = |new: &str, message: &str| {
            format!(
                "{} {} Ada L <ada@example.com> 1700000000 +0000\t{message}\n",
                "0".repeat(40),
                new.repeat(20)
            )
        };
        fs::write(
            logs.join("HEAD"),
            line("ab", "commit: first") + &line("cd", "commit: deny\u{1b}[2J all"),
        )
        .unwrap();
        let said = commit(&config).unwrap();
        assert_eq!(
            said,
            "commit cdcdcdcdcdcd by Ada L <ada@example.com>: commit: deny[2J all"
        );
        for broken in ["", "no tab", "a b\tc", "a zz Ada <x>\tm"] {
            fs::write(logs.join("HEAD"), broken).unwrap();
            assert_eq!(commit(&config), None, "{broken:?}");
        }
    }
}
