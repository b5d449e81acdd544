//! How configuration arrives: connected or not, how old, how many, and what was rejected.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::session::Session;

/// For dumps and metrics.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Where configuration comes from now; `None` while there is no source.
    pub connected: bool,
    /// When the source last said anything.
    #[serde(serialize_with = "unix_seconds")]
    pub last_contact: Option<SystemTime>,
    /// The same moment on the clock that ages are measured with.
    #[serde(skip)]
    pub(crate) last_heard: Option<Instant>,
    /// Why there is no connection, in the words of the last failure.
    pub last_error: Option<String>,
    /// Per type.
    pub types: Vec<TypeStatus>,
}

/// How one type stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// The type's name on the wire.
    pub type_url: &'static str,
    /// Whether it was accepted once.
    pub acked: bool,
    /// Resources in force.
    pub resources: usize,
    /// Resources whose newest version is not in force.
    pub rejected: Vec<RejectedResource>,
}

/// A resource whose newest version is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedResource {
    /// Its name.
    pub name: String,
    /// The rejected version, as the server calls it.
    pub version: String,
    /// Place and cause.
    pub reason: String,
    /// Whether the last good version is in force; otherwise a stand-in refuses.
    pub last_good: bool,
}

impl Status {
    /// How long ago the source was last heard; zero while connected, `None` if it never was.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        if self.connected {
            Some(Duration::ZERO)
        } else {
            self.last_heard.map(|heard| heard.elapsed())
        }
    }

    /// Resources whose newest version is not in force, over all types.
    #[must_use]
    pub fn rejected(&self) -> usize {
        self.types.iter().map(|status| status.rejected.len()).sum()
    }

    pub(crate) fn heard(&mut self) {
        self.connected = true;
        self.last_error = None;
        self.last_contact = Some(SystemTime::now());
        self.last_heard = Some(Instant::now());
    }

    pub(crate) fn lost(&mut self, why: String) {
        if self.connected {
            self.last_contact = Some(SystemTime::now());
            self.last_heard = Some(Instant::now());
        }
        self.connected = false;
        self.last_error = Some(why);
    }

    pub(crate) fn describe(&mut self, session: &Session) {
        let rejected = |(name, rejection): (&str, &crate::session::Rejection)| RejectedResource {
            name: name.to_owned(),
            version: rejection.version.as_ref().to_owned(),
            reason: rejection.reason.clone(),
            last_good: rejection.last_good,
        };
        let describe = |summary: crate::session::Summary<'_>| TypeStatus {
            type_url: summary.kind.type_url(),
            acked: summary.acked,
            resources: summary.in_force,
            rejected: summary.rejected.into_iter().map(rejected).collect(),
        };
        self.types = session.summary().map(describe).collect();
    }
}

fn unix_seconds<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map(|since| since.as_secs()).serialize(serializer)
}
