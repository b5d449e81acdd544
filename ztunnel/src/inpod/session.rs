//! One connection to the agent: hello, then strictly one request, one answer.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;

use tulle_linux::seqpacket::{Received, SeqPacket};
use tulle_runtime::backoff::Backoff;
use tulle_runtime::ready::BlockReady;

use super::PodUid;
use super::zds::{self, REQUEST_BYTES_MAX, Request, Violation};
use crate::fleet::{Fleet, StartError};

/// Why a connection to the agent ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The agent is gone.
    #[error("the agent closed the connection")]
    Closed,
    /// The socket failed.
    #[error("{0}")]
    Socket(#[from] io::Error),
    /// The agent broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
}

/// Why a request gets an error for an answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The protocol is broken: the connection ends after the answer.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// Only this request failed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Another generation serves the pod better than this one could now.
    #[error("there is no configuration or no certificate for it yet; the generation before serves it on")]
    NotPrepared,
    /// This proxy drains.
    #[error("this proxy is about to end and takes no pods")]
    Draining,
    /// The listeners cannot be copied.
    #[error("the listeners cannot be copied: {0}")]
    Copy(#[from] io::Error),
}

/// On which terms this proxy talks to agents, and what it has learned of the agent.
#[derive(Debug)]
pub(super) struct Terms {
    /// Ends with the first whole snapshot.
    ready: Option<BlockReady>,
    /// No pods are taken any more.
    lingering: bool,
    /// The agent knows what that is.
    pub(super) knows_lingering: bool,
}

impl Terms {
    /// Pods are taken.
    pub(super) fn serving(ready: BlockReady) -> Self {
        Self {
            ready: Some(ready),
            lingering: false,
            knows_lingering: false,
        }
    }

    /// Only the ends of pods are heard of.
    pub(super) fn lingering() -> Self {
        Self {
            ready: None,
            lingering: true,
            knows_lingering: true,
        }
    }
}

/// The state of one connection.
pub(super) struct Session<'a> {
    connection: SeqPacket,
    snapshot: Snapshot,
    terms: &'a mut Terms,
    backoff: &'a mut Backoff,
}

/// What the agent has mentioned so far.
enum Snapshot {
    Receiving(HashSet<PodUid>),
    Complete,
}

impl<'a> Session<'a> {
    pub(super) fn new(connection: SeqPacket, terms: &'a mut Terms, backoff: &'a mut Backoff) -> Self {
        Self {
            connection,
            snapshot: Snapshot::Receiving(HashSet::new()),
            terms,
            backoff,
        }
    }

    /// Serves until the connection ends, one way or the other.
    pub(super) async fn serve(
        &mut self,
        fleet: &mut Fleet,
        generation: &str,
    ) -> Result<Infallible, SessionError> {
        let hello = zds::hello(generation, self.terms.lingering);
        self.connection.send(&hello, &[]).await?;
        // One byte more than allowed, so that a longer request is seen to be one.
        let mut buffer = [0; REQUEST_BYTES_MAX + 1];
        loop {
            let received = self.receive(fleet, &mut buffer).await?;
            if received.len == 0 {
                return Err(SessionError::Closed);
            }
            let outcome = self.handle(fleet, &buffer, received).await;
            self.answer(fleet, outcome).await?;
        }
    }

    /// Waits for a request; proxies are looked after meanwhile.
    async fn receive(&self, fleet: &mut Fleet, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            tokio::select! {
                received = self.connection.recv(buffer) => return received,
                () = fleet.supervise() => {}
            }
        }
    }

    /// Does what one packet asks for; the uid is that of a pod whose listeners are asked back.
    async fn handle(
        &mut self,
        fleet: &mut Fleet,
        buffer: &[u8],
        received: Received,
    ) -> Result<Option<PodUid>, Failure> {
        if received.truncated || received.len > REQUEST_BYTES_MAX {
            return Err(Violation::Truncated.into());
        }
        match zds::parse(&buffer[..received.len], received.fds)? {
            Request::Add { .. } if self.terms.lingering => return Err(Failure::Draining),
            Request::Add {
                uid,
                name,
                netns,
                sockets,
                resolver,
                served,
            } => {
                self.mention(&uid);
                if served && !fleet.prepare_to_take(&uid, &name, &netns).await {
                    return Err(Failure::NotPrepared);
                }
                fleet.add(uid.clone(), name, netns, sockets, resolver).await?;
                if matches!(self.snapshot, Snapshot::Complete) {
                    fleet.prepare(&uid).await;
                }
            }
            Request::Keep(uid) => match &mut self.snapshot {
                Snapshot::Receiving(mentioned) => drop(mentioned.insert(uid)),
                Snapshot::Complete => return Err(Violation::KeepAfterSnapshot.into()),
            },
            Request::Del(uid) => {
                if let Snapshot::Receiving(mentioned) = &mut self.snapshot {
                    mentioned.remove(&uid);
                }
                fleet.remove(&uid);
            }
            Request::SnapshotSent { knows_lingering } => {
                self.terms.knows_lingering = knows_lingering;
                self.complete(fleet)?;
            }
            Request::HandOver(uid) => fleet.hand_over(&uid),
            Request::ReturnSockets(uid) => return Ok(Some(uid)),
        }
        Ok(None)
    }

    fn mention(&mut self, uid: &PodUid) {
        if let Snapshot::Receiving(mentioned) = &mut self.snapshot {
            mentioned.insert(uid.clone());
        }
    }

    fn complete(&mut self, fleet: &mut Fleet) -> Result<(), Violation> {
        match std::mem::replace(&mut self.snapshot, Snapshot::Complete) {
            Snapshot::Complete => Err(Violation::SecondSnapshot),
            Snapshot::Receiving(mentioned) => {
                fleet.retain(&mentioned);
                self.terms.ready.take();
                self.backoff.reset();
                tracing::info!(pods = mentioned.len(), "the agent's snapshot is complete");
                Ok(())
            }
        }
    }

    async fn answer(
        &self,
        fleet: &Fleet,
        outcome: Result<Option<PodUid>, Failure>,
    ) -> Result<(), SessionError> {
        let copies = match outcome {
            Ok(None) => Ok(Vec::new()),
            Ok(Some(uid)) => fleet.copies(&uid).map_err(Failure::Copy),
            Err(failure) => Err(failure),
        };
        match copies {
            Ok(copies) => {
                let kinds: Vec<_> = copies.iter().map(|(kind, _)| *kind).collect();
                let fds: Vec<_> = copies.iter().map(|(_, fd)| fd.as_fd()).collect();
                self.connection.send(&zds::ack(Ok(&kinds)), &fds).await?;
                Ok(())
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "a request of the agent failed");
                self.connection
                    .send(&zds::ack(Err(&failure.to_string())), &[])
                    .await?;
                match failure {
                    Failure::Violation(violation) => Err(violation.into()),
                    Failure::Start(_) | Failure::NotPrepared | Failure::Draining | Failure::Copy(_) => Ok(()),
                }
            }
        }
    }
}
