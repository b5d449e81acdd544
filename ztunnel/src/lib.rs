//! The node proxy: captures the traffic of a node's pods and carries it in HBONE tunnels.
