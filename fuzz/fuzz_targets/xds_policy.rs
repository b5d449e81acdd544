//! Policies of waypoints from the control plane.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tulle_proto::fuzz::xds_policy(data));
