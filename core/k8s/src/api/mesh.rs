//! Settings of the mesh: the file `mesh.yaml`, or the key `mesh` of the ConfigMap `tulle` in the root namespace.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tulle_model::Str;

use super::duration::{Percent, Span};
use super::meta::Meta;
use super::security::{MtlsMode, Unreadable};
use super::traffic::ExternalAuth;

/// The file, as an object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mesh {
    /// Only a name.
    pub metadata: Meta,
    /// The settings; apart, so that they do not make objects of every other kind as large as they are.
    pub settings: Box<MeshSettings>,
    /// Why they cannot be read, if so.
    #[serde(skip)]
    pub unreadable: Option<Unreadable>,
}

/// A ConfigMap, as far as anything of it is used: mesh settings, certificates of backends.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigMap {
    /// Metadata.
    pub metadata: Meta,
    /// Values by key.
    pub data: BTreeMap<Str, Str>,
}

/// A Secret, as far as anything of it is used: certificates of backends, never keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Secret {
    /// Metadata.
    pub metadata: Meta,
    /// Certificates, as PEM.
    #[serde(skip)]
    pub certificates: Str,
}

/// What may be set for the mesh as a whole. What is absent is as the flags say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshSettings {
    /// Trust domain; only what the flag says may stand here.
    pub trust_domain: Option<Str>,
    /// Other trust domains that mean ours in policies.
    pub trust_domain_aliases: Vec<Str>,
    /// Root namespace; only what the flag says may stand here.
    pub root_namespace: Option<Str>,
    /// Network of what names none.
    pub network: Option<Str>,
    /// `strict` or `permissive`.
    pub mtls_mode: Option<Mode>,
    /// Namespaces in which nothing is enrolled.
    pub excluded_namespaces: Option<BTreeSet<Str>>,
    /// Who can be asked or told, by name.
    pub providers: Vec<MeshProvider>,
    /// What holds for waypoints.
    pub waypoint: WaypointSettings,
}

/// Whether callers must use mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Both are accepted.
    #[serde(alias = "PERMISSIVE")]
    Permissive,
    /// Mutual TLS only.
    #[serde(alias = "STRICT")]
    Strict,
}

impl From<Mode> for MtlsMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Permissive => Self::Permissive,
            Mode::Strict => Self::Strict,
        }
    }
}

/// Somebody who can be asked or told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshProvider {
    /// Name.
    pub name: Str,
    /// Decides about requests.
    pub ext_authz: Option<ExternalAuth>,
    /// Counts requests.
    pub rate_limit: Option<ServiceRef>,
    /// Takes spans.
    pub tracing: Option<ServiceRef>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceRef {
    /// `<name>.<namespace>.svc.<domain>`, or `<namespace>/<host>`.
    pub service: Str,
    /// Port.
    pub port: u16,
}

/// What holds for waypoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WaypointSettings {
    /// `forward` if empty, or `off`.
    pub source_identity: Str,
    /// `BASE` if empty, `MERGE_SLASHES`, `DECODE_SLASHES`, `NONE`.
    pub path_normalization: Str,
    /// Identities of gateways whose `x-forwarded-for` is believed.
    pub gateway_identities: Vec<Str>,
    /// `errors` if empty, `off`, `all`.
    pub access_log: Str,
    /// Lines of the access log are JSON.
    pub access_log_json: bool,
    /// Provider that spans are sent to.
    pub tracing: Str,
    /// Spans of this share of requests.
    pub sampling: Option<Percent>,
    /// Bounds.
    pub limits: WaypointLimits,
}

/// Bounds of waypoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WaypointLimits {
    /// Tunnels at once.
    pub tunnels: Option<u32>,
    /// Streams at once.
    pub streams: Option<u32>,
    /// Bytes of buffers.
    pub buffer_bytes: Option<u64>,
    /// Bytes of header fields.
    pub header_bytes: Option<u32>,
    /// Time for a request's head.
    pub head_timeout: Option<Span>,
    /// Time between parts of a body.
    pub body_idle: Option<Span>,
    /// Time between bytes of a stream.
    pub stream_idle: Option<Span>,
    /// Time for what is running at the end.
    pub drain: Option<Span>,
}
