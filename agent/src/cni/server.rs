//! The socket at which plugins ask: one question per connection, answered by the [`Desk`].

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tulle_model::reason::Reason;
use tulle_runtime::tasks;

use super::desk::Desk;
use super::protocol::{Answer, Failure, MESSAGE_BYTES_MAX, Reply, Request};

/// Questions at a time; others wait to be accepted.
const QUESTIONS_MAX: usize = 256;
/// How long a plugin may take to ask, and to hear the answer.
const TALK_WAIT: Duration = Duration::from_secs(2);
/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("the CNI socket {} cannot be opened: {source}", path.display())]
pub struct SocketError {
    /// Where it should be.
    path: PathBuf,
    /// What the kernel said.
    source: io::Error,
}

/// Opens the socket; only root may connect. One that is left from an earlier run is replaced.
///
/// # Errors
/// When it cannot be made.
pub fn open(path: &Path) -> Result<UnixListener, SocketError> {
    let open = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Restricted before anyone can find it, and there at once.
        let draft = path.with_extension("draft");
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&draft, path)?;
        Ok(listener)
    };
    open().map_err(|source| SocketError {
        path: path.to_owned(),
        source,
    })
}

/// Answers for as long as it is polled.
pub async fn serve(listener: UnixListener, desk: Desk) {
    let desk = Arc::new(desk);
    let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = Arc::clone(&desk);
                tasks::spawn("cni-question", async move {
                    if let Err(error) = converse(stream, &desk).await {
                        tracing::warn!(%error, "a CNI plugin could not be answered");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a CNI plugin's connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, desk: &Desk) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(read.take(MESSAGE_BYTES_MAX));
    tokio::time::timeout(TALK_WAIT, reader.read_until(b'\n', &mut line)).await??;
    let answer = match Request::decode(&line) {
        Ok(request) => desk.answer(request.question).await,
        Err(error) => Answer::Refused(Failure::new(
            Reason::AgentUnreachable,
            format!("the agent does not understand the plugin: {error}"),
            "install the plugin anew with `tulle agent --install-cni`",
        )),
    };
    let reply = Reply::new(answer).encode();
    tokio::time::timeout(TALK_WAIT, write.write_all(&reply)).await?
}
