//! The control plane: sources, engine, delta ADS, certificate authority, status.
