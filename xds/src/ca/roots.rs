//! The roots there are and the rotation between them, kept in the CA's folder.
//!
//! The first root lies in `ca/` itself, later ones in `ca/roots/<number>/`; `ca/rotation.json` says which of them
//! signs and which is believed. A key is deleted once its root is no longer believed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use tulle_model::Str;

use crate::ca::issuer::{Issuing, Material, bundle};
use crate::ca::root::{self, Root, RootError};
use crate::ca::rotation::{Misplaced, Phase, State};
use crate::state_dir::replace;

/// Where a rotation stands.
const STATE_FILE: &str = "rotation.json";
/// The new root, signed by the old one.
const CROSS_FILE: &str = "cross-cert.pem";
/// Roots of an intermediate that was given from outside.
const ANCHORS_FILE: &str = "anchors.pem";
/// Largest state file read.
const STATE_BYTES_MAX: u64 = 64 * 1024;

/// Why a rotation does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The command does not fit the phase.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// The folder cannot be used.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The issuer comes from outside, and so does its successor.
    #[error("the issuer comes from a folder; put the new one there")]
    FromOutside,
    /// The signer for the next phase is not here any more.
    #[error("the key of root {0} is not here any more")]
    NoKey(u64),
}

/// Every root that is believed, with what can sign.
#[derive(Debug)]
pub struct Roots {
    /// `None` keeps nothing: for demonstrations.
    folder: Option<PathBuf>,
    trust_domain: Str,
    state: State,
    kept: BTreeMap<u64, Material>,
    /// The issuer is given from outside.
    outside: bool,
}

impl Roots {
    /// A first root that lives in memory only.
    ///
    /// # Errors
    /// No key could be made.
    pub fn memory(trust_domain: &str, now: OffsetDateTime) -> Result<Self, RootError> {
        let root = Root::generate(trust_domain, now)?;
        Ok(Self::new(None, trust_domain, now, Material::of_root(root), false))
    }

    /// The roots of a folder; the first is made if there is none.
    ///
    /// # Errors
    /// The files are partial, too open or unusable.
    pub fn open(folder: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<Self, RootError> {
        let first = Root::load_or_create(folder, trust_domain, now);
        let Some(state) = read_state(folder)? else {
            let material = Material::of_root(first?);
            return Ok(Self::new(Some(folder), trust_domain, now, material, false));
        };
        let mut kept = BTreeMap::new();
        for number in [Some(state.signs), state.other].into_iter().flatten() {
            kept.insert(number, load(folder, number)?);
        }
        Ok(Self {
            folder: Some(folder.to_owned()),
            trust_domain: trust_domain.into(),
            state,
            kept,
            outside: false,
        })
    }

    /// An issuer that is given from outside, after what the folder remembers of earlier ones.
    ///
    /// # Errors
    /// The folder cannot be read or written.
    pub fn outside(
        folder: &Path,
        trust_domain: &str,
        now: OffsetDateTime,
        material: Material,
    ) -> Result<Self, RootError> {
        make_folder(folder)?;
        let folder = folder.join("outside");
        make_folder(&folder)?;
        let mut roots = Self::new(Some(&folder), trust_domain, now, material.clone(), true);
        let Some(state) = read_state(&folder)? else {
            roots.keep_anchors(0, &material)?;
            roots.write_state()?;
            return Ok(roots);
        };
        roots.state = state;
        roots.kept.clear();
        for number in [Some(roots.state.signs), roots.state.other].into_iter().flatten() {
            roots.kept.insert(number, anchors_alone(&folder, number)?);
        }
        roots.resume(material, now)?;
        Ok(roots)
    }

    /// The roots as the process that owns the folder keeps them; `outside` is the issuer that is given from outside.
    /// Nothing is made and nothing is written.
    ///
    /// # Errors
    /// The owner has made none yet, or the files are too open or unusable.
    pub fn follow(
        folder: &Path,
        trust_domain: &str,
        now: OffsetDateTime,
        outside: Option<Material>,
    ) -> Result<Self, RootError> {
        let is_outside = outside.is_some();
        let folder = match is_outside {
            true => folder.join("outside"),
            false => folder.to_owned(),
        };
        let state = read_state(&folder)?.unwrap_or_else(|| State::first(now.unix_timestamp()));
        let mut roots = Self {
            folder: None,
            trust_domain: trust_domain.into(),
            state,
            kept: BTreeMap::new(),
            outside: is_outside,
        };
        for number in [Some(roots.state.signs), roots.state.other].into_iter().flatten() {
            let believed = match &outside {
                None => load(&folder, number)?,
                Some(_) => anchors_alone(&folder, number)?,
            };
            roots.kept.insert(number, believed);
        }
        if let Some(material) = outside {
            roots.sign_with(material, &folder)?;
        }
        Ok(roots)
    }

    /// Signs with what is at hand, if the owner of the folder has taken it over.
    fn sign_with(&mut self, material: Material, folder: &Path) -> Result<(), RootError> {
        let known = self
            .kept
            .iter()
            .find(|(_, kept)| kept.anchors == material.anchors);
        let Some(number) = known.map(|(number, _)| *number) else {
            return Err(RootError::Unusable {
                path: folder.to_owned(),
                cause: "the control plane that owns the state folder has not taken over this issuer"
                    .to_owned(),
            });
        };
        self.kept.insert(number, material);
        if number != self.state.signs {
            self.state.other = Some(std::mem::replace(&mut self.state.signs, number));
        }
        Ok(())
    }

    /// What says that the roots of a folder are others than before: compared, and not understood.
    #[must_use]
    pub fn mark(folder: &Path) -> Vec<u8> {
        let files = [
            folder.join(STATE_FILE),
            folder.join(root::CERTIFICATE_FILE),
            folder.join("outside").join(STATE_FILE),
        ];
        let texts = files.iter().map(|path| fs::read(path).unwrap_or_default());
        texts.collect::<Vec<_>>().join(&b'\n')
    }

    fn new(
        folder: Option<&Path>,
        trust_domain: &str,
        now: OffsetDateTime,
        first: Material,
        outside: bool,
    ) -> Self {
        Self {
            folder: folder.map(Path::to_owned),
            trust_domain: trust_domain.into(),
            state: State::first(now.unix_timestamp()),
            kept: BTreeMap::from([(0, first)]),
            outside,
        }
    }

    /// After a restart only the newest issuer is at hand: the one before cannot sign any more.
    fn resume(&mut self, material: Material, now: OffsetDateTime) -> Result<(), RootError> {
        let known = |(number, kept): (&u64, &Material)| (kept.anchors == material.anchors).then_some(*number);
        let number = match self.kept.iter().find_map(known) {
            Some(number) => number,
            None => self.free_number(),
        };
        self.kept.insert(number, material.clone());
        if number != self.state.signs {
            self.keep_anchors(number, &material)?;
            self.state = State {
                phase: Phase::Switch,
                since: now.unix_timestamp(),
                generation: self.state.generation + 1,
                other: Some(self.state.signs),
                signs: number,
                forced: false,
                ..self.state.clone()
            };
            self.write_state()?;
        }
        Ok(())
    }

    /// Where the rotation stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the issuer is given from outside.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.outside
    }

    /// What the authority is to work with.
    ///
    /// # Errors
    /// The signer's key is gone.
    pub fn issuing(&self) -> Result<Issuing, RotationError> {
        let gone = RotationError::NoKey(self.state.signs);
        let Some(Material {
            signer: Some(signer),
            intermediates,
            anchors,
        }) = self.kept.get(&self.state.signs)
        else {
            return Err(gone);
        };
        let other = self.state.other.and_then(|number| self.kept.get(&number));
        let believed = [Some(anchors), other.map(|other| &other.anchors)];
        Ok(Issuing {
            signer: signer.clone(),
            // Beside the old root, the new one is shown signed by it; alone, it is known to everybody.
            intermediates: if self.outside || self.state.other.is_some() {
                intermediates.clone()
            } else {
                Vec::new()
            },
            bundle: bundle(believed.into_iter().flatten().map(AsRef::as_ref)),
            generation: self.state.generation,
        })
    }

    /// Makes a new root and begins to hand it out.
    ///
    /// # Errors
    /// A rotation is under way, or the new root cannot be made or kept.
    pub fn rotate(&mut self, now: OffsetDateTime) -> Result<(), RotationError> {
        if self.outside {
            return Err(RotationError::FromOutside);
        }
        let number = self.free_number();
        let next = self.state.rotate(number, now.unix_timestamp())?;
        let old = self
            .kept
            .get(&self.state.signs)
            .and_then(|kept| kept.signer.clone());
        let old = old.ok_or(RotationError::NoKey(self.state.signs))?;
        let (certificate, key) = root::generate_pems(&self.trust_domain, now)?;
        let path = Path::new(root::CERTIFICATE_FILE);
        let new = Root::from_pems(&certificate, &key, path)?;
        let cross = old.cross_sign(&new, &self.trust_domain, now)?;
        if let Some(folder) = &self.folder {
            let place = numbered(folder, number);
            make_folder(&folder.join("roots"))?;
            make_folder(&place)?;
            for (name, text) in [
                (root::KEY_FILE, key.as_str()),
                (root::CERTIFICATE_FILE, &certificate),
                (CROSS_FILE, &cross),
            ] {
                root::write(&place.join(name), text).map_err(io_error(&place))?;
            }
        }
        let material = Material {
            intermediates: vec![cross.into()],
            ..Material::of_root(new)
        };
        self.kept.insert(number, material);
        self.set(next)?;
        Ok(())
    }

    /// Takes a new issuer from outside. With the same roots it signs at once, with others a rotation begins.
    ///
    /// # Errors
    /// A rotation is under way, or it cannot be kept; the issuer stays the last good one.
    pub fn replace(&mut self, material: Material, now: OffsetDateTime) -> Result<(), RotationError> {
        let same = |number: &u64| {
            let kept = self.kept.get(number);
            kept.is_some_and(|kept| kept.anchors == material.anchors)
        };
        let numbers = [Some(self.state.signs), self.state.other];
        if let Some(number) = numbers.into_iter().flatten().find(same) {
            self.kept.insert(number, material);
            return Ok(());
        }
        let number = self.free_number();
        let next = self.state.rotate(number, now.unix_timestamp())?;
        self.keep_anchors(number, &material)?;
        self.kept.insert(number, material);
        self.set(next)
    }

    /// Goes back to the root before.
    ///
    /// # Errors
    /// The phase allows it no more, or the state cannot be kept.
    pub fn roll_back(&mut self, now: OffsetDateTime) -> Result<(), RotationError> {
        let next = self.state.roll_back(now.unix_timestamp())?;
        let signs = self.kept.get(&next.signs).and_then(|kept| kept.signer.as_ref());
        if signs.is_none() {
            return Err(RotationError::NoKey(next.signs));
        }
        self.set(next)
    }

    /// Enters a state, keeps it, and forgets the roots it does not name.
    ///
    /// # Errors
    /// It cannot be kept; then nothing changes.
    pub fn set(&mut self, next: State) -> Result<(), RotationError> {
        let before = std::mem::replace(&mut self.state, next);
        if let Err(error) = self.write_state() {
            self.state = before;
            return Err(error.into());
        }
        let named = [Some(self.state.signs), self.state.other];
        let forgotten: Vec<u64> = self
            .kept
            .keys()
            .copied()
            .filter(|number| !named.contains(&Some(*number)))
            .collect();
        for number in forgotten {
            self.kept.remove(&number);
            if let Some(folder) = &self.folder
                && !self.outside
            {
                let key = numbered(folder, number).join(root::KEY_FILE);
                // A key that stays is of a root that nobody believes.
                if let Err(error) = fs::remove_file(&key) {
                    tracing::warn!(path = %key.display(), %error, "the key of a retired root stays");
                }
            }
        }
        Ok(())
    }

    /// Notes the longest validity that was issued.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn note_ttl(&mut self, seconds: u64) -> Result<(), RotationError> {
        if seconds <= self.state.longest_ttl {
            return Ok(());
        }
        let next = State {
            longest_ttl: seconds,
            ..self.state.clone()
        };
        self.set(next)
    }

    fn free_number(&self) -> u64 {
        let used = self.kept.keys().copied().chain([self.state.signs]);
        let mut number = used.max().unwrap_or_default() + 1;
        while let Some(folder) = &self.folder
            && numbered(folder, number).exists()
        {
            number += 1;
        }
        number
    }

    fn keep_anchors(&self, number: u64, material: &Material) -> Result<(), RootError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        make_folder(&folder.join("roots"))?;
        let place = numbered(folder, number);
        make_folder(&place)?;
        replace_file(&place.join(ANCHORS_FILE), material.anchors.as_bytes())
    }

    fn write_state(&self) -> Result<(), RootError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let text = serde_json::to_vec_pretty(&self.state).expect("numbers and names are JSON");
        replace_file(&folder.join(STATE_FILE), &text)
    }
}

fn numbered(folder: &Path, number: u64) -> PathBuf {
    match number {
        0 if !folder.ends_with("outside") => folder.to_owned(),
        _ => folder.join("roots").join(number.to_string()),
    }
}

/// What is believed of an issuer whose key is not here.
fn anchors_alone(folder: &Path, number: u64) -> Result<Material, RootError> {
    let path = numbered(folder, number).join(ANCHORS_FILE);
    Ok(Material {
        signer: None,
        intermediates: Vec::new(),
        anchors: root::read(&path)?.into(),
    })
}

fn load(folder: &Path, number: u64) -> Result<Material, RootError> {
    let place = numbered(folder, number);
    let material = Material::of_root(Root::load(&place)?);
    let cross = place.join(CROSS_FILE);
    let intermediates = match cross.exists() {
        true => vec![root::read(&cross)?.into()],
        false => Vec::new(),
    };
    Ok(Material {
        intermediates,
        ..material
    })
}

fn read_state(folder: &Path) -> Result<Option<State>, RootError> {
    let path = folder.join(STATE_FILE);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path)(error)),
        Ok(metadata) if metadata.len() > STATE_BYTES_MAX => {
            return Err(RootError::Unusable {
                path,
                cause: "it is too large".to_owned(),
            });
        }
        Ok(_) => {}
    }
    let text = root::read(&path)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| RootError::Unusable {
            path,
            cause: error.to_string(),
        })
}

fn make_folder(folder: &Path) -> Result<(), RootError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(io_error(folder))
}

fn replace_file(path: &Path, text: &[u8]) -> Result<(), RootError> {
    let new = path.with_extension("new");
    let replaced = match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => root::write(&new, &String::from_utf8_lossy(text)),
    };
    replaced
        .and_then(|()| replace(&new, path))
        .map_err(io_error(path))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Io { path, source }
}

#[cfg(test)]
mod tests;
