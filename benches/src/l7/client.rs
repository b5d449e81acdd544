//! The client: as many requests as connections carry, or one at each tick of a clock.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tulle_identity::testing::TlsClient;
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::hbone::{ClientConnection, ConnectRequest, Settings, client};

use super::{ANSWER, Device, KIND, Reached, SERVER, Site, Version, waypoint};
use crate::pace;

type Body = Empty<Bytes>;

/// A connection of a client.
enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Sender {
    async fn over<S>(stream: S, version: Version) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        match version {
            Version::One => {
                let (sender, connection) = http1::handshake(io).await.expect("the proxy takes connections");
                drop(tasks::spawn(
                    "bench-client",
                    async move { drop(connection.await) },
                ));
                Self::One(sender)
            }
            Version::Two => {
                let shaken = http2::handshake(TokioExecutor::new(), io).await;
                let (sender, connection) = shaken.expect("the proxy takes connections");
                drop(tasks::spawn(
                    "bench-client",
                    async move { drop(connection.await) },
                ));
                Self::Two(sender)
            }
        }
    }

    /// One request and all of its answer.
    async fn ask(&mut self) {
        let uri = match self {
            Self::One(_) => "/items/7",
            Self::Two(_) => "http://web.shop/items/7",
        };
        let mut request = Request::get(uri).header(KIND.0, KIND.1);
        if matches!(self, Self::One(_)) {
            request = request.header("host", "web.shop");
        }
        let request = request.body(Empty::new()).expect("a request");
        let answered = match self {
            Self::One(sender) => {
                sender.ready().await.expect("the connection lives");
                sender.send_request(request).await
            }
            Self::Two(sender) => sender.send_request(request).await,
        };
        let response = answered.expect("an answer");
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.expect("a whole answer");
        assert_eq!(body.to_bytes().len(), ANSWER);
    }
}

/// What a turn brought.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Requests a second.
    pub rate: f64,
    /// CPU seconds of the proxy for 1,000 requests.
    pub cpu: f64,
    /// Median time of a request, microseconds.
    pub p50: f64,
    /// Time that 99 of 100 requests take at most, microseconds.
    pub p99: f64,
}

/// Connections to one proxy.
pub struct Load {
    senders: Vec<Sender>,
    _tunnel: Option<ClientConnection>,
}

impl std::fmt::Debug for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Load")
            .field("connections", &self.senders.len())
            .finish()
    }
}

impl Load {
    /// Opens so many connections to a proxy.
    pub fn open(
        runtime: &Runtime,
        site: &Site,
        device: &Device,
        version: Version,
        connections: usize,
    ) -> Self {
        runtime.block_on(async {
            match device.reached {
                Reached::Tls(address) => {
                    let tls = site.ca.tls_client(&[version.alpn()]);
                    let mut senders = Vec::new();
                    for _ in 0..connections {
                        senders.push(Sender::over(by_tls(&tls, address).await, version).await);
                    }
                    Self {
                        senders,
                        _tunnel: None,
                    }
                }
                Reached::Tunnel(address) => {
                    let own = site
                        .ca
                        .certificate(&Identity::new("cluster.local", "shop", "client"));
                    let tls = own.client_config(&[waypoint::identity()]);
                    let socket = TcpStream::connect(address).await.expect("the waypoint listens");
                    let _ = socket.set_nodelay(true);
                    let tunnel = client::connect_over(socket, address, tls, &Settings::client()).await;
                    let tunnel = tunnel.expect("the waypoint takes tunnels");
                    let mut senders = Vec::new();
                    for _ in 0..connections {
                        let request = ConnectRequest::new(waypoint::VIP);
                        let (stream, _) = tunnel.open(&request).await.expect("the front is there");
                        senders.push(Sender::over(stream, version).await);
                    }
                    Self {
                        senders,
                        _tunnel: Some(tunnel),
                    }
                }
            }
        })
    }

    /// Each connection asks again as soon as it is answered, for this time.
    pub fn full(&mut self, runtime: &Runtime, device: &Device, length: Duration) -> Figures {
        self.run(runtime, device, length, None)
    }

    /// So many requests a second in all, whatever becomes of those before. Times count from when a request was due.
    pub fn at_rate(&mut self, runtime: &Runtime, device: &Device, length: Duration, rate: u32) -> Figures {
        let every = Duration::from_secs(1) * u32::try_from(self.senders.len()).unwrap_or(1) / rate;
        self.run(runtime, device, length, Some(every))
    }

    fn run(
        &mut self,
        runtime: &Runtime,
        device: &Device,
        length: Duration,
        every: Option<Duration>,
    ) -> Figures {
        let (before, started) = (device.cpu(), Instant::now());
        let until = started + length;
        let senders = std::mem::take(&mut self.senders);
        let mut clocks = every
            .map(|every| pace::ticks(senders.len(), started, every))
            .unwrap_or_default()
            .into_iter();
        let (senders, mut times) = runtime.block_on(async {
            let running: Vec<_> = senders
                .into_iter()
                .map(|sender| tasks::spawn("bench-client-load", asks(sender, until, clocks.next())))
                .collect();
            let (mut senders, mut times) = (Vec::new(), Vec::new());
            for one in running {
                let (sender, some) = one.await.expect("no client panics");
                senders.push(sender);
                times.extend(some);
            }
            (senders, times)
        });
        self.senders = senders;
        let (took, cpu) = (
            started.elapsed().as_secs_f64(),
            device.cpu().saturating_sub(before),
        );
        times.sort_unstable();
        let at = |share: usize| f64::from(times[(times.len() * share / 100).min(times.len() - 1)]);
        let requests = times.len() as f64;
        Figures {
            rate: requests / took,
            cpu: cpu.as_secs_f64() * 1_000.0 / requests,
            p50: at(50),
            p99: at(99),
        }
    }
}

/// Times in microseconds.
async fn asks(
    mut sender: Sender,
    until: Instant,
    mut clock: Option<mpsc::Receiver<Instant>>,
) -> (Sender, Vec<u32>) {
    let mut times = Vec::new();
    while Instant::now() < until {
        let due = match &mut clock {
            Some(clock) => clock.recv().await.expect("the clock outlives who it ticks for"),
            None => Instant::now(),
        };
        sender.ask().await;
        times.push(micros(due.elapsed()));
    }
    (sender, times)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

async fn by_tls(
    tls: &TlsClient,
    address: std::net::SocketAddr,
) -> impl AsyncRead + AsyncWrite + Unpin + Send + use<> {
    let socket = TcpStream::connect(address).await.expect("the proxy listens");
    let _ = socket.set_nodelay(true);
    let stream = tls.connect(SERVER, socket).await;
    stream.expect("the proxy is believed, and believes us")
}
