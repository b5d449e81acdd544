//! Join tokens: `tulle1.<id>.<secret>.<pin>`, exchanged once for a node's certificate.
//!
//! The pin is the SHA-256 of the root's public key, which the node checks before it sends anything; the control plane
//! never needs it back. One file per token, `<state-dir>/tokens/join/<id>.json`, holds the hash of the secret and what
//! became of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::{constant_time, rand};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tulle_model::Str;

use super::{PREFIX, TokenError, hash_of, hex, is_node_id};

use crate::state_dir::replace;

/// Longest time a token may wait for its use, in seconds.
pub const TTL_MAX: u64 = 24 * 3600;
/// How long the same request is answered again, in seconds: its answer may have been lost.
pub const REPEAT_MAX: i64 = 300;
/// Tokens kept.
const TOKENS_MAX: usize = 10_000;
/// Random bytes of an id.
const ID_BYTES: usize = 8;
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Largest file read.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// A token as the control plane keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    node: Str,
    /// SHA-256 of the secret's text, in hex.
    sha256: String,
    /// Seconds since 1970.
    expires: i64,
    #[serde(default)]
    used: Option<Used>,
    /// Somebody tried to use it a second time.
    #[serde(default)]
    suspect: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Used {
    /// SHA-256 of the public key it was used for, in hex.
    key: String,
    /// Seconds since 1970.
    at: i64,
    /// What was answered, once it was.
    #[serde(default)]
    chain: Vec<String>,
}

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefused {
    /// Not of this form, never made, or its secret is another one.
    #[error("the join token is not valid")]
    Unknown,
    /// Its time is over.
    #[error("the join token has ended; make a new one with `tulle node token`")]
    Expired,
    /// It was used for another key, or too long ago.
    #[error("the join token was used before; make a new one with `tulle node token`")]
    Reused {
        /// The node it is for.
        node: Str,
    },
    /// It cannot be marked as used.
    #[error("the join token cannot be written")]
    Store,
}

/// A token that is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The token.
    pub id: Str,
    /// The node it is for.
    pub node: Str,
    /// What was answered to the same request before.
    pub answer: Option<Vec<String>>,
}

/// The tokens that were made and have not ended.
#[derive(Debug, Default)]
pub struct JoinTokens {
    folder: Option<PathBuf>,
    kept: Mutex<BTreeMap<Str, Kept>>,
}

impl JoinTokens {
    /// The tokens of a state folder.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn open(state_dir: &Path, now: i64) -> Result<Self, TokenError> {
        let folder = state_dir.join("tokens").join("join");
        let kept = read_all(&folder, now)?;
        Ok(Self {
            folder: Some(folder),
            kept: Mutex::new(kept),
        })
    }

    /// Makes a token for a node: `tulle1.<id>.<secret>.<pin>`.
    ///
    /// # Errors
    /// The node id cannot be used, or the token cannot be kept.
    pub fn create(&self, node: &str, seconds: u64, pin: &str, now: i64) -> Result<String, TokenError> {
        if !is_node_id(node) {
            return Err(TokenError::NodeId(
                node.chars().take(super::NODE_ID_MAX).collect(),
            ));
        }
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        rand::fill(&mut id).map_err(|_| TokenError::NoRandom)?;
        rand::fill(&mut secret).map_err(|_| TokenError::NoRandom)?;
        let (id, secret) = (hex(&id), hex(&secret));
        let lifetime = i64::try_from(seconds.min(TTL_MAX)).unwrap_or(i64::MAX);
        let token = Kept {
            node: node.into(),
            sha256: hash_of(&secret),
            expires: now.saturating_add(lifetime),
            used: None,
            suspect: false,
        };
        let mut kept = self.kept.lock();
        self.forget_ended(&mut kept, now);
        if kept.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        self.store(&id, &token)?;
        kept.insert(id.as_str().into(), token);
        Ok(format!("{PREFIX}.{id}.{secret}.{pin}"))
    }

    /// Takes `<id>.<secret>` for the key with this hash. It is used from now on, whatever becomes of the request.
    ///
    /// # Errors
    /// It is not taken.
    pub fn take(&self, text: &str, key: &str, now: i64) -> Result<Taken, JoinRefused> {
        let (id, secret) = text.split_once('.').ok_or(JoinRefused::Unknown)?;
        let mut kept = self.kept.lock();
        let token = kept.get_mut(id).ok_or(JoinRefused::Unknown)?;
        let presented = hash_of(secret);
        constant_time::verify_slices_are_equal(presented.as_bytes(), token.sha256.as_bytes())
            .map_err(|_| JoinRefused::Unknown)?;
        let node = token.node.clone();
        let answer = match &token.used {
            Some(used) if used.key == key && now.saturating_sub(used.at) <= REPEAT_MAX => {
                Some(used.chain.clone()).filter(|chain| !chain.is_empty())
            }
            Some(_) => {
                token.suspect = true;
                let token = token.clone();
                // The alarm matters more than its record.
                let _ = self.store(id, &token);
                return Err(JoinRefused::Reused { node });
            }
            None if now >= token.expires => return Err(JoinRefused::Expired),
            None => {
                token.used = Some(Used {
                    key: key.to_owned(),
                    at: now,
                    chain: Vec::new(),
                });
                let stored = self.store(id, token);
                stored.map_err(|_| JoinRefused::Store)?;
                None
            }
        };
        Ok(Taken {
            id: id.into(),
            node,
            answer,
        })
    }

    /// Notes what was answered.
    pub fn answered(&self, id: &str, chain: &[String]) {
        let mut kept = self.kept.lock();
        let Some(token) = kept.get_mut(id) else {
            return;
        };
        if let Some(used) = &mut token.used {
            used.chain = chain.to_vec();
        }
        // Lost with a crash, a repeat is signed anew for the same key.
        let _ = self.store(id, token);
    }

    /// Nodes whose token somebody tried to use a second time.
    #[must_use]
    pub fn suspects(&self) -> Vec<Str> {
        let kept = self.kept.lock();
        let suspects = kept.values().filter(|token| token.suspect);
        suspects.map(|token| token.node.clone()).collect()
    }

    /// What has ended and can neither be used nor repeated; a suspect is remembered for another day.
    fn forget_ended(&self, kept: &mut BTreeMap<Str, Kept>, now: i64) {
        let day = i64::try_from(TTL_MAX).unwrap_or(i64::MAX);
        let ended = |token: &Kept| {
            let rest = if token.suspect { day } else { REPEAT_MAX };
            now > token.expires.saturating_add(rest)
        };
        kept.retain(|id, token| {
            let over = ended(token);
            if over && let Some(folder) = &self.folder {
                let _ = fs::remove_file(folder.join(format!("{id}.json")));
            }
            !over
        });
    }

    /// Write, sync, rename.
    fn store(&self, id: &str, token: &Kept) -> Result<(), TokenError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let path = folder.join(format!("{id}.json"));
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let new = path.with_extension("json.new");
            let mut options = fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(&serde_json::to_vec_pretty(token)?)?;
            file.sync_all()?;
            replace(&new, &path)
        };
        write().map_err(|source| TokenError::Write {
            path: path.clone(),
            source,
        })
    }
}

fn read_all(folder: &Path, now: i64) -> Result<BTreeMap<Str, Kept>, TokenError> {
    let unusable = |path: &Path, cause: String| TokenError::Read {
        path: path.to_owned(),
        cause,
    };
    let mut all = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
        Err(error) => return Err(unusable(folder, error.to_string())),
    };
    for entry in entries {
        let path = entry.map_err(|error| unusable(folder, error.to_string()))?.path();
        let Some(id) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".json"))
        else {
            continue;
        };
        let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if length > FILE_BYTES_MAX {
            return Err(unusable(&path, "it is too large".to_owned()));
        }
        let text = fs::read(&path).map_err(|error| unusable(&path, error.to_string()))?;
        let token: Kept =
            serde_json::from_slice(&text).map_err(|error| unusable(&path, error.to_string()))?;
        if now
            <= token
                .expires
                .saturating_add(i64::try_from(TTL_MAX).unwrap_or(i64::MAX))
        {
            all.insert(id.into(), token);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// The part that goes over the wire.
    fn made(tokens: &JoinTokens) -> String {
        let token = tokens.create("n1", 3600, "pin", NOW).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!((parts[0], parts[3], parts.len()), (PREFIX, "pin", 4));
        format!("{}.{}", parts[1], parts[2])
    }

    #[test]
    fn a_token_is_taken_once() {
        let state = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::open(state.path(), NOW).unwrap();
        let token = made(&tokens);
        let taken = tokens.take(&token, "key", NOW).unwrap();
        assert_eq!((&*taken.node, taken.answer), ("n1", None));
        tokens.answered(&taken.id, &["leaf".to_owned()]);
        for tokens in [tokens, JoinTokens::open(state.path(), NOW).unwrap()] {
            let again = tokens.take(&token, "key", NOW + REPEAT_MAX).unwrap();
            assert_eq!(
                again.answer,
                Some(vec!["leaf".to_owned()]),
                "the answer may have been lost"
            );
            assert!(tokens.suspects().is_empty());
            let late = tokens.take(&token, "key", NOW + REPEAT_MAX + 1);
            assert_eq!(late, Err(JoinRefused::Reused { node: "n1".into() }));
        }
        let tokens = JoinTokens::open(state.path(), NOW).unwrap();
        assert_eq!(tokens.suspects(), ["n1".into()], "also after a restart");
    }

    #[test]
    fn another_key_is_refused_and_makes_the_node_suspect() {
        let tokens = JoinTokens::default();
        let token = made(&tokens);
        tokens.take(&token, "key", NOW).unwrap();
        let stolen = tokens.take(&token, "other", NOW + 1);
        assert_eq!(stolen, Err(JoinRefused::Reused { node: "n1".into() }));
        assert_eq!(tokens.suspects(), ["n1".into()]);
    }

    #[test]
    fn what_was_never_made_or_has_ended_is_refused() {
        let tokens = JoinTokens::default();
        let token = made(&tokens);
        let (id, _) = token.split_once('.').unwrap();
        for text in [
            "",
            id,
            &format!("{id}."),
            &format!("{id}.{}", "0".repeat(64)),
            "x.y",
        ] {
            assert_eq!(tokens.take(text, "key", NOW), Err(JoinRefused::Unknown), "{text}");
        }
        assert_eq!(tokens.take(&token, "key", NOW + 3600), Err(JoinRefused::Expired));
        assert!(tokens.suspects().is_empty());
    }

    #[test]
    fn secrets_are_kept_as_hashes_in_tight_files() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::open(state.path(), NOW).unwrap();
        let token = made(&tokens);
        let (id, secret) = token.split_once('.').unwrap();
        let path = state.path().join(format!("tokens/join/{id}.json"));
        assert!(!fs::read_to_string(&path).unwrap().contains(secret));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_token_lives_a_day_at_most() {
        let tokens = JoinTokens::default();
        let token = tokens.create("n1", u64::MAX, "pin", NOW).unwrap();
        let token = token
            .strip_prefix("tulle1.")
            .unwrap()
            .strip_suffix(".pin")
            .unwrap()
            .to_owned();
        let day = i64::try_from(TTL_MAX).unwrap();
        assert_eq!(tokens.take(&token, "key", NOW + day), Err(JoinRefused::Expired));
    }
}
