//! Commands about the authority, on the unix socket: only its owner can connect to it, also when every certificate
//! has ended. Who it was is said in the log, by what the kernel knows of the caller.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tulle_model::trust::Denied;
use tulle_runtime::admin::Caller;

use crate::ca::deny::{self, DenyError};
use crate::ca::keeper::{CaStatus, Keeper};
use crate::ca::roots::RotationError;
use crate::snapshot::Snapshot;
use crate::token::TokenError;

/// What the commands work on.
#[derive(Debug, Clone)]
pub struct Commands {
    /// Keeps the authority.
    pub keeper: Arc<Keeper>,
    /// What is served.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A command that was refused, in words for the one who gave it.
type Refused = (StatusCode, String);

/// What `POST /ca/rotate` takes.
#[derive(Debug, Default, Deserialize)]
struct Rotate {
    #[serde(default)]
    force: bool,
}

/// What `POST /ca/deny` takes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Deny {
    subject: String,
    #[serde(default)]
    reason: String,
    /// Seconds from now.
    #[serde(default)]
    seconds: Option<u64>,
    #[serde(default)]
    by: String,
}

/// What `POST /ca/allow` takes.
#[derive(Debug, Deserialize)]
struct Allow {
    subject: String,
}

/// What `POST /node/token` takes.
#[derive(Debug, Deserialize)]
struct TokenFor {
    node: String,
    seconds: u64,
}

/// What it answers.
#[derive(Serialize)]
struct Token {
    token: String,
}

/// One entry of `GET /ca/denied`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    subject: String,
    reason: String,
    until: Option<u64>,
    by: String,
}

impl Commands {
    /// Every command.
    pub fn router(self) -> Router {
        Router::new()
            .route("/ca", get(status))
            .route("/ca/rotate", post(rotate))
            .route("/ca/rollback", post(roll_back))
            .route("/ca/denied", get(denied))
            .route("/ca/deny", post(add))
            .route("/ca/allow", post(remove))
            .route("/node/token", post(token))
            .with_state(self)
    }

    fn status(&self) -> Json<CaStatus> {
        let snapshot = self.snapshots.borrow().clone();
        Json(self.keeper.status(&snapshot))
    }

    /// Off the threads that serve: keys are made and files are written.
    async fn change<E: std::fmt::Display + Send + 'static>(
        &self,
        work: impl FnOnce(&Keeper) -> Result<(), E> + Send + 'static,
        code: impl FnOnce(&E) -> StatusCode,
    ) -> Result<Json<CaStatus>, Refused> {
        let keeper = self.keeper.clone();
        let done = tokio::task::spawn_blocking(move || work(&keeper)).await;
        match done {
            Ok(Ok(())) => Ok(self.status()),
            Ok(Err(error)) => Err((code(&error), error.to_string())),
            Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        }
    }
}

async fn status(State(commands): State<Commands>) -> Json<CaStatus> {
    commands.status()
}

async fn rotate(
    State(commands): State<Commands>,
    caller: Caller,
    Json(rotate): Json<Rotate>,
) -> Result<Json<CaStatus>, Refused> {
    tracing::warn!(by = %caller, force = rotate.force, "a rotation of the root is asked for");
    let work = move |keeper: &Keeper| keeper.rotate(rotate.force);
    commands.change(work, rotation_code).await
}

async fn roll_back(State(commands): State<Commands>, caller: Caller) -> Result<Json<CaStatus>, Refused> {
    tracing::warn!(by = %caller, "a rollback of the root's rotation is asked for");
    commands.change(Keeper::roll_back, rotation_code).await
}

async fn denied(State(commands): State<Commands>) -> Json<Vec<Entry>> {
    let entries = commands.keeper.denied.entries();
    let entry = |denied: &Denied| Entry {
        subject: denied.subject.to_string(),
        reason: denied.reason.to_string(),
        until: denied.until,
        by: denied.by.to_string(),
    };
    Json(entries.iter().map(entry).collect())
}

async fn add(
    State(commands): State<Commands>,
    caller: Caller,
    Json(deny): Json<Deny>,
) -> Result<Json<CaStatus>, Refused> {
    let work = move |keeper: &Keeper| {
        let now = u64::try_from(keeper.authority.now().unix_timestamp()).unwrap_or_default();
        let entry = Denied {
            subject: deny::subject(&deny.subject)?,
            reason: deny.reason.into(),
            until: deny.seconds.map(|seconds| now.saturating_add(seconds)),
            by: caller.saying(&deny.by).into(),
        };
        tracing::warn!(subject = %entry.subject, by = %entry.by, until = entry.until, "denied");
        keeper.denied.deny(entry)
    };
    commands.change(work, deny_code).await
}

async fn remove(
    State(commands): State<Commands>,
    caller: Caller,
    Json(allow): Json<Allow>,
) -> Result<Json<CaStatus>, Refused> {
    let work = move |keeper: &Keeper| {
        let subject = deny::subject(&allow.subject)?;
        keeper.denied.allow(&subject)?;
        tracing::warn!(%subject, by = %caller, "no longer denied");
        Ok(())
    };
    commands.change(work, deny_code).await
}

async fn token(
    State(commands): State<Commands>,
    caller: Caller,
    Json(asked): Json<TokenFor>,
) -> Result<Json<Token>, Refused> {
    let keeper = commands.keeper.clone();
    let made = tokio::task::spawn_blocking(move || {
        let token = keeper.join_token(&asked.node, asked.seconds)?;
        tracing::warn!(
            node = asked.node,
            by = %caller,
            seconds = asked.seconds,
            "a join token was made"
        );
        Ok(token)
    });
    match made.await {
        Ok(Ok(token)) => Ok(Json(Token { token })),
        Ok(Err(error @ TokenError::NodeId(_))) => Err((StatusCode::BAD_REQUEST, error.to_string())),
        Ok(Err(error)) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

fn rotation_code(error: &RotationError) -> StatusCode {
    match error {
        RotationError::Misplaced(_) | RotationError::FromOutside => StatusCode::CONFLICT,
        RotationError::Root(_) | RotationError::NoKey(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn deny_code(error: &DenyError) -> StatusCode {
    match error {
        DenyError::Subject(_) => StatusCode::BAD_REQUEST,
        DenyError::Absent(_) => StatusCode::NOT_FOUND,
        DenyError::Full => StatusCode::CONFLICT,
        DenyError::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::ConnectInfo;
    use axum::http::Request;
    use tower::ServiceExt as _;
    use tulle_identity::Clock;

    use super::*;
    use crate::ca::deny::DenyList;
    use crate::ca::issued::Issued;
    use crate::ca::roots::Roots;
    use crate::ca::{Authority, TTL_MAX_DEFAULT};

    #[tokio::test]
    async fn an_entry_says_who_made_it_by_what_the_kernel_knows() {
        let roots = Roots::memory("cluster.local", time::OffsetDateTime::now_utc()).unwrap();
        let issuing = roots.issuing().unwrap();
        let authority = Authority::with(issuing, "cluster.local".into(), TTL_MAX_DEFAULT, Clock::system());
        let (denied, issued) = (DenyList::memory(), Arc::new(Issued::memory()));
        let keeper = Arc::new(Keeper::new(roots, Arc::new(authority), denied.clone(), issued));
        let (_publish, snapshots) = watch::channel(Arc::default());
        let router = Commands { keeper, snapshots }.router();
        for (said, by) in [("uid 1000", "uid 1000"), ("uid 0", "uid 1000 (uid 0)")] {
            let body = serde_json::json!({"subject": "node:n1", "by": said}).to_string();
            let request = Request::post("/ca/deny")
                .header("content-type", "application/json")
                .extension(ConnectInfo(Caller::of(Some(1000))))
                .body(Body::from(body))
                .unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(&*denied.entries()[0].by, by);
        }
    }
}
