//! What was tried for one connection, and what may still be. Nothing of the application was sent so far.

use std::time::Duration;

use tokio::time::Instant;
use tulle_model::WorkloadUid;
use tulle_transport::hbone::Retry;

use super::plan::Plan;
use super::{CAPTURE_PAUSE, CAPTURE_WAIT};
use crate::error::Error;

/// The attempts of one connection.
#[derive(Debug)]
pub(super) struct Attempts {
    /// Further ones.
    left: usize,
    deadline: Instant,
    /// A next hop that refuses its tunnel port is tried again until then.
    capture_until: Instant,
    /// Failed for this connection, or for another a moment ago; chosen last.
    avoid: Vec<WorkloadUid>,
    /// Failed for this connection.
    tried: Vec<WorkloadUid>,
    /// The next attempt may be at an endpoint that failed.
    repeat: bool,
    last: Option<Error>,
}

impl Attempts {
    /// With so many attempts after the first, all until `deadline`; `avoid` failed for others a moment ago.
    pub(super) fn new(retries: usize, avoid: Vec<WorkloadUid>, deadline: Instant) -> Self {
        Self {
            left: retries,
            deadline,
            capture_until: Instant::now() + CAPTURE_WAIT,
            avoid,
            tried: Vec::new(),
            repeat: false,
            last: None,
        }
    }

    /// When all of them must be over.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Endpoints to choose last.
    pub(super) fn avoid(&self) -> &[WorkloadUid] {
        &self.avoid
    }

    /// Lets an attempt begin.
    ///
    /// # Errors
    /// What failed last, if only an endpoint that has already failed is left.
    pub(super) fn begin(&mut self, plan: &Plan) -> Result<(), Error> {
        let repeated = plan
            .workload()
            .is_some_and(|workload| self.tried.contains(&workload.uid));
        match self.last.take() {
            Some(error) if repeated && !self.repeat => Err(error),
            _ => Ok(()),
        }
    }

    /// The pause before the next attempt.
    ///
    /// # Errors
    /// What failed, if there is none.
    pub(super) fn after(&mut self, plan: &Plan, error: Error) -> Result<Duration, Error> {
        let now = Instant::now();
        let Some(workload) = plan.workload() else {
            return Err(error);
        };
        if now >= self.deadline {
            return Err(error);
        }
        let capture_may_come = error.tunnel_port_refused() && now < self.capture_until;
        let retry = error.retry();
        if !capture_may_come {
            if retry == Retry::Never || self.left == 0 {
                return Err(error);
            }
            self.left -= 1;
        }
        if retry == Retry::OtherEndpoint {
            remember(&mut self.tried, &workload.uid);
            remember(&mut self.avoid, &workload.uid);
        }
        self.repeat = capture_may_come || retry == Retry::FreshConnection;
        tracing::debug!(%error, next_hop = %plan.next_hop(), "attempt failed, trying again");
        self.last = Some(error);
        Ok(if capture_may_come {
            CAPTURE_PAUSE
        } else {
            Duration::ZERO
        })
    }
}

fn remember(list: &mut Vec<WorkloadUid>, uid: &WorkloadUid) {
    if !list.contains(uid) {
        list.push(uid.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::CONNECT_BUDGET;
    use std::io;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use tulle_model::testing::workload;
    use tulle_model::upstream::Endpoint;
    use tulle_model::workload::TunnelProtocol;
    use tulle_transport::OpenError;
    use tulle_transport::hbone::Refusal;

    fn tunnel(name: &str) -> Plan {
        let address = SocketAddr::from(([10, 0, 0, 1], 15008));
        Plan::Tunnel(Endpoint {
            workload: Arc::new(workload(name).hbone().build()),
            service: None,
            protocol: TunnelProtocol::Hbone,
            dial: address,
            authority: address,
            expected: Vec::new(),
        })
    }

    fn refused_port() -> Error {
        let peer = SocketAddr::from(([10, 0, 0, 1], 15008));
        Error::Open(OpenError::connect(peer, io::ErrorKind::ConnectionRefused.into()))
    }

    fn with_retries(retries: usize) -> Attempts {
        Attempts::new(retries, Vec::new(), Instant::now() + CONNECT_BUDGET)
    }

    fn answered(status: u16) -> Error {
        Error::Open(OpenError::Refused(Refusal { status, header: None }))
    }

    #[tokio::test(start_paused = true)]
    async fn another_endpoint_is_tried_and_then_no_more() {
        let mut attempts = with_retries(1);
        assert!(attempts.after(&tunnel("a"), answered(503)).is_ok());
        assert!(attempts.begin(&tunnel("b")).is_ok());
        assert!(attempts.after(&tunnel("b"), answered(503)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_tried_after_the_deadline() {
        let mut attempts = with_retries(2);
        tokio::time::advance(CONNECT_BUDGET).await;
        assert!(attempts.after(&tunnel("a"), answered(503)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_endpoint_is_not_tried_twice() {
        let mut attempts = with_retries(2);
        assert!(attempts.after(&tunnel("a"), answered(503)).is_ok());
        assert_eq!(attempts.avoid().len(), 1);
        assert!(attempts.begin(&tunnel("a")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_by_policy_is_final() {
        let mut attempts = with_retries(2);
        assert!(attempts.after(&tunnel("a"), answered(401)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_is_replaced_at_the_same_endpoint() {
        let mut attempts = with_retries(2);
        assert!(
            attempts
                .after(&tunnel("a"), Error::Open(OpenError::GoingAway))
                .is_ok()
        );
        assert!(attempts.begin(&tunnel("a")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_tunnel_port_is_tried_until_capture_should_be_there() {
        let mut attempts = with_retries(0);
        let began = Instant::now();
        while let Ok(pause) = attempts.after(&tunnel("a"), refused_port()) {
            tokio::time::advance(pause).await;
            assert!(attempts.begin(&tunnel("a")).is_ok());
        }
        assert_eq!(began.elapsed(), CAPTURE_WAIT);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_passed_through_is_tried_once() {
        let to = SocketAddr::from(([192, 0, 2, 1], 80));
        let source = io::ErrorKind::ConnectionRefused.into();
        let mut attempts = with_retries(2);
        assert!(
            attempts
                .after(&Plan::Passthrough(to), Error::Connect { to, source })
                .is_err()
        );
    }
}
