//! Namespaces of our own for a user who is not root: inside of them the process may make networks, and what it
//! makes disappears with it.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

/// With which rights a process makes its networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// As root.
    Root,
    /// As root of a user namespace of its own.
    UserNamespace,
}

/// Why networks cannot be made here.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// Neither root nor user namespaces.
    #[error(
        "not root, and user namespaces are not available to this user ({0}); run as root, or allow them: \
         sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000 \
         (with AppArmor also kernel.apparmor_restrict_unprivileged_userns=0)"
    )]
    NoUserNamespace(#[source] io::Error),
    /// The new user namespace cannot be set up.
    #[error("cannot {step} in the new user namespace: {source}")]
    Map {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes sure that the calling process may make network namespaces: root may; anyone else moves into user and
/// network namespaces of its own, where it is root.
///
/// Must be called while the process has one thread, the kernel refuses a user namespace to others.
///
/// # Errors
/// When this user may not have namespaces; the message names the cure.
pub fn enter() -> Result<Isolation, IsolateError> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if uid.is_root() {
        return Ok(Isolation::Root);
    }
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|error| IsolateError::NoUserNamespace(error.into()))?;
    let map =
        |step, path, text: String| fs::write(path, text).map_err(|source| IsolateError::Map { step, source });
    // user_namespaces(7): setgroups must be denied before an unprivileged gid_map is accepted.
    map("deny setgroups", "/proc/self/setgroups", "deny".to_owned())?;
    map("map the user", "/proc/self/uid_map", format!("0 {uid} 1"))?;
    map("map the group", "/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(Isolation::UserNamespace)
}
