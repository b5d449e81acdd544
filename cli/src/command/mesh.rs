//! The mesh that manifests are judged for: as the command line says, else as the control plane that runs here does.

use std::time::Duration;

use serde::Deserialize;
use tulle_k8s::translate::MeshConfig;
use tulle_xds::config::dns_name;

use crate::running::{Kind, RunDir};

/// Longest wait for the control plane to say which mesh it serves.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(2);

/// What the control plane is told with its own flags of these names.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MeshFlags {
    /// Trust domain of the mesh that manifests are for [default: as the control plane that runs here says, else
    /// cluster.local]
    #[arg(long, global = true, value_name = "NAME", value_parser = name, env = "TRUST_DOMAIN")]
    trust_domain: Option<String>,
    /// Namespace whose policies hold for that whole mesh [default: likewise, else istio-system]
    #[arg(long, global = true, value_name = "NAME", value_parser = name)]
    root_namespace: Option<String>,
    /// Domain of its service names [default: likewise, else cluster.local]
    #[arg(long, global = true, value_name = "NAME", value_parser = name)]
    cluster_domain: Option<String>,
    /// Name of the cluster in its resource names [default: likewise, else Kubernetes]
    #[arg(long, global = true, value_name = "NAME", value_parser = name, env = "CLUSTER_ID")]
    cluster_id: Option<String>,
}

/// A name; a variable that is set to nothing says nothing.
fn name(text: &str) -> Result<String, &'static str> {
    if text.is_empty() {
        Ok(String::new())
    } else {
        dns_name(text)
    }
}

/// The control plane's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    trust_domain: String,
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    cluster_id: String,
    root_namespace: String,
    cluster_domain: String,
}

impl MeshFlags {
    /// The mesh as it is served, before its own settings, which stand among the manifests.
    pub(crate) async fn config(&self, run_dir: &RunDir) -> MeshConfig {
        let all = [
            &self.trust_domain,
            &self.root_namespace,
            &self.cluster_domain,
            &self.cluster_id,
        ];
        let told = match all.iter().all(|flag| said(flag).is_some()) {
            true => None,
            false => ask(run_dir).await,
        };
        self.resolve(told)
    }

    fn resolve(&self, told: Option<Told>) -> MeshConfig {
        let mut mesh = MeshConfig::default();
        if let Some(Told {
            trust_domain,
            settings,
        }) = told
        {
            mesh.trust_domain = trust_domain.into();
            mesh.root_namespace = settings.root_namespace.into();
            mesh.domain = settings.cluster_domain.into();
            mesh.cluster_id = settings.cluster_id.into();
        }
        for (flag, setting) in [
            (&self.trust_domain, &mut mesh.trust_domain),
            (&self.root_namespace, &mut mesh.root_namespace),
            (&self.cluster_domain, &mut mesh.domain),
            (&self.cluster_id, &mut mesh.cluster_id),
        ] {
            if let Some(text) = said(flag) {
                *setting = text.into();
            }
        }
        let rooted = MeshConfig::rooted_in(&mesh.root_namespace);
        MeshConfig {
            enrolment: rooted.enrolment,
            ..mesh
        }
    }
}

fn said(flag: &Option<String>) -> Option<&str> {
    flag.as_deref().filter(|text| !text.is_empty())
}

/// Asks the control plane of this machine, if there is one.
async fn ask(run_dir: &RunDir) -> Option<Told> {
    let control = run_dir.of_kind(Kind::Control).ok()?.into_iter().next()?;
    let answer = tokio::time::timeout(ANSWER_WAIT_MAX, control.json("/debug/mesh")).await;
    let why = match answer {
        Ok(Ok(told)) => return Some(told),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "it does not answer".to_owned(),
    };
    eprintln!(
        "note: the control plane does not say which mesh it serves ({why}); judged by the flags --trust-domain, \
         --root-namespace, --cluster-domain and --cluster-id, or their defaults"
    );
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"{"trustDomain": "td", "settings": {"clusterId": "west", "rootNamespace": "root", "clusterDomain": "mesh.local"}}"#;

    fn told() -> Option<Told> {
        Some(serde_json::from_str(PAGE).unwrap())
    }

    fn names(mesh: &MeshConfig) -> [&str; 4] {
        [
            &mesh.trust_domain,
            &mesh.root_namespace,
            &mesh.domain,
            &mesh.cluster_id,
        ]
    }

    #[test]
    fn a_flag_goes_before_the_control_plane_and_that_before_the_default() {
        let flags = MeshFlags {
            root_namespace: Some("mine".to_owned()),
            cluster_id: Some(String::new()),
            ..MeshFlags::default()
        };
        assert_eq!(
            names(&flags.resolve(told())),
            ["td", "mine", "mesh.local", "west"]
        );
        let excluded = flags.resolve(told()).enrolment.excluded_namespaces;
        assert_eq!(excluded, ["kube-system".into(), "mine".into()].into());
        assert_eq!(
            names(&flags.resolve(None)),
            ["cluster.local", "mine", "cluster.local", "Kubernetes"]
        );
    }

    #[tokio::test]
    async fn the_control_plane_of_the_machine_is_asked_for_what_no_flag_says() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path().to_owned());
        let flags = MeshFlags {
            cluster_domain: Some("my.own".to_owned()),
            ..MeshFlags::default()
        };
        let alone = flags.config(&run_dir).await;
        assert_eq!(
            names(&alone),
            ["cluster.local", "istio-system", "my.own", "Kubernetes"]
        );
        let socket = tokio::net::UnixListener::bind(folder.path().join("xds.sock")).unwrap();
        let page = axum::Router::new().route("/debug/mesh", axum::routing::get(async || PAGE));
        let server = tulle_runtime::tasks::spawn("control plane", async {
            axum::serve(socket, page).await.unwrap();
        });
        let served = flags.config(&run_dir).await;
        assert_eq!(names(&served), ["td", "root", "my.own", "west"]);
        server.abort();
    }

    #[test]
    fn what_is_no_name_is_refused() {
        assert!(name("a/b").is_err());
        assert_eq!(name("").as_deref(), Ok(""));
    }
}
