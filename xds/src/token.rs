//! Node tokens: `tulle1.<node id>.<secret>`, of which the control plane keeps the SHA-256 only.
//!
//! One file per node, `<state-dir>/tokens/<node id>.json`, holds the hashes of the tokens that are valid for it.
//! Deleting the file takes the node's tokens away; there is no restart in either direction.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{constant_time, digest, rand};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tulle_model::Str;

pub mod join;
pub mod jwt;
pub mod node;

/// First part of every token; names the form, so that it can change.
const PREFIX: &str = "tulle1";
/// Valid tokens per node; making another one drops the oldest.
pub const TOKENS_PER_NODE_MAX: usize = 8;
/// Longest node id.
pub const NODE_ID_MAX: usize = 253;
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Largest token file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why a token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The node id cannot be used.
    #[error("`{0}` is no node id: use 1 to {NODE_ID_MAX} letters, digits, `-`, `_` and inner dots")]
    NodeId(String),
    /// The state directory cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of the node's tokens is there, but unusable.
    #[error("cannot use {path}: {cause}; repair or delete it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// More tokens wait for their use than are kept.
    #[error("too many tokens wait for their use; they end by themselves")]
    TooMany,
    /// There is no root to pin a token to.
    #[error("there is no root to pin a token to")]
    NoRoot,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    NoRandom,
}

/// What is stored per node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeTokens {
    node: String,
    /// Oldest first.
    tokens: Vec<StoredToken>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredToken {
    /// SHA-256 of the secret's text, in hex.
    sha256: String,
}

/// A token as a caller presents it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    node: Str,
    secret: Str,
}

impl std::fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Parses `tulle1.<node id>.<secret>`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?.strip_prefix('.')?;
        // Node ids may contain dots, secrets may not.
        let (node, secret) = rest.rsplit_once('.')?;
        let secret_is_hex =
            secret.len() == SECRET_BYTES * 2 && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_node_id(node) && secret_is_hex).then(|| Self {
            node: node.into(),
            secret: secret.into(),
        })
    }

    /// The node that the token claims to be for; true only once the token was checked.
    #[must_use]
    pub fn node(&self) -> &Str {
        &self.node
    }
}

/// Where the valid tokens are kept.
#[derive(Debug, Clone)]
pub enum TokenStore {
    /// `<state-dir>/tokens`.
    Folder(PathBuf),
    /// Nowhere: for tests and demonstrations.
    Memory(Arc<Mutex<BTreeMap<Str, Vec<String>>>>),
}

impl TokenStore {
    /// The store below a state directory.
    #[must_use]
    pub fn in_state_dir(state_dir: &Path) -> Self {
        Self::Folder(state_dir.join("tokens"))
    }

    /// An empty store that is forgotten with the process.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// Makes a token for a node. Earlier tokens of the node stay valid, up to [`TOKENS_PER_NODE_MAX`].
    ///
    /// # Errors
    /// The node id is unusable, or the store cannot be read or written.
    pub fn create(&self, node: &str) -> Result<String, TokenError> {
        if !is_node_id(node) {
            return Err(TokenError::NodeId(node.chars().take(NODE_ID_MAX).collect()));
        }
        let mut bytes = [0; SECRET_BYTES];
        rand::fill(&mut bytes).map_err(|_| TokenError::NoRandom)?;
        let secret = hex(&bytes);
        let hash = hash_of(&secret);
        match self {
            Self::Memory(nodes) => {
                let mut nodes = nodes.lock();
                keep_newest(nodes.entry(node.into()).or_default(), hash);
            }
            Self::Folder(folder) => add_to_file(folder, node, hash)?,
        }
        Ok(format!("{PREFIX}.{node}.{secret}"))
    }

    /// Whether the token is valid for the node it names. Reads the disk, so call it where that may block.
    #[must_use]
    pub fn check(&self, token: &Token) -> bool {
        let hashes = match self {
            Self::Memory(nodes) => nodes.lock().get(&token.node).cloned().unwrap_or_default(),
            Self::Folder(folder) => {
                let path = file_of(folder, &token.node);
                match read(&path) {
                    Ok(stored) if stored.node == *token.node => {
                        stored.tokens.into_iter().map(|stored| stored.sha256).collect()
                    }
                    Ok(_) => Vec::new(),
                    Err(TokenError::Read { cause, .. }) => {
                        tracing::warn!(path = %path.display(), %cause, "token file cannot be used");
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                }
            }
        };
        let presented = hash_of(&token.secret);
        // Every stored hash is compared, so that the time tells nothing about which one matched.
        hashes.iter().fold(false, |found, stored| {
            let equal =
                constant_time::verify_slices_are_equal(stored.as_bytes(), presented.as_bytes()).is_ok();
            found | equal
        })
    }
}

/// Makes a token for a node in a state directory; what `tulle xds token` does.
///
/// # Errors
/// See [`TokenStore::create`].
pub fn create(state_dir: &Path, node: &str) -> Result<String, TokenError> {
    TokenStore::in_state_dir(state_dir).create(node)
}

/// Whether a text can name a node. It becomes a file name, so separators and leading dots are out.
#[must_use]
pub fn is_node_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let length = (1..=NODE_ID_MAX).contains(&text.len());
    length && text.bytes().all(allowed) && !text.starts_with('.') && !text.ends_with('.')
}

fn keep_newest(hashes: &mut Vec<String>, hash: String) {
    hashes.push(hash);
    let surplus = hashes.len().saturating_sub(TOKENS_PER_NODE_MAX);
    hashes.drain(..surplus);
}

fn file_of(folder: &Path, node: &str) -> PathBuf {
    folder.join(format!("{node}.json"))
}

/// An absent file is a node without tokens.
fn read(path: &Path) -> Result<NodeTokens, TokenError> {
    let unusable = |cause: String| TokenError::Read {
        path: path.to_owned(),
        cause,
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(NodeTokens::default()),
        Err(error) => return Err(unusable(error.to_string())),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(unusable("it is too large".into())),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(|error| unusable(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))
}

fn add_to_file(folder: &Path, node: &str, hash: String) -> Result<(), TokenError> {
    let path = file_of(folder, node);
    let mut stored = read(&path)?;
    node.clone_into(&mut stored.node);
    let mut hashes = stored.tokens.into_iter().map(|token| token.sha256).collect();
    keep_newest(&mut hashes, hash);
    stored.tokens = hashes.into_iter().map(|sha256| StoredToken { sha256 }).collect();
    write(folder, &path, &stored).map_err(|source| TokenError::Write { path, source })
}

/// Write, sync, rename: the file is whole at any time.
fn write(folder: &Path, path: &Path, stored: &NodeTokens) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let text = serde_json::to_vec_pretty(stored)?;
    let new = path.with_extension("json.new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(folder)?.sync_all()
}

fn hash_of(secret: &str) -> String {
    hex(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn check(store: &TokenStore, text: &str) -> bool {
        Token::parse(text).is_some_and(|token| store.check(&token))
    }

    #[test]
    fn a_token_is_valid_for_its_node_only() {
        let store = TokenStore::memory();
        let token = store.create("n1").unwrap();
        assert!(check(&store, &token));
        assert!(!check(&store, &token.replace(".n1.", ".n2.")));
        let last = if token.ends_with('0') { "1" } else { "0" };
        assert!(!check(&store, &format!("{}{last}", &token[..token.len() - 1])));
    }

    #[test]
    fn the_folder_holds_hashes_with_tight_modes() {
        let state = tempfile::tempdir().unwrap();
        let token = create(state.path(), "n1.rack-2").unwrap();
        let path = state.path().join("tokens/n1.rack-2.json");
        let secret = token.rsplit('.').next().unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains(secret));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let folder = path.parent().unwrap();
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(check(&TokenStore::in_state_dir(state.path()), &token));
        fs::remove_file(&path).unwrap();
        assert!(!check(&TokenStore::in_state_dir(state.path()), &token));
    }

    #[test]
    fn a_second_token_leaves_the_first_valid_up_to_the_bound() {
        let state = tempfile::tempdir().unwrap();
        let store = TokenStore::in_state_dir(state.path());
        let first = store.create("n1").unwrap();
        let second = store.create("n1").unwrap();
        assert!(check(&store, &first) && check(&store, &second));
        for _ in 1..TOKENS_PER_NODE_MAX {
            store.create("n1").unwrap();
        }
        assert!(!check(&store, &first) && check(&store, &second));
    }

    #[test]
    fn ids_that_could_leave_the_folder_are_refused() {
        for id in ["", ".", "..", "../x", "a/b", ".hidden", "a.", "a b", "a\0b"] {
            assert!(
                matches!(TokenStore::memory().create(id), Err(TokenError::NodeId(_))),
                "{id:?}"
            );
            assert!(
                Token::parse(&format!("tulle1.{id}.{}", "0".repeat(64))).is_none(),
                "{id:?}"
            );
        }
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let token = Token::parse(&format!("tulle1.n1.{}", "ab".repeat(32))).unwrap();
        assert!(!format!("{token:?}").contains("abab"));
    }
}
