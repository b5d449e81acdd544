//! What the control plane is told of this node beyond its name: `ISTIO_META_*`, `ISTIO_METAJSON_*`, `proxyMetadata`.

use std::collections::BTreeMap;

use serde_json::Value;
use tulle_runtime::config::Collector;
use tulle_xds_client::node::{JSON_PREFIX, TEXT_PREFIX, metadata_from};

/// Variables win over `proxyMetadata`, whose names may have the variables' prefix.
pub(super) fn read(
    read: &mut Collector<'_>,
    proxy_metadata: &BTreeMap<String, String>,
) -> BTreeMap<String, Value> {
    let mut metadata: BTreeMap<_, _> = proxy_metadata.iter().map(of_proxy_config).collect();
    // A call for each, so that one bad value does not hide the good ones.
    for prefix in [TEXT_PREFIX, JSON_PREFIX] {
        for variable in read.with_prefix(prefix) {
            match metadata_from([variable.clone()]) {
                Ok(found) => metadata.extend(found),
                Err(_) => read.problem(&variable.0, &variable.1, "must be JSON"),
            }
        }
    }
    metadata
}

fn of_proxy_config((name, value): (&String, &String)) -> (String, Value) {
    let name = name.strip_prefix(TEXT_PREFIX).unwrap_or(name);
    (name.to_owned(), Value::String(value.clone()))
}
