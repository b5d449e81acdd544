//! What keeps a process healthy: configuration layers, drain, readiness, tasks, admin, metrics, logs.
