//! Sockets, byte copying and HBONE tunnels.
