//! Where servers of the control plane are, as every program reads it from its environment.

use std::fmt;
use std::path::Path;

use http::Uri;
use serde::{Serialize, Serializer};
use tulle_runtime::config::{Collector, Env};

use super::{ChannelConfig, Headers, RootSource, TokenSource};

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

impl ControlPlane {
    /// Reads the variables of one server: `kind` is `XDS` or `CA`, as in their names. What cannot be used is noted.
    pub fn read(read: &mut Collector<'_>, kind: &str, address: &str) -> Option<Self> {
        let address = match parse_address(address) {
            Ok(address) => address,
            Err(message) => {
                read.problem(&format!("{kind}_ADDRESS"), address, message);
                return None;
            }
        };
        Some(Self {
            address,
            root: RootSource::from_setting(&read.string(&format!("{kind}_ROOT_CA"), DEFAULT_ROOT)),
            server_name: read.optional_string(&format!("ALT_{kind}_HOSTNAME")),
            token: token_source(read.optional_string("AUTH_TOKEN")),
            headers: Headers::read(read, &format!("{kind}_HEADER_")),
        })
    }

    /// Stands in for a server whose bad address has been noted, so that reading ends in an error.
    #[must_use]
    pub fn unusable() -> Self {
        Self {
            address: Uri::from_static("https://localhost:15012"),
            root: RootSource::System,
            server_name: None,
            token: TokenSource::None,
            headers: Headers::default(),
        }
    }

    /// Where it is unless something is set.
    #[must_use]
    pub fn default_address(env: &dyn Env) -> &'static str {
        if env.var("KUBERNETES_SERVICE_HOST").is_some() {
            "https://istiod.istio-system.svc:15012"
        } else {
            "https://localhost:15012"
        }
    }

    /// How it is spoken to by somebody of this cluster.
    #[must_use]
    pub fn channel_config(&self, cluster_id: &str) -> ChannelConfig {
        ChannelConfig {
            address: self.address.clone(),
            root: self.root.clone(),
            server_name: self.server_name.clone(),
            token: self.token.clone(),
            headers: self.headers.to_vec(),
            cluster_id: Some(cluster_id.to_owned()),
            mark: None,
        }
    }
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
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
