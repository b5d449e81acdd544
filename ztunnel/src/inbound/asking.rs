//! A stream that asks to be let in: out of a peer's tunnel, or handed over by another workload of this process.

use tokio::sync::oneshot;
use tulle_transport::ReasonHeader;
use tulle_transport::hbone::{
    ConnectRequest, ConnectResponse, HboneStream, Incoming, MalformedConnect, Refusal, ResetCode,
    StreamError, local,
};

/// A stream that asks to be let in. Dropping it unanswered resets it.
pub(crate) enum Asking {
    /// Out of a tunnel.
    Tunnelled(Incoming),
    /// From a workload of this process.
    Neighbour(Handed),
}

/// What one workload of this process asks of another, and where the answer goes.
pub(crate) struct Handed {
    pub(crate) request: ConnectRequest,
    pub(crate) answer: oneshot::Sender<Result<(HboneStream, ConnectResponse), Refusal>>,
}

impl Asking {
    /// What is asked for, or why it is no tunnel request.
    pub(super) fn request(&self) -> Result<ConnectRequest, MalformedConnect> {
        match self {
            Self::Tunnelled(incoming) => incoming.request().cloned(),
            Self::Neighbour(handed) => Ok(handed.request.clone()),
        }
    }

    /// Waits until nobody waits for the answer any more.
    pub(super) async fn cancelled(&mut self) {
        match self {
            Self::Tunnelled(incoming) => incoming.cancelled().await,
            Self::Neighbour(handed) => handed.answer.closed().await,
        }
    }

    /// Answers 200. The application must be connected by now.
    pub(super) fn accept(self, response: ConnectResponse) -> Result<HboneStream, StreamError> {
        match self {
            Self::Tunnelled(incoming) => incoming.accept(&response),
            Self::Neighbour(handed) => {
                let (near, far) = local::pair();
                let sent = handed.answer.send(Ok((far, response)));
                sent.map(|()| near)
                    .map_err(|_| StreamError::Reset(ResetCode::Cancel))
            }
        }
    }

    /// Answers `status`, with the reason if there is one to tell.
    pub(super) fn reject(self, status: u16, reason: Option<ReasonHeader>) {
        match self {
            Self::Tunnelled(incoming) => incoming.reject(status, reason),
            Self::Neighbour(handed) => {
                let header = reason;
                // Who gave up meanwhile needs no answer.
                let _ = handed.answer.send(Err(Refusal { status, header }));
            }
        }
    }
}
