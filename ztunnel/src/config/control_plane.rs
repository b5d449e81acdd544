//! Where configuration and certificates come from.

use std::path::{Path, PathBuf};

use http::Uri;
use serde::{Serialize, Serializer};
use tulle_identity::{RootSource, TokenSource};
use tulle_runtime::config::{Collector, Env};

use super::headers::Headers;
use super::mesh::ProxyConfig;
use super::show::as_text;

const DEFAULT_ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// One server of the control plane.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Where.
    #[serde(serialize_with = "as_text")]
    pub address: Uri,
    /// What its certificate is verified with.
    #[serde(serialize_with = "as_root")]
    pub root: RootSource,
    /// Other server name to verify.
    pub server_name: Option<String>,
    /// How the caller proves itself.
    #[serde(serialize_with = "as_token")]
    pub token: TokenSource,
    /// Sent with each request.
    pub headers: Headers,
}

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

/// A token never shows, only where it comes from.
fn as_token<S: Serializer>(token: &TokenSource, serializer: S) -> Result<S::Ok, S::Error> {
    match token {
        TokenSource::File(path) => serializer.collect_str(&format_args!("file {}", path.display())),
        TokenSource::Certificate(path) => {
            serializer.collect_str(&format_args!("certificate {}", path.display()))
        }
        TokenSource::Literal(_) => serializer.serialize_str("literal"),
        TokenSource::None => serializer.serialize_str("none"),
    }
}

fn as_root<S: Serializer>(root: &RootSource, serializer: S) -> Result<S::Ok, S::Error> {
    match root {
        RootSource::File(path) => serializer.collect_str(&format_args!("file {}", path.display())),
        RootSource::Pem(_) => serializer.serialize_str("pem"),
        RootSource::Pin(_) => serializer.serialize_str("pin"),
        RootSource::System => serializer.serialize_str("system"),
    }
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

fn default_address(env: &dyn Env) -> &'static str {
    if env.var("KUBERNETES_SERVICE_HOST").is_some() {
        "https://istiod.istio-system.svc:15012"
    } else {
        "https://localhost:15012"
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
        None => default_address(env).to_owned(),
    };
    read_server(read, "XDS", &address)
}

pub(super) fn read_ca(read: &mut Collector<'_>, env: &dyn Env) -> CertificateAuthority {
    if read.bool("FAKE_CA", false) {
        #[cfg(feature = "testing")]
        return CertificateAuthority::Fake;
        #[cfg(not(feature = "testing"))]
        read.problem("FAKE_CA", "true", "exists only in builds for tests");
    }
    let address = read.string("CA_ADDRESS", default_address(env));
    let server = read_server(read, "CA", &address);
    CertificateAuthority::Server(server.unwrap_or_else(|| ControlPlane {
        // Never used: the bad address has been noted, so reading ends in an error.
        address: Uri::from_static("https://localhost:15012"),
        root: RootSource::System,
        server_name: None,
        token: TokenSource::None,
        headers: Headers::default(),
    }))
}

/// `kind` is `XDS` or `CA`, as in the variables' names.
fn read_server(read: &mut Collector<'_>, kind: &str, address: &str) -> Option<ControlPlane> {
    let address = match parse_address(address) {
        Ok(address) => address,
        Err(message) => {
            read.problem(&format!("{kind}_ADDRESS"), address, message);
            return None;
        }
    };
    Some(ControlPlane {
        address,
        root: RootSource::from_setting(&read.string(&format!("{kind}_ROOT_CA"), DEFAULT_ROOT)),
        server_name: read.optional_string(&format!("ALT_{kind}_HOSTNAME")),
        token: token_source(read.optional_string("AUTH_TOKEN")),
        headers: Headers::read(read, &format!("{kind}_HEADER_")),
    })
}

fn parse_address(text: &str) -> Result<Uri, &'static str> {
    const EXPECTED: &str = "must be an address such as https://localhost:15012";
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
    match uri.scheme_str() {
        Some("https" | "http") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        _ => Err(EXPECTED),
    }
}

/// What is not set is the file that Kubernetes mounts, if it is there.
fn token_source(text: Option<String>) -> TokenSource {
    match text {
        Some(text) => TokenSource::from_setting(&text),
        None if Path::new(DEFAULT_TOKEN).exists() => TokenSource::File(DEFAULT_TOKEN.into()),
        None => TokenSource::None,
    }
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
