//! The mark of the proxy's packets: well known, or a secret of this node and boot.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::rules::plan::{CAPTURED_MARK, MARK_MASK, PROXY_MARK, ProxyMark, TRANSPARENT_MARK};
use crate::variant::MarkGuard;

/// The mark of a node. A secret one is kept in a folder that a boot empties, so that it outlives the agent: listeners
/// carry it.
///
/// # Errors
/// When it can be neither read nor written.
pub fn of_node(guard: MarkGuard, folder: &Path, node: &str) -> io::Result<ProxyMark> {
    if guard != MarkGuard::Random {
        return Ok(ProxyMark::WellKnown);
    }
    let path = folder.join(format!("mark-{node}"));
    match fs::read_to_string(&path) {
        Ok(text) => {
            let mark = u32::from_str_radix(text.trim(), 16).map_err(io::Error::other)?;
            Ok(ProxyMark::Secret(mark))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mark = secret(rand::random);
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            write!(file, "{mark:08x}")?;
            Ok(ProxyMark::Secret(mark))
        }
        Err(error) => Err(error),
    }
}

/// A mark whose low bits mean nothing to anybody: not to us, and not the one that everyone knows.
fn secret(mut random: impl FnMut() -> u32) -> u32 {
    loop {
        let mark = random();
        if !matches!(
            mark & MARK_MASK,
            PROXY_MARK | TRANSPARENT_MARK | CAPTURED_MARK | 0
        ) {
            return mark;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_mark_is_none_that_means_something() {
        let mut marks = [0x8000_0539, 0x111, 0xf000_0222, 0x1000, 0x8123_4567].into_iter();
        assert_eq!(secret(|| marks.next().unwrap()), 0x8123_4567);
    }

    #[test]
    fn a_secret_mark_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let first = of_node(MarkGuard::Random, folder.path(), "n1").unwrap();
        assert_eq!(of_node(MarkGuard::Random, folder.path(), "n1").unwrap(), first);
        assert_ne!(first, ProxyMark::WellKnown);
        assert_eq!(
            of_node(MarkGuard::Cgroup, folder.path(), "n1").unwrap(),
            ProxyMark::WellKnown
        );
    }
}
