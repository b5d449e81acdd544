//! A look at the configuration folder on demand: who changed a file and asks knows, once there is an answer, that the
//! change has been judged and, if it was taken, is in force.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::snapshot::Snapshot;
use crate::source::folder::looks::Looks;

/// How long an answer may take; a folder that takes longer is broken, or another process has yet to decide.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// Asks the source, and waits for the cut.
#[derive(Debug, Clone)]
pub struct Look {
    /// Takes the wish.
    pub looks: Looks,
    /// What is served.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// What `POST /config/look` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Seen {
    /// The cut that holds everything that was written before.
    cut: u64,
}

impl Look {
    /// The one command.
    pub fn router(self) -> Router {
        Router::new().route("/config/look", post(look)).with_state(self)
    }

    async fn seen(mut self) -> Result<Seen, (StatusCode, &'static str)> {
        let number = self.looks.ask();
        let seen = self
            .snapshots
            .wait_for(|snapshot| snapshot.objects().look >= number);
        match timeout(LOOK_MAX, seen).await {
            Ok(Ok(snapshot)) => Ok(Seen {
                cut: snapshot.sequence(),
            }),
            Ok(Err(_)) => Err((StatusCode::SERVICE_UNAVAILABLE, "the control plane is ending")),
            Err(_) => Err((
                StatusCode::GATEWAY_TIMEOUT,
                "the configuration folder was not read in time, or the process that owns the state folder has not spoken on it",
            )),
        }
    }
}

async fn look(State(look): State<Look>) -> Result<Json<Seen>, (StatusCode, &'static str)> {
    look.seen().await.map(Json)
}
