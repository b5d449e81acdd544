//! What holds for the mesh as a whole.

use tulle_model::enrolment::MeshFacts;
use tulle_model::filter::{ASKED_BODY_BYTES_MAX, Ask};
use tulle_model::route::{Backend, BackendTo};
use tulle_model::waypoint::{
    AccessLog, Limits, PathNormalization, Provider, ProviderKind, SourceIdentity, Target, Telemetry,
};
use tulle_model::{NamespacedHostname, Str};

use super::condition::{ACCEPTED, Condition};
use super::gateway;
use crate::api::Namespace;
use crate::api::mesh::{MeshProvider, MeshSettings, ServiceRef, WaypointSettings};
use crate::api::security::MtlsMode;

#[cfg(test)]
mod tests;

/// Label that puts something into a network.
pub(super) const NETWORK_LABEL: &str = "topology.istio.io/network";

/// Settings of the mesh that translation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// First part of every workload's uid.
    pub cluster_id: Str,
    /// Trust domain of every identity that is issued.
    pub trust_domain: Str,
    /// Other trust domains that mean ours in policies.
    pub trust_domain_aliases: Vec<Str>,
    /// Last part of the host names of services.
    pub domain: Str,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: Str,
    /// Network of what names none.
    pub network: Str,
    /// What holds where no peer authentication says otherwise; unset counts as permissive.
    pub mtls_mode: MtlsMode,
    /// What of the mesh decides enrolment.
    pub enrolment: MeshFacts,
    /// Who can be asked or told, by name.
    pub providers: Vec<Provider>,
    /// What holds for waypoints.
    pub waypoint: WaypointDefaults,
}

/// What holds for every waypoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaypointDefaults {
    /// Whether destinations are told who asked.
    pub source_identity: SourceIdentity,
    /// The form of a path before it is matched.
    pub path_normalization: PathNormalization,
    /// Bounds.
    pub limits: Limits,
    /// What is recorded.
    pub telemetry: Telemetry,
    /// Identities of gateways whose `x-forwarded-for` is believed.
    pub gateway_identities: Vec<Str>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self::rooted_in("istio-system")
    }
}

impl MeshConfig {
    /// The defaults of a mesh with this root namespace; what runs there is never captured.
    #[must_use]
    pub fn rooted_in(root_namespace: &str) -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: tulle_model::identity::DEFAULT_TRUST_DOMAIN.into(),
            trust_domain_aliases: Vec::new(),
            domain: "cluster.local".into(),
            root_namespace: root_namespace.into(),
            network: "".into(),
            mtls_mode: MtlsMode::Permissive,
            enrolment: MeshFacts::new(root_namespace),
            providers: Vec::new(),
            waypoint: WaypointDefaults::default(),
        }
    }

    /// Whether there is a provider of this name that decides about requests.
    #[must_use]
    pub fn decides(&self, name: &str) -> bool {
        self.provides(name, |kind| matches!(kind, ProviderKind::ExtAuthz(_)))
    }

    /// Whether there is a provider of this name that counts requests.
    #[must_use]
    pub fn counts(&self, name: &str) -> bool {
        self.provides(name, |kind| matches!(kind, ProviderKind::RateLimit(_)))
    }

    fn provides(&self, name: &str, is: impl Fn(&ProviderKind) -> bool) -> bool {
        self.providers
            .iter()
            .any(|provider| &*provider.name == name && is(&provider.kind))
    }

    /// The same with the settings of a file; what could not be used of them is said.
    #[must_use]
    pub fn with(&self, settings: &MeshSettings) -> (Self, Vec<Condition>) {
        let mut mesh = self.clone();
        let mut flaws = Vec::new();
        let fixed = [
            ("trustDomain", &settings.trust_domain, &self.trust_domain),
            ("rootNamespace", &settings.root_namespace, &self.root_namespace),
        ];
        for (name, wanted, own) in fixed {
            if wanted.as_ref().is_some_and(|wanted| wanted != own) {
                flaws.push(format!(
                    "{name} is {own} by the flag of the control plane; it cannot be changed here"
                ));
            }
        }
        mesh.trust_domain_aliases = settings.trust_domain_aliases.clone();
        if let Some(network) = &settings.network {
            mesh.network = network.clone();
        }
        if let Some(mode) = settings.mtls_mode {
            mesh.mtls_mode = mode.into();
        }
        if let Some(excluded) = &settings.excluded_namespaces {
            mesh.enrolment.excluded_namespaces = excluded.iter().cloned().collect();
            // What runs in the root namespace is never captured.
            mesh.enrolment
                .excluded_namespaces
                .insert(self.root_namespace.clone());
        }
        for provider in &settings.providers {
            match self.provider(provider) {
                Ok(provider) => mesh.providers.push(provider),
                Err(cause) => flaws.push(cause),
            }
        }
        mesh.waypoint = waypoint(&settings.waypoint, &mut flaws);
        let condition = if flaws.is_empty() {
            Condition::holds(ACCEPTED, "Accepted", "all of it is used")
        } else {
            Condition::fails(ACCEPTED, "PartiallyInvalid", flaws.join("; "))
        };
        (mesh, vec![condition])
    }

    fn provider(&self, of: &MeshProvider) -> Result<Provider, String> {
        let name = of.name.clone();
        let kind = match (&of.ext_authz, &of.rate_limit, &of.tracing) {
            (Some(auth), None, None) => {
                if auth.max_body_bytes > ASKED_BODY_BYTES_MAX {
                    return Err(format!(
                        "provider {name}: maxBodyBytes is {}, and at most {ASKED_BODY_BYTES_MAX} bytes of a body are sent \
                         along; policies that name it deny until this is corrected",
                        auth.max_body_bytes
                    ));
                }
                let reference = auth.backend_ref.as_ref();
                let reference = reference.ok_or_else(|| format!("provider {name}: backendRef is missing"))?;
                let namespace = if reference.namespace.is_empty() {
                    &self.root_namespace
                } else {
                    &reference.namespace
                };
                let host = format!("{}.{namespace}.svc.{}", reference.name, self.domain);
                let port = reference
                    .port
                    .ok_or_else(|| format!("provider {name}: a port is missing"))?;
                let backend = Backend {
                    to: BackendTo::Service {
                        service: NamespacedHostname::new(namespace.clone(), host),
                        port,
                    },
                    weight: 1,
                    filters: Vec::new(),
                };
                let ask = match &*auth.protocol {
                    "HTTP" => Ask::Http {
                        backend,
                        path: auth.path.clone(),
                    },
                    _ => Ask::Grpc(backend),
                };
                ProviderKind::ExtAuthz(Box::new(super::policy::traffic::with(auth, ask)))
            }
            (None, Some(service), None) => ProviderKind::RateLimit(self.target(service)?),
            (None, None, Some(service)) => ProviderKind::Tracing(self.target(service)?),
            _ => {
                return Err(format!(
                    "provider {name} needs one of extAuthz, rateLimit and tracing"
                ));
            }
        };
        Ok(Provider { name, kind })
    }

    /// `<namespace>/<host>`, or the full name of a Service.
    fn target(&self, of: &ServiceRef) -> Result<Target, String> {
        let (namespace, host) = match of.service.split_once('/') {
            Some((namespace, host)) => (namespace, host),
            None => (of.service.split('.').nth(1).unwrap_or_default(), &*of.service),
        };
        if namespace.is_empty() || host.is_empty() || of.port == 0 {
            let message =
                "a service is written <name>.<namespace>.svc.<domain> or <namespace>/<host>, with its port";
            return Err(message.to_owned());
        }
        Ok(Target {
            service: NamespacedHostname::new(namespace, host),
            port: of.port,
        })
    }

    /// The network of what names none, given the root namespace's object.
    #[must_use]
    pub fn default_network(&self, root: Option<&Namespace>) -> Str {
        let label = root.and_then(|root| root.metadata.labels.get(NETWORK_LABEL));
        label.unwrap_or(&self.network).clone()
    }
}

fn waypoint(of: &WaypointSettings, flaws: &mut Vec<String>) -> WaypointDefaults {
    let source_identity = gateway::source_identity(&of.source_identity).unwrap_or_else(|| {
        flaws.push("waypoint.sourceIdentity is forward or off".to_owned());
        SourceIdentity::default()
    });
    let path_normalization = gateway::path_normalization(&of.path_normalization).unwrap_or_else(|| {
        flaws.push("waypoint.pathNormalization is BASE, MERGE_SLASHES, DECODE_SLASHES or NONE".to_owned());
        PathNormalization::default()
    });
    let access_log = match &*of.access_log {
        "" | "errors" => AccessLog::Errors,
        "off" => AccessLog::Off,
        "all" => AccessLog::All,
        _ => {
            flaws.push("waypoint.accessLog is errors, off or all".to_owned());
            AccessLog::default()
        }
    };
    let span = |span: Option<crate::api::duration::Span>| span.map(|span| span.0);
    WaypointDefaults {
        source_identity,
        path_normalization,
        limits: Limits {
            tunnels: of.limits.tunnels,
            streams: of.limits.streams,
            buffer_bytes: of.limits.buffer_bytes,
            header_bytes: of.limits.header_bytes,
            head_timeout: span(of.limits.head_timeout),
            body_idle: span(of.limits.body_idle),
            stream_idle: span(of.limits.stream_idle),
            drain: span(of.limits.drain),
        },
        telemetry: Telemetry {
            access_log,
            json: of.access_log_json,
            tracing: (!of.tracing.is_empty()).then(|| of.tracing.clone()),
            sampling_ppm: of.sampling.map(|share| share.0),
        },
        gateway_identities: of.gateway_identities.clone(),
    }
}
