//! Delta-ADS client session, its gRPC driver, and configuration from a local file.
