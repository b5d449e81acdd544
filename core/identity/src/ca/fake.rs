//! A certificate authority in memory, for tests: issues for whoever is asked, fails when told to.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tulle_model::identity::Identity;

use super::{CaClient, CaError, CaFuture};
use crate::clock::Clock;
use crate::testing::TestCa;

/// A cheap handle on the authority; clones share what was asked and how to answer.
#[derive(Debug, Clone)]
pub struct FakeCa {
    ca: Arc<TestCa>,
    clock: Clock,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    lifetime: Duration,
    delay: Duration,
    failure: Option<CaError>,
    asked: Vec<Identity>,
    in_flight: usize,
    in_flight_max: usize,
}

impl FakeCa {
    /// Issues certificates of 24 hours, at once.
    #[must_use]
    pub fn new(ca: Arc<TestCa>, clock: Clock) -> Self {
        let script = Script {
            lifetime: Duration::from_secs(24 * 60 * 60),
            delay: Duration::ZERO,
            failure: None,
            asked: Vec::new(),
            in_flight: 0,
            in_flight_max: 0,
        };
        Self {
            ca,
            clock,
            script: Arc::new(Mutex::new(script)),
        }
    }

    /// How long the certificates from now on are valid.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.script.lock().lifetime = lifetime;
    }

    /// How long answers from now on take.
    pub fn set_delay(&self, delay: Duration) {
        self.script.lock().delay = delay;
    }

    /// Cannot be reached from now on, or can again.
    pub fn set_away(&self, away: bool) {
        self.set_failure(away.then_some((tonic::Code::Unavailable, "out for lunch")));
    }

    /// Refuses from now on, or issues again.
    pub fn set_refusing(&self, refusing: bool) {
        self.set_failure(refusing.then_some((tonic::Code::PermissionDenied, "not on this node")));
    }

    fn set_failure(&self, failure: Option<(tonic::Code, &str)>) {
        let error = |(code, message): (_, &str)| CaError::Status {
            code,
            message: message.to_owned(),
        };
        self.script.lock().failure = failure.map(error);
    }

    /// Whom certificates were asked for, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Identity> {
        self.script.lock().asked.clone()
    }

    /// The most requests that were under way at once.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        self.script.lock().in_flight_max
    }
}

impl CaClient for FakeCa {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> CaFuture<'a> {
        Box::pin(async move {
            let delay = {
                let mut script = self.script.lock();
                script.asked.push(identity.clone());
                script.in_flight += 1;
                script.in_flight_max = script.in_flight_max.max(script.in_flight);
                script.delay
            };
            tokio::time::sleep(delay).await;
            let mut script = self.script.lock();
            script.in_flight -= 1;
            match &script.failure {
                Some(error) => Err(error.clone()),
                None => Ok(self.ca.issue(identity, self.clock.now(), script.lifetime)),
            }
        })
    }
}
