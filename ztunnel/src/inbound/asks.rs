//! What a tunnelled stream asks for, judged against what is known here. Pure: real streams and explained ones are judged
//! by the same lines.

use std::net::{IpAddr, SocketAddr};

use tulle_model::{Authority, Identity, Reason, Snapshot, Workload};

use crate::error::Error;

/// Who asks, and whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asks<'a> {
    /// The local workload.
    pub(crate) workload: &'a Workload,
    /// The address of it that was connected to.
    pub(crate) local: SocketAddr,
    /// Who the peer has proven to be; nobody without TLS.
    pub(crate) peer: Option<&'a Identity>,
    /// The peer's address.
    pub(crate) peer_ip: IpAddr,
    /// Whom it says it speaks for.
    pub(crate) original_source: Option<&'a Identity>,
}

impl Asks<'_> {
    /// Where the stream leads, if it is for this workload.
    ///
    /// # Errors
    /// `wrong_destination`, `name_not_resolved` or `unknown_port`.
    pub(crate) fn target(&self, snapshot: &Snapshot, authority: &Authority) -> Result<SocketAddr, Error> {
        let target = snapshot.inbound_target(self.workload, self.local, authority);
        target.map_err(|reason| {
            let Workload { namespace, name, .. } = self.workload;
            let detail = format!("{authority} is not for {namespace}/{name}: {}", reason.token());
            Error::BadRequest { detail, reason }
        })
    }

    /// Nobody speaks for others but a waypoint in front of this workload.
    ///
    /// # Errors
    /// `source_not_trusted`.
    pub(crate) fn refuse_untrusted_source(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let is_waypoint = |peer| snapshot.is_waypoint_of(self.workload, peer, self.peer_ip);
        if self.original_source.is_none() || self.peer.is_some_and(is_waypoint) {
            return Ok(());
        }
        let peer = self.peer.map_or_else(|| "nobody".to_owned(), Identity::to_string);
        Err(Error::BadRequest {
            detail: format!("{peer} may not speak for others here"),
            reason: Reason::SourceNotTrusted,
        })
    }
}
