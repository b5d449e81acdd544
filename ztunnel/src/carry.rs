//! The last phases of every connection, whatever its direction: *copy → record*.

use tokio::net::TcpStream;
use tulle_transport::copy::{self, CopyResult, Endpoint};
use tulle_transport::{CopyError, socket};

use crate::connections::{Judged, Tracked};
use crate::error::Error;
use crate::pod::Pod;
use crate::record::Story;
use crate::revocation;

/// Takes an open connection into the index.
#[must_use]
pub fn track(pod: &Pod, story: Story, judged: Option<Judged>) -> Tracked {
    let newest = || pod.node.mesh.snapshot();
    let tracked = pod.node.connections.open(story, judged, newest);
    // Whoever walks what is open may have walked between the proof and this entry.
    revocation::look_at(&pod.node, tracked.live());
    tracked
}

/// Moves bytes until both ends are done, a policy changes its mind, or the pod must end; then writes the line. The
/// application's socket resets when it is closed, since before its connection was known to come to anything.
pub async fn run(pod: &Pod, application: TcpStream, remote: Endpoint, tracked: Tracked) {
    let transfer = tracked.transfer();
    let outcome = tokio::select! {
        result = copy::bidirectional(Endpoint::resetting(application), remote, &transfer) => ended(result, tracked.denial()),
        // Dropping the copy resets both ends.
        () = pod.drain.urgent() => Err(Error::Drained),
    };
    tracked.end(outcome);
}

fn ended(result: CopyResult, denial: Option<Error>) -> Result<(), Error> {
    match (result.error, denial) {
        (None, _) => Ok(()),
        (Some(CopyError::Aborted(_)), Some(denial)) => Err(denial),
        (Some(error), _) => Err(error.into()),
    }
}

/// Ends a connection that is refused: the application sees a reset, not an orderly end.
pub fn reset(stream: TcpStream) {
    // A socket that cannot be set is closed by its other end already.
    let _ = socket::set_rst(&stream);
    drop(stream);
}
