//! Certificates of workloads: requests, rotation, verification, TLS configurations.
