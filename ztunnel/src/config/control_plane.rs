//! Where configuration and certificates come from.

use std::path::PathBuf;

use serde::Serialize;
use tulle_identity::ControlPlane;
use tulle_runtime::config::{Collector, Env};

use super::mesh::ProxyConfig;

/// Where certificates come from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateAuthority {
    /// A server.
    Server(ControlPlane),
    /// This process itself, for tests.
    #[cfg(feature = "testing")]
    Fake,
}

/// Configuration without a control plane.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalXds {
    /// A YAML file.
    Path(PathBuf),
    /// YAML text.
    Text(String),
}

pub(super) fn read_local_xds(read: &mut Collector<'_>) -> Option<LocalXds> {
    let path = read.optional_string("LOCAL_XDS_PATH");
    let text = read.optional_string("LOCAL_XDS");
    match (path, text) {
        (Some(path), Some(_)) => {
            read.problem(
                "LOCAL_XDS_PATH",
                &path,
                "only one of LOCAL_XDS_PATH and LOCAL_XDS may be set",
            );
            None
        }
        (Some(path), None) => Some(LocalXds::Path(path.into())),
        (None, Some(text)) => Some(LocalXds::Text(text)),
        (None, None) => None,
    }
}

/// Without XDS_ADDRESS a local configuration stands alone; an empty one means that there is no control plane.
pub(super) fn read_xds(
    read: &mut Collector<'_>,
    env: &dyn Env,
    proxy_config: &ProxyConfig,
    local: bool,
) -> Option<ControlPlane> {
    if read.is_emptied("XDS_ADDRESS") {
        return None;
    }
    let set = read
        .optional_string("XDS_ADDRESS")
        .or_else(|| proxy_config.discovery_address.clone());
    let address = match set {
        Some(address) => address,
        None if local => return None,
        None => ControlPlane::default_address(env).to_owned(),
    };
    ControlPlane::read(read, "XDS", &address)
}

pub(super) fn read_ca(read: &mut Collector<'_>, env: &dyn Env) -> CertificateAuthority {
    if read.bool("FAKE_CA", false) {
        #[cfg(feature = "testing")]
        return CertificateAuthority::Fake;
        #[cfg(not(feature = "testing"))]
        read.problem("FAKE_CA", "true", "exists only in builds for tests");
    }
    let address = read.string("CA_ADDRESS", ControlPlane::default_address(env));
    let server = ControlPlane::read(read, "CA", &address);
    CertificateAuthority::Server(server.unwrap_or_else(ControlPlane::unusable))
}

pub(super) fn read_compliance(read: &mut Collector<'_>) -> bool {
    let policy = read.string("COMPLIANCE_POLICY", "");
    match policy.as_str() {
        "" => false,
        "pqc" => true,
        other => {
            read.problem("COMPLIANCE_POLICY", other, "must be pqc, or not set");
            false
        }
    }
}
