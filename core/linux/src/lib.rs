//! Safe doors to Linux that several programs need: network namespaces, sequenced-packet sockets that carry descriptors.
