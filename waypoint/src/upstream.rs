//! Endpoints of backends: which one, whether again, and when no more.
