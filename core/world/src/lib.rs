//! A world of nodes and pods in network namespaces of one machine, for the local mesh and for tests.
