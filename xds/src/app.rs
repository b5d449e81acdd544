//! The control plane as a process: builds every part, reads top to bottom, ends when asked to.

use std::fmt::Display;
use std::future::Future;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tulle_identity::Clock;
use tulle_runtime::admin::{self, Listen, Listener};
use tulle_runtime::drain::{self, DrainWatcher};
use tulle_runtime::exit::Exit;
use tulle_runtime::metrics::Exposition;
use tulle_runtime::ready::{BlockReady, Ready};
use tulle_runtime::tasks::Scope;
use tulle_runtime::{build_info, limits, signal, telemetry};

use crate::ca::Authority;
use crate::ca::admin::Commands;
use crate::ca::deny::DenyList;
use crate::ca::issued::{self, Issued};
use crate::ca::join::JoinService;
use crate::ca::keeper::Keeper;
use crate::ca::outside;
use crate::ca::renew;
use crate::ca::root::RootError;
use crate::ca::roots::Roots;
use crate::ca::service::{CaService, HOLD_MAX_DEFAULT};
use crate::config::{Action, Config};
use crate::debug::look::Look;
use crate::debug::remote::{self, Readers};
use crate::debug::serving::{Role, Serving};
use crate::debug::{MeshSettings, Pages};
use crate::engine::{EngineHandle, Question};
use crate::history::View;
use crate::metrics::{EngineMetrics, Metrics, Observed};
use crate::serve::ads::{Ads, AdsOptions};
use crate::serve::authenticate::{Authenticator, POD_WAIT_MAX, Pods};
use crate::serve::listen;
use crate::snapshot::Snapshot;
use crate::source::folder::looks::Looks;
use crate::source::{self, FolderConfig};
use crate::state_dir::StateDir;
use crate::status::Clients;
use crate::token::join::JoinTokens;
use crate::token::jwt::JwtVerifier;
use crate::token::{self, TokenStore};

mod error;

pub use error::Error;

/// How long open streams may take to end once the process is asked to.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Tasks that a thread runs before it looks what came from the network, while there are any. A change wakes thousands of
/// streams: they are told first, within some milliseconds, and their answers are read after.
const TASKS_BEFORE_EVENTS: u32 = 512;
/// How long threads that read or write files may take to end after everything else has.
const THREADS_END_MAX: Duration = Duration::from_secs(1);
/// The root certificate beside the admin socket, for programs that may not read the state folder.
const ROOT_COPY: &str = "xds-root-cert.pem";

/// Runs the control plane, or its action, as the whole process.
#[must_use]
pub fn main(config: Config) -> Exit {
    match &config.action {
        Some(Action::Token { node, state_dir }) => print_token(state_dir, node),
        None => run_process(config),
    }
}

fn print_token(state_dir: &std::path::Path, node: &str) -> Exit {
    let token = match token::create(state_dir, node) {
        Ok(token) => token,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            return match error {
                token::TokenError::NodeId(_) => Exit::Usage,
                _ => Exit::Failed,
            };
        }
    };
    match writeln!(io::stdout(), "{token}") {
        Ok(()) => Exit::Ok,
        Err(_) => Exit::Failed,
    }
}

fn run_process(config: Config) -> Exit {
    let fail = |exit: Exit, error: &dyn Display| {
        let _ = writeln!(io::stderr(), "error: {error}");
        exit
    };
    let _log = match telemetry::init(config.log_format, &config.log_level) {
        Ok(log) => log,
        Err(error) => return fail(Exit::Usage, &error),
    };
    limits::apply();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .event_interval(TASKS_BEFORE_EVENTS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Failed, &error),
    };
    let ended = runtime.block_on(run(config, signal::shutdown()));
    // A thread may be in the middle of reading a large folder. Nothing on disk minds being cut short.
    runtime.shutdown_timeout(THREADS_END_MAX);
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            tracing::error!(%error, "the control plane does not run");
            error.exit()
        }
    }
}

/// Runs the control plane until `shutdown` completes.
///
/// # Errors
/// It cannot be started, or a part of it has ended without which it would say what is not so.
pub async fn run<R: Display>(config: Config, shutdown: impl Future<Output = R>) -> Result<(), Error> {
    tracing::info!(version = build_info::tag(), ?config, "control plane starts");
    // A replica owns nothing: it reads beside the process that does.
    let state = match config.replica {
        true => None,
        false => Some(StateDir::open(&config.state_dir)?),
    };
    if let Some(state) = &state {
        let signed = state.sign(&config.replica_name(host_name().as_deref()));
        signed.unwrap_or_else(
            |error| tracing::warn!(%error, "replicas will not know who owns the state folder"),
        );
    }
    let parts = Parts::new(&config)?;
    let starting = parts.ready.register("listeners");
    let (trigger, drain) = drain::new();

    serve_clients(&config, &parts, &drain).await?;
    serve_pages(&config, &parts, &drain).await?;
    keep_authority(&config, &parts, &drain)?;
    drop(starting);

    let ended = until_end(&parts.scope, shutdown).await;
    let remaining = trigger.drain_and_wait(DRAIN_MAX).await;
    if remaining > 0 {
        tracing::warn!(remaining, "connections did not end in time");
    }
    parts.scope.cancel();
    parts.scope.close();
    parts.scope.wait().await;
    ended
}

/// Waits until the process is asked to end, or has to: without its engine, say, it would serve an old configuration and
/// call itself ready.
async fn until_end<R: Display>(scope: &Scope, shutdown: impl Future<Output = R>) -> Result<(), Error> {
    tokio::select! {
        reason = shutdown => {
            tracing::info!(%reason, "control plane ends");
            Ok(())
        }
        part = scope.lost() => {
            tracing::error!(part, "a part of the control plane has ended, and so does the whole");
            Err(Error::Lost(part))
        }
    }
}

/// What every server reads.
struct Parts {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    questions: mpsc::Sender<Question>,
    clients: Clients,
    looks: Looks,
    metrics: Metrics,
    exposition: Exposition,
    authority: Arc<Authority>,
    keeper: Arc<Keeper>,
    ready: Ready,
    scope: Scope,
}

impl Parts {
    fn new(config: &Config) -> Result<Self, Error> {
        let (scope, ready) = (Scope::new(), Ready::new());
        let name = config.replica_name(host_name().as_deref());
        let clients = Clients::of(name, config.trust_domain.as_str().into());
        let metrics = Metrics::default();
        let keeper = Arc::new(keeper(config, clients.clone())?);
        keeper.read_outside();
        let looks = Looks::default();
        let waiting = (looks.clone(), ready.register("history"));
        let engine = source(
            config,
            &keeper,
            clients.clone(),
            metrics.engine.clone(),
            (&scope, waiting),
        );
        scope.spawn(
            "sync",
            synced(engine.snapshots.clone(), ready.register("configuration")),
        );
        let observed = Observed {
            snapshots: engine.snapshots.clone(),
            clients: clients.clone(),
            keeper: keeper.clone(),
        };
        Ok(Self {
            snapshots: engine.snapshots,
            questions: engine.questions,
            clients,
            looks,
            exposition: metrics.export(Some(observed)),
            metrics,
            authority: keeper.authority.clone(),
            keeper,
            ready,
            scope,
        })
    }
}

/// Discovery and certificates over TLS, to callers with a node token.
async fn serve_clients(config: &Config, parts: &Parts, drain: &DrainWatcher) -> Result<(), Error> {
    let names = config.server_names(host_name().as_deref());
    let acceptor = renew::acceptor(&parts.authority, &names)?;
    let authenticator = authenticator(config, parts);
    let readers = Readers {
        authenticator: authenticator.clone(),
        identities: Arc::new(config.debug_identity.iter().cloned().collect()),
    };
    let debug = remote::guarded(pages(config, parts).router(), readers);
    let options = ads_options(config);
    let waiting = options.waiting.clone();
    let ads = Ads::new(
        parts.snapshots.clone(),
        authenticator.clone(),
        parts.clients.clone(),
        parts.metrics.clone(),
        drain.clone(),
        options,
    );
    let join = JoinService::new(
        parts.authority.clone(),
        authenticator.clone(),
        parts.keeper.join_tokens.clone(),
        parts.metrics.clone(),
    )
    .on_replica(config.replica);
    let ca = CaService::new(
        parts.authority.clone(),
        authenticator,
        parts.snapshots.clone(),
        parts.metrics.clone(),
        HOLD_MAX_DEFAULT,
        parts.keeper.issued.clone(),
        waiting,
    )
    .on_replica(config.replica);
    for listener in bind(&config.listen).await? {
        let (ads, ca, join, debug) = (ads.clone(), ca.clone(), join.clone(), debug.clone());
        let served = listen::serve(listener, acceptor.clone(), ads, ca, join, debug, drain.clone());
        let guard = drain.guard();
        parts.scope.spawn_vital("grpc server", async move {
            served.await;
            drop(guard);
        });
    }
    let fresh = renew::keep_fresh(parts.authority.clone(), names, acceptor, drain.clone());
    parts.scope.spawn_vital("server certificate", fresh);
    Ok(())
}

/// Who is believed: certificates of our root, tokens of configured issuers, tokens of nodes; and nobody denied.
fn authenticator(config: &Config, parts: &Parts) -> Authenticator {
    let tokens = TokenStore::in_state_dir(&config.state_dir);
    let trust_domain = parts.authority.trust_domain().clone();
    let authenticator = Authenticator::new(tokens).of(trust_domain, parts.keeper.denied.clone());
    if config.jwt_issuer.is_empty() {
        return authenticator;
    }
    let verifier = JwtVerifier::new(config.jwt_issuer.clone(), config.jwt_audience.as_str().into());
    let trusted = config.trusted_node_account.iter().cloned().collect();
    authenticator.with_jwt(
        verifier,
        trusted,
        Pods::new(parts.snapshots.clone(), POD_WAIT_MAX),
    )
}

/// The authority with everything that keeps it up to date.
fn keeper(config: &Config, clients: Clients) -> Result<Keeper, Error> {
    let now = OffsetDateTime::now_utc();
    let roots = roots(config, now)?;
    let authority = Authority::with(
        roots.issuing()?,
        config.trust_domain.as_str().into(),
        config.max_certificate_ttl,
        Clock::system(),
    );
    let issued = match config.replica {
        true => Ok(Issued::follow(&config.state_dir)),
        false => Issued::open(&config.state_dir, now.unix_timestamp()),
    };
    let issued = issued.map_err(|source| Error::Read {
        path: config.state_dir.join(issued::FILE),
        source,
    })?;
    let denied = DenyList::open(&config.state_dir)?;
    let mut keeper = Keeper::new(roots, Arc::new(authority), denied, Arc::new(issued));
    keeper.waits = config.rotation_waits();
    keeper.outside.clone_from(&config.ca_dir);
    keeper.clients = clients;
    if config.replica {
        keeper.followed = Some(config.state_dir.clone());
    } else {
        keeper.join_tokens = Arc::new(JoinTokens::open(&config.state_dir, now.unix_timestamp())?);
    }
    Ok(keeper)
}

fn roots(config: &Config, now: OffsetDateTime) -> Result<Roots, RootError> {
    let (folder, trust_domain) = (config.state_dir.join("ca"), &config.trust_domain);
    if config.memory_ca {
        tracing::warn!("the root certificate is kept in memory: it ends with this process");
        return Roots::memory(trust_domain, now);
    }
    let outside = config.ca_dir.as_ref();
    if config.replica {
        let material = outside.map(|outside| outside::read(outside, now)).transpose()?;
        return Roots::follow(&folder, trust_domain, now, material.map(|read| read.material));
    }
    match outside {
        Some(outside) => {
            let material = outside::read(outside, now)?.material;
            Roots::outside(&folder, trust_domain, now, material)
        }
        None => Roots::open(&folder, trust_domain, now),
    }
}

/// Starts to read the configuration, and the engine that serves what it means.
fn source(
    config: &Config,
    keeper: &Keeper,
    clients: Clients,
    metrics: EngineMetrics,
    (scope, (looks, reading)): (&Scope, (Looks, BlockReady)),
) -> EngineHandle {
    let folder = FolderConfig {
        config_dir: config.config_dir.clone(),
        state_dir: Some(config.state_dir.clone()),
        follow: config.replica,
        looks,
        namespaces: config.scope.clone(),
        reading: Some(reading),
    };
    source::start(folder, config.mesh(), keeper.trust(), clients, metrics, scope)
}

fn ads_options(config: &Config) -> AdsOptions {
    AdsOptions {
        age_max: Some(config.max_stream_age).filter(|age| !age.is_zero()),
        batch_interval: config.batch_interval,
        cluster_id: config.cluster_id.as_str().into(),
        ..AdsOptions::default()
    }
}

async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for address in addresses.iter().copied().map(every_family) {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| Error::Listen { address, source })?;
        let bound = listener.local_addr().unwrap_or(address);
        tracing::info!(address = %bound, "serving discovery and certificates over TLS");
        listeners.push(listener);
    }
    Ok(listeners)
}

/// `[::]` stands for every family; on a machine without IPv6 that is `0.0.0.0`.
fn every_family(address: SocketAddr) -> SocketAddr {
    let unspecified = address.ip() == Ipv6Addr::UNSPECIFIED;
    if unspecified && std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_err() {
        return SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    }
    address
}

/// Ready as far as configuration goes once a cut is complete.
async fn synced(mut snapshots: watch::Receiver<Arc<Snapshot>>, reading: BlockReady) {
    if snapshots.wait_for(|snapshot| snapshot.synced()).await.is_ok() {
        tracing::info!("the first configuration is served");
        drop(reading);
    }
}

/// What operators can look at.
fn pages(config: &Config, parts: &Parts) -> Pages {
    Pages {
        snapshots: parts.snapshots.clone(),
        questions: parts.questions.clone(),
        clients: parts.clients.clone(),
        serving: Arc::new(Serving {
            name: config.replica_name(host_name().as_deref()),
            role: match config.replica {
                true => Role::Replica,
                false => Role::Owner,
            },
            state_dir: config.state_dir.clone(),
        }),
        engine: parts.metrics.engine.clone(),
        authority: parts.authority.clone(),
        keeper: parts.keeper.clone(),
        ready: parts.ready.clone(),
        history: Arc::new(View::of(&config.state_dir)),
        mesh: Arc::new(MeshSettings {
            cluster_id: config.cluster_id.clone(),
            root_namespace: config.root_namespace.clone(),
            cluster_domain: config.cluster_domain.clone(),
        }),
    }
}

/// Operators' pages on the unix socket; metrics with readiness, and readiness alone, on TCP.
async fn serve_pages(config: &Config, parts: &Parts, drain: &DrainWatcher) -> Result<(), Error> {
    let socket = Listener::bind(&Listen::Unix(config.run_dir.join("xds.sock"))).await?;
    let metrics = Listener::bind(&Listen::Tcp(every_family(config.metrics_address))).await?;
    let readiness = Listener::bind(&Listen::Tcp(every_family(config.readiness_address))).await?;
    let commands = Commands {
        keeper: parts.keeper.clone(),
        snapshots: parts.snapshots.clone(),
    };
    let look = Look {
        looks: parts.looks.clone(),
        snapshots: parts.snapshots.clone(),
    };
    let (exported, ready) = (admin::metrics(&parts.exposition), admin::readiness(&parts.ready));
    let mut router = pages(config, parts).router().merge(look.router());
    if !config.replica {
        router = router.merge(commands.router());
    }
    let router = router.merge(exported.clone()).merge(ready.clone());
    let exported = exported.merge(ready.clone());
    parts
        .scope
        .spawn("admin socket", admin::serve(socket, router, drain.clone()));
    parts
        .scope
        .spawn("metrics", admin::serve_open(metrics, exported, drain.clone()));
    parts
        .scope
        .spawn("readiness", admin::serve_open(readiness, ready, drain.clone()));
    Ok(())
}

/// Runs what keeps the authority up to date, and hands out its roots beside the admin socket.
fn keep_authority(config: &Config, parts: &Parts, drain: &DrainWatcher) -> Result<(), Error> {
    write_root_copy(config, &parts.authority)?;
    let rounds = parts.keeper.clone().run(parts.snapshots.clone(), drain.clone());
    parts.scope.spawn_vital("certificate authority", rounds);
    let (config, authority, drain) = (config.clone(), parts.authority.clone(), drain.clone());
    parts.scope.spawn("root copy", async move {
        let mut moved = authority.moved();
        loop {
            tokio::select! {
                Ok(()) = moved.changed() => {}
                _ = drain.signaled() => return,
            }
            if let Err(error) = write_root_copy(&config, &authority) {
                tracing::error!(%error, "the roots for other programs are out of date");
            }
        }
    });
    Ok(())
}

fn write_root_copy(config: &Config, authority: &Authority) -> Result<(), Error> {
    let path = config.run_dir.join(ROOT_COPY);
    let new = path.with_extension("new");
    let issuing = authority.issuing();
    let bundle = issuing.bundle.as_bytes();
    if std::fs::read(&path).is_ok_and(|written| written == bundle) {
        // It says that already; the disk may be full.
        return Ok(());
    }
    let written = std::fs::create_dir_all(&config.run_dir)
        .and_then(|()| std::fs::write(&new, bundle))
        .and_then(|()| std::fs::rename(&new, &path));
    written.map_err(|source| Error::Write { path, source })
}

/// The machine's own name, where it can stand in a certificate.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (!name.is_empty() && name.bytes().all(allowed)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use tulle_k8s::translate::MeshConfig;

    use super::*;

    #[tokio::test]
    async fn without_its_engine_the_process_fails_instead_of_serving_on() {
        let scope = Scope::new();
        let (batches, waiting) = mpsc::channel(1);
        let trust = watch::channel(None).1;
        let engine = crate::engine::Engine::spawn(
            MeshConfig::default(),
            waiting,
            trust,
            EngineMetrics::default(),
            &scope,
        );
        // Nobody tells it anything any more, and nobody reads it: it ends.
        drop((batches, engine));
        let ended = until_end(&scope, std::future::pending::<&str>()).await;
        let Err(error @ Error::Lost("engine")) = ended else {
            panic!("{ended:?}");
        };
        assert_eq!(error.exit(), Exit::Failed);
    }

    #[tokio::test]
    async fn a_process_that_is_asked_to_end_has_not_failed() {
        let scope = Scope::new();
        scope.spawn_vital("engine", std::future::pending::<()>());
        assert!(until_end(&scope, std::future::ready("signal")).await.is_ok());
    }
}
