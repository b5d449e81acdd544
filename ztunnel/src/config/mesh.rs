//! `PROXY_CONFIG`, and the mesh file it may come from: the few fields of Istio's ProxyConfig that apply.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tulle_runtime::config::Collector;

use super::ProcessPorts;

const MESH_FILE: &str = "./etc/istio/config/mesh";

/// Fields of a ProxyConfig; others are Istio's and ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ProxyConfig {
    pub(super) discovery_address: Option<String>,
    pub(super) proxy_admin_port: Option<u16>,
    pub(super) stats_port: Option<u16>,
    pub(super) concurrency: Option<usize>,
    pub(super) proxy_metadata: BTreeMap<String, String>,
}

/// A mesh configuration, as far as it holds a ProxyConfig.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MeshFile {
    default_config: ProxyConfig,
}

impl ProxyConfig {
    /// The variable's fields win over the file's.
    pub(super) fn read(read: &mut Collector<'_>) -> Self {
        let variable = read
            .optional("PROXY_CONFIG", |text| serde_saphyr::from_str::<Self>(text))
            .unwrap_or_default();
        variable.over(Self::from_file(read))
    }

    fn from_file(read: &mut Collector<'_>) -> Self {
        let path = Path::new(MESH_FILE);
        let Ok(text) = std::fs::read_to_string(path) else {
            return Self::default();
        };
        match serde_saphyr::from_str::<MeshFile>(&text) {
            Ok(mesh) => mesh.default_config,
            Err(error) => {
                read.problem(MESH_FILE, "", error);
                Self::default()
            }
        }
    }

    fn over(self, file: Self) -> Self {
        let mut proxy_metadata = file.proxy_metadata;
        proxy_metadata.extend(self.proxy_metadata);
        Self {
            proxy_metadata,
            discovery_address: self.discovery_address.or(file.discovery_address),
            proxy_admin_port: self.proxy_admin_port.or(file.proxy_admin_port),
            stats_port: self.stats_port.or(file.stats_port),
            concurrency: self.concurrency.or(file.concurrency),
        }
    }

    pub(super) fn ports(&self) -> ProcessPorts {
        ProcessPorts {
            admin: self.proxy_admin_port.unwrap_or(15000),
            stats: self.stats_port.unwrap_or(15020),
            readiness: 15021,
        }
    }
}
