//! Tests of the whole mesh in real network namespaces, and the helpers they share.
