//! Generates the wire types from `api/*.proto`, without a protoc binary.

use std::error::Error;
use std::io::Write;

const SOURCES: [&str; 13] = [
    "workload.proto",
    "authorization.proto",
    "zds.proto",
    "ca.proto",
    "core.proto",
    "cri.proto",
    "discovery.proto",
    "rpc_status.proto",
    "waypoint.proto",
    "trust.proto",
    "ca_v1.proto",
    "ext_authz.proto",
    "rate_limit.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    writeln!(
        std::io::stdout(),
        "cargo:rerun-if-changed=api\ncargo:rerun-if-changed=build.rs"
    )?;
    let descriptors = protox::compile(SOURCES, ["api"])?;
    tonic_prost_build::configure()
        // Ordered maps: equal messages encode to equal bytes, which versions are hashed from.
        .btree_map(".")
        .include_file("wire.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
