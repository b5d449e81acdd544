//! An issuer from outside: an intermediate in a folder, in one of the layouts Kubernetes mounts.
//!
//! | file | `cacerts` | `kubernetes.io/tls` |
//! |---|---|---|
//! | the issuer's certificate | `ca-cert.pem` | `tls.crt`, first block |
//! | its key | `ca-key.pem` | `tls.key` |
//! | from the issuer upwards | `cert-chain.pem` | `tls.crt` |
//! | roots | `root-cert.pem` | `ca.crt` |
//! | revoked certificates | `ca-crl.pem`, optional | - |

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;
use tulle_model::Str;

use crate::ca::crl;
use crate::ca::issuer::{Material, bundle, certificates};
use crate::ca::root::{Root, RootError};
use crate::source::folder::watcher::Watcher;

/// Largest file read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most certificates between leaf and root.
const INTERMEDIATES_MAX: usize = 8;

/// What such a folder holds.
#[derive(Debug, Clone)]
pub struct Outside {
    /// What signs, and what vouches for it.
    pub material: Material,
    /// PEM of revocation lists.
    pub crl: Option<Arc<[u8]>>,
}

/// Names of the files of a layout.
struct Layout {
    certificate: &'static str,
    key: &'static str,
    chain: &'static str,
    roots: &'static str,
}

const CACERTS: Layout = Layout {
    certificate: "ca-cert.pem",
    key: "ca-key.pem",
    chain: "cert-chain.pem",
    roots: "root-cert.pem",
};
const TLS: Layout = Layout {
    certificate: "tls.crt",
    key: "tls.key",
    chain: "tls.crt",
    roots: "ca.crt",
};
const CRL_FILE: &str = "ca-crl.pem";

/// Reads a folder whole. Every file is checked against the others: an issuer whose chain does not lead to its roots
/// would sign what nobody accepts.
///
/// # Errors
/// Something is missing, does not fit together, or is not valid at `now`.
pub fn read(folder: &Path, now: OffsetDateTime) -> Result<Outside, RootError> {
    let layout = if folder.join(TLS.key).exists() && !folder.join(CACERTS.key).exists() {
        TLS
    } else {
        CACERTS
    };
    let at = |name: &str| folder.join(name);
    let (issuer_path, roots_path) = (at(layout.certificate), at(layout.roots));
    let first = certificates(&text(&issuer_path)?).into_iter().next();
    let (issuer_der, issuer_pem) =
        first.ok_or_else(|| unusable(&issuer_path, "it holds no PEM certificate"))?;
    let key = zeroize::Zeroizing::new(text(&at(layout.key))?);
    let root = Root::from_pems(&issuer_pem, &key, &issuer_path)?;
    if now < root.not_before() || now >= root.not_after() {
        return Err(unusable(&issuer_path, "its certificate is not valid now"));
    }
    let anchors = certificates(&text(&roots_path)?);
    if anchors.is_empty() {
        return Err(unusable(&roots_path, "it holds no PEM certificate"));
    }
    let chain = match optional(&at(layout.chain))? {
        Some(text) => certificates(&text),
        None => return Err(unusable(&at(layout.chain), "it is missing")),
    };
    let is_root = |der: &Vec<u8>| anchors.iter().any(|(anchor, _)| anchor == der);
    let mut intermediates: Vec<(Vec<u8>, String)> = Vec::new();
    if !is_root(&issuer_der) {
        intermediates.push((issuer_der.clone(), issuer_pem));
    }
    let above = chain
        .into_iter()
        .filter(|(der, _)| *der != issuer_der && !is_root(der));
    intermediates.extend(above);
    if intermediates.len() > INTERMEDIATES_MAX {
        return Err(unusable(&at(layout.chain), "it holds too many certificates"));
    }
    leads_to(&intermediates, &anchors, &issuer_der).map_err(|cause| unusable(&roots_path, cause))?;
    let lists = match optional(&at(CRL_FILE))? {
        Some(text) => {
            crl::parse(text.as_bytes()).map_err(|cause| unusable(&at(CRL_FILE), &cause.to_string()))?;
            Some(Arc::from(text.into_bytes()))
        }
        None => None,
    };
    Ok(Outside {
        material: Material {
            signer: Some(Arc::new(root)),
            intermediates: intermediates.into_iter().map(|(_, pem)| Str::from(pem)).collect(),
            anchors: bundle(anchors.iter().map(|(_, pem)| pem.as_str())),
        },
        crl: lists,
    })
}

/// Whether each certificate is signed by the next, and the last by a root.
fn leads_to(
    chain: &[(Vec<u8>, String)],
    anchors: &[(Vec<u8>, String)],
    issuer: &[u8],
) -> Result<(), &'static str> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let parse = |der: &'_ [u8]| X509Certificate::from_der(der).map(|_| ()).is_ok();
    if chain.is_empty() {
        return if anchors.iter().any(|(anchor, _)| anchor == issuer) {
            Ok(())
        } else {
            Err("the issuer's chain does not lead to it")
        };
    }
    let all = chain.iter().chain(anchors);
    if !all.clone().all(|(der, _)| parse(der)) {
        return Err("a certificate of the chain cannot be read");
    }
    for (at, (der, _)) in chain.iter().enumerate() {
        let (_, below) = X509Certificate::from_der(der).map_err(|_| "a certificate cannot be read")?;
        let signs = |(above, _): &(Vec<u8>, String)| {
            X509Certificate::from_der(above)
                .is_ok_and(|(_, above)| below.verify_signature(Some(above.public_key())).is_ok())
        };
        let signed = match chain.get(at + 1) {
            Some(next) => signs(next) || anchors.iter().any(signs),
            None => anchors.iter().any(signs),
        };
        if !signed {
            return Err("the issuer's chain does not lead to it");
        }
    }
    Ok(())
}

fn unusable(path: &Path, cause: &str) -> RootError {
    RootError::Unusable {
        path: path.to_owned(),
        cause: cause.to_owned(),
    }
}

fn text(path: &Path) -> Result<String, RootError> {
    optional(path)?.ok_or_else(|| unusable(path, "it is missing"))
}

fn optional(path: &Path) -> Result<Option<String>, RootError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(RootError::Io {
                path: path.to_owned(),
                source,
            });
        }
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => return Err(unusable(path, "it is too large")),
        Ok(_) => {}
    }
    crate::ca::root::read(path).map(Some)
}

/// Hears of changes in the folder of an issuer from outside.
pub(super) fn watcher(folder: &Path) -> Watcher {
    let mut watcher = Watcher::new(folder);
    watcher.watch(&BTreeSet::from([folder.to_owned()]));
    watcher
}

/// Completes when something happened in that folder; never without one.
pub(super) async fn heard(watcher: &mut Option<Watcher>) {
    match watcher {
        Some(watcher) => drop(watcher.event().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
