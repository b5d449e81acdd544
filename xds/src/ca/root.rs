//! The self-signed root: made once, kept in two files, never made over anything that is there.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;
use tulle_model::{Reason, Str};
use x509_parser::pem::Pem;

use crate::ca::issue::{BACKDATED, random_serial};
use crate::state_dir::replace;

/// How long a root is valid.
pub const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);
/// File name of the root certificate, which clients take as their trust anchor.
pub const CERTIFICATE_FILE: &str = "root-cert.pem";
/// File name of the root's key.
pub const KEY_FILE: &str = "root-key.pem";

/// Why there is no root to sign with.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// One of the two files is missing.
    #[error(
        "{}: {path} is missing while its sibling is there; restore it, or move both away to make a new root",
        Reason::CaIncomplete
    )]
    Partial {
        /// The missing file.
        path: PathBuf,
    },
    /// Others than the owner may use the file or folder.
    #[error(
        "{}: {path} has mode {mode:04o}, which lets others in; run `chmod {allowed:04o} {path}`",
        Reason::CaIncomplete
    )]
    TooOpen {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it may be at most.
        allowed: u32,
    },
    /// The files are there, but do not make an issuer.
    #[error("{}: {path}: {cause}", Reason::CaIncomplete)]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {path}: {source}", Reason::CaIncomplete)]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The root could not be made.
    #[error("the root certificate could not be made: {0}")]
    Generate(String),
}

/// The issuer: certificate, key and validity.
pub struct Root {
    certificate_pem: Str,
    issuer: Issuer<'static, KeyPair>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    serial: Str,
}

impl std::fmt::Debug for Root {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root")
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Root {
    /// A new root that lives in memory only.
    ///
    /// # Errors
    /// No key could be made.
    pub fn generate(trust_domain: &str, now: OffsetDateTime) -> Result<Self, RootError> {
        let (certificate, key) = generate_pems(trust_domain, now)?;
        Self::from_pems(&certificate, &key, Path::new(CERTIFICATE_FILE))
    }

    /// The root kept in a folder; made on the first start, when the folder is absent or empty.
    ///
    /// # Errors
    /// The files are partial, too open or unusable; nothing is ever made over them.
    pub fn load_or_create(folder: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<Self, RootError> {
        let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        match (exists(&certificate)?, exists(&key)?) {
            (false, false) => create(folder, trust_domain, now)?,
            (false, true) => return Err(RootError::Partial { path: certificate }),
            (true, false) => return Err(RootError::Partial { path: key }),
            (true, true) => {}
        }
        Self::load(folder)
    }

    pub(super) fn load(folder: &Path) -> Result<Self, RootError> {
        let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        refuse_too_open(folder, 0o700)?;
        refuse_too_open(&certificate, 0o600)?;
        refuse_too_open(&key, 0o600)?;
        let key_pem = zeroize::Zeroizing::new(read(&key)?);
        Self::from_pems(&read(&certificate)?, &key_pem, &certificate)
    }

    /// Checks that certificate and key belong together and may sign.
    pub(super) fn from_pems(certificate_pem: &str, key_pem: &str, path: &Path) -> Result<Self, RootError> {
        let unusable = |cause: &str| RootError::Unusable {
            path: path.to_owned(),
            cause: cause.to_owned(),
        };
        let mut blocks = Pem::iter_from_buffer(certificate_pem.as_bytes());
        let block = blocks
            .next()
            .and_then(Result::ok)
            .filter(|block| block.label == "CERTIFICATE");
        let block = block.ok_or_else(|| unusable("it holds no PEM certificate"))?;
        if blocks.next().is_some() {
            return Err(unusable("it must hold exactly one certificate"));
        }
        let certificate = block
            .parse_x509()
            .map_err(|_| unusable("its certificate cannot be read"))?;
        if !certificate.is_ca() {
            return Err(unusable("its certificate is not that of an authority"));
        }
        let key = KeyPair::from_pem(key_pem).map_err(|_| unusable("the key beside it cannot be read"))?;
        let same_key =
            certificate.public_key().subject_public_key.data == rcgen::PublicKeyData::der_bytes(&key);
        if !same_key {
            return Err(unusable("the key beside it belongs to another certificate"));
        }
        let validity = certificate.validity();
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)
            .map_err(|error| unusable(&format!("it cannot issue: {error}")))?;
        Ok(Self {
            certificate_pem: certificate_pem.into(),
            issuer,
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            serial: certificate.raw_serial_as_string().replace(':', "").into(),
        })
    }

    /// The certificate, PEM: what relying parties trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &Str {
        &self.certificate_pem
    }

    /// Beginning of its validity.
    #[must_use]
    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    /// End of its validity.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Its serial number, hex.
    #[must_use]
    pub fn serial(&self) -> &Str {
        &self.serial
    }

    /// Another root as this one vouches for it: the same name and key, signed here.
    pub(super) fn cross_sign(
        &self,
        other: &Self,
        trust_domain: &str,
        now: OffsetDateTime,
    ) -> Result<String, RootError> {
        let mut params = root_params(trust_domain, now)?;
        params.not_before = params.not_before.max(self.not_before);
        params.not_after = other.not_after.min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(other.issuer.key(), &self.issuer);
        certificate
            .map(|certificate| certificate.pem())
            .map_err(|error| RootError::Generate(error.to_string()))
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

pub(super) fn generate_pems(
    trust_domain: &str,
    now: OffsetDateTime,
) -> Result<(String, zeroize::Zeroizing<String>), RootError> {
    let failed = |error: rcgen::Error| RootError::Generate(error.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let params = root_params(trust_domain, now)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem().into()))
}

/// Everything of a root's certificate but its key. Every root of a trust domain has the same name.
fn root_params(trust_domain: &str, now: OffsetDateTime) -> Result<CertificateParams, RootError> {
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATED;
    params.not_after = now + ROOT_TTL;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Tulle root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let serial = random_serial().map_err(|error| RootError::Generate(error.to_string()))?;
    params.serial_number = Some(serial);
    Ok(params)
}

/// Makes both files in a folder beside the final one and renames it, so that no crash leaves only one of them.
fn create(folder: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<(), RootError> {
    let (certificate, key) = generate_pems(trust_domain, now)?;
    let new = folder.with_extension("new");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RootError::Io { path, source }
    };
    if new.exists() {
        fs::remove_dir_all(&new).map_err(failed(&new))?;
    }
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&new)
        .map_err(failed(&new))?;
    write(&new.join(KEY_FILE), &key).map_err(failed(&new))?;
    write(&new.join(CERTIFICATE_FILE), &certificate).map_err(failed(&new))?;
    replace(&new, folder).map_err(failed(folder))
}

pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

pub(super) fn read(path: &Path) -> Result<String, RootError> {
    fs::read_to_string(path).map_err(|source| RootError::Io {
        path: path.to_owned(),
        source,
    })
}

fn exists(path: &Path) -> Result<bool, RootError> {
    path.try_exists().map_err(|source| RootError::Io {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn refuse_too_open(path: &Path, allowed: u32) -> Result<(), RootError> {
    let metadata = fs::metadata(path).map_err(|source| RootError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & !allowed == 0 {
        return Ok(());
    }
    Err(RootError::TooOpen {
        path: path.to_owned(),
        mode,
        allowed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_root_is_made_once_with_tight_modes() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("ca");
        let first = Root::load_or_create(&folder, "cluster.local", now()).unwrap();
        let second = Root::load_or_create(&folder, "cluster.local", now()).unwrap();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        assert_eq!(first.not_after(), now() + ROOT_TTL);
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            [mode(""), mode(CERTIFICATE_FILE), mode(KEY_FILE)],
            [0o700, 0o600, 0o600]
        );
    }

    #[test]
    fn partial_files_are_refused_and_left_alone() {
        for gone in [CERTIFICATE_FILE, KEY_FILE] {
            let state = tempfile::tempdir().unwrap();
            let folder = state.path().join("ca");
            Root::load_or_create(&folder, "cluster.local", now()).unwrap();
            fs::remove_file(folder.join(gone)).unwrap();
            let error = Root::load_or_create(&folder, "cluster.local", now()).unwrap_err();
            assert!(
                matches!(&error, RootError::Partial { path } if path.ends_with(gone)),
                "{error}"
            );
            assert!(error.to_string().contains("T0301"));
            assert!(!folder.join(gone).exists());
        }
    }

    #[test]
    fn loose_modes_are_refused() {
        for (name, mode) in [("", 0o750), (KEY_FILE, 0o640), (CERTIFICATE_FILE, 0o644)] {
            let state = tempfile::tempdir().unwrap();
            let folder = state.path().join("ca");
            Root::load_or_create(&folder, "cluster.local", now()).unwrap();
            chmod(&folder.join(name), mode);
            let error = Root::load_or_create(&folder, "cluster.local", now()).unwrap_err();
            assert!(matches!(error, RootError::TooOpen { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for state in [&one, &other] {
            Root::load_or_create(&state.path().join("ca"), "cluster.local", now()).unwrap();
        }
        let key = |state: &tempfile::TempDir| state.path().join("ca").join(KEY_FILE);
        fs::copy(key(&other), key(&one)).unwrap();
        let error = Root::load_or_create(&one.path().join("ca"), "cluster.local", now()).unwrap_err();
        assert!(matches!(error, RootError::Unusable { .. }), "{error}");
    }

    #[test]
    fn debug_output_hides_the_key() {
        let root = Root::generate("cluster.local", now()).unwrap();
        assert!(!format!("{root:?}").to_lowercase().contains("key"));
    }
}
