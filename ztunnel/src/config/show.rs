//! How values are written where the configuration is shown.

use std::fmt;
use std::time::Duration;

use serde::Serializer;

pub(super) fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(super) fn as_duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&tulle_runtime::config::format_duration(*value))
}
