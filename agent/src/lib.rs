//! The node agent: enrols pods, owns their rules, routes and listening sockets, and serves the in-pod protocol.
