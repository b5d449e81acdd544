//! Names: whether those of local workloads are answered, where, and what they mean.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;
use tulle_model::Str;
use tulle_runtime::config::{Collector, parse_bool};

/// Names of local workloads.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Where questions are listened for; `None` = they are not answered.
    pub listen: Option<DnsListen>,
    /// Domain of the cluster.
    pub domain: Str,
    /// Namespace whose service is meant when several have one host name and none is nearer.
    pub preferred_namespace: Option<Str>,
}

/// Loopback addresses of a workload to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsListen {
    /// On 127.0.0.1.
    pub v4: bool,
    /// On ::1, where the workload has it.
    pub v6: bool,
    /// The port.
    pub port: u16,
}

const DEFAULT_ADDRESS: DnsListen = DnsListen {
    v4: true,
    v6: true,
    port: crate::dns::sockets::PORT,
};
const CAPTURE: &str = "proxyMetadata.DNS_CAPTURE";
const ADDRESS: &str = "proxyMetadata.DNS_PROXY_ADDR";

/// Two of them are set by the `proxyMetadata` of a ProxyConfig.
pub(super) fn read(read: &mut Collector<'_>, proxy_metadata: &BTreeMap<String, String>) -> Dns {
    let address = match proxy_metadata.get("DNS_PROXY_ADDR") {
        None => DEFAULT_ADDRESS,
        Some(text) => parse_address(text).unwrap_or_else(|| {
            read.problem(
                ADDRESS,
                text,
                "must be a port of localhost, such as localhost:15053",
            );
            DEFAULT_ADDRESS
        }),
    };
    let capture = proxy_metadata.get("DNS_CAPTURE").is_none_or(|text| {
        parse_bool(text).unwrap_or_else(|error| {
            read.problem(CAPTURE, text, error);
            true
        })
    });
    Dns {
        listen: capture.then_some(address),
        domain: read
            .string("CLUSTER_DOMAIN", "cluster.local")
            .to_ascii_lowercase()
            .into(),
        preferred_namespace: read.optional_string("PREFERED_SERVICE_NAMESPACE").map(Into::into),
    }
}

/// A wildcard would reply from an address that was not asked, so only loopback will do.
fn parse_address(text: &str) -> Option<DnsListen> {
    if let Some(port) = text.strip_prefix("localhost:") {
        let port = port.parse().ok()?;
        return Some(DnsListen {
            port,
            ..DEFAULT_ADDRESS
        });
    }
    let address: SocketAddr = text.parse().ok()?;
    address.ip().is_loopback().then_some(DnsListen {
        v4: address.is_ipv4(),
        v6: address.is_ipv6(),
        port: address.port(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_listened_on() {
        assert_eq!(parse_address("localhost:15053"), Some(DEFAULT_ADDRESS));
        let v4 = parse_address("127.0.0.1:53").unwrap();
        assert_eq!((v4.v4, v4.v6, v4.port), (true, false, 53));
        let v6 = parse_address("[::1]:15053").unwrap();
        assert_eq!((v6.v4, v6.v6), (false, true));
        for bad in [
            "0.0.0.0:15053",
            "[::]:15053",
            "localhost",
            "localhost:x",
            "15053",
            "",
        ] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
