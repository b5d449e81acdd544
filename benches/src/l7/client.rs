//! The client: as many requests as connections carry, or one at each tick of a clock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tulle_identity::WorkloadCertificate;
use tulle_identity::testing::TlsClient;
use tulle_model::Identity;
use tulle_runtime::tasks;
use tulle_transport::hbone::{ClientConnection, ConnectRequest, Settings, client};

use super::{ANSWER, BULK, Device, GRPC, KIND, Reached, SERVER, STREAM, Site, UNARY, Version, waypoint};
use crate::pace;

/// Streams of one tunnel, at most: as many as a waypoint takes at once.
pub(super) const STREAMS_PER_TUNNEL: usize = 200;
/// A message of a client: no compression, and 100 bytes.
static MESSAGE: [u8; 105] = {
    let mut message = [b'q'; 105];
    message[0] = 0;
    message[1] = 0;
    message[2] = 0;
    message[3] = 0;
    message[4] = 100;
    message
};

type Frames = ReceiverStream<Result<Frame<Bytes>, std::convert::Infallible>>;
type Body = Either<Full<Bytes>, StreamBody<Frames>>;

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// An answer of 1 KiB to a GET.
    Page,
    /// One call of gRPC: a message of 100 bytes for one of 1 KiB.
    Unary,
    /// A message of 100 bytes there and back, on a stream that stays.
    Message,
}

/// A connection, and the stream of messages that it carries.
struct Sender {
    connection: Connection,
    messages: Option<Messages>,
}

struct Messages {
    there: mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>,
    back: Incoming,
}

/// A connection of a client.
enum Connection {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Connection {
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

    async fn send(&mut self, mut request: Request<Body>) -> Incoming {
        request
            .headers_mut()
            .insert(KIND.0, KIND.1.parse().expect("a value"));
        let answered = match self {
            Self::One(sender) => {
                let host = "web.shop".parse().expect("a value");
                request.headers_mut().insert("host", host);
                sender.ready().await.expect("the connection lives");
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                let uri = format!("http://web.shop{}", request.uri());
                *request.uri_mut() = uri.parse().expect("an address");
                sender.send_request(request).await
            }
        };
        let response = answered.expect("an answer");
        assert_eq!(response.status(), 200);
        response.into_body()
    }
}

fn call(method: &str, body: Body) -> Request<Body> {
    let request = Request::post(method)
        .header("content-type", GRPC)
        .header("te", "trailers");
    request.body(body).expect("a request")
}

fn is_well(trailers: &HeaderMap) -> bool {
    trailers.get("grpc-status").is_some_and(|status| status == "0")
}

impl Sender {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            messages: None,
        }
    }

    /// One request and all of its answer.
    async fn ask(&mut self, what: Ask) {
        match what {
            Ask::Page => {
                let request = Request::get("/items/7").body(Either::Left(Full::default()));
                let body = self.connection.send(request.expect("a request")).await;
                let body = body.collect().await.expect("a whole answer");
                assert_eq!(body.to_bytes().len(), ANSWER);
            }
            Ask::Unary => {
                let message = Full::new(Bytes::from_static(&MESSAGE));
                let body = self.connection.send(call(UNARY, Either::Left(message))).await;
                let body = body.collect().await.expect("a whole answer");
                assert!(body.trailers().is_some_and(is_well), "a status");
                assert_eq!(body.to_bytes().len(), ANSWER + 5);
            }
            Ask::Message => self.message().await,
        }
    }

    /// Messages of a turn have a stream of their own: the route gives a request ten seconds.
    fn begin(&mut self) {
        self.messages = None;
    }

    async fn message(&mut self) {
        let messages = match &mut self.messages {
            Some(messages) => messages,
            none => {
                let (there, frames) = mpsc::channel(1);
                let body = Either::Right(StreamBody::new(ReceiverStream::new(frames)));
                let back = self.connection.send(call(STREAM, body)).await;
                none.insert(Messages { there, back })
            }
        };
        let frame = Frame::data(Bytes::from_static(&MESSAGE));
        let sent = messages.there.send(Ok(frame)).await;
        sent.unwrap_or_else(|_| panic!("the stream lives"));
        let mut missing = MESSAGE.len();
        while missing > 0 {
            let frame = messages.back.frame().await.expect("the stream lives");
            missing -= frame.expect("a frame").data_ref().map_or(0, Bytes::len);
        }
    }

    /// A body of so many bytes, which are counted and thrown away.
    async fn bulk(&mut self, bytes: u64) {
        let request = Request::get(format!("{BULK}{bytes}")).body(Either::Left(Full::default()));
        let mut body = self.connection.send(request.expect("a request")).await;
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.expect("a whole answer").data_ref().map_or(0, Bytes::len) as u64;
        }
        assert_eq!(read, bytes);
    }
}

/// What a turn brought.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Requests in all.
    pub requests: u64,
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
    what: Ask,
    _tunnels: Vec<ClientConnection>,
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
        Self::open_by(runtime, site, device, version, (connections, 1))
    }

    /// The same by several callers, each with an identity and tunnels of its own where the proxy is a waypoint:
    /// connections and callers.
    pub fn open_by(
        runtime: &Runtime,
        site: &Site,
        device: &Device,
        version: Version,
        shape: (usize, usize),
    ) -> Self {
        Self::open_with(runtime, site, device, version, shape, &Settings::client())
    }

    /// The same, with tunnels that are set like this.
    pub fn open_with(
        runtime: &Runtime,
        site: &Site,
        device: &Device,
        version: Version,
        (connections, callers): (usize, usize),
        settings: &Settings,
    ) -> Self {
        runtime.block_on(async {
            match device.reached {
                Reached::Tls(address) => {
                    let tls = site.ca.tls_client(&[version.alpn()]);
                    let mut senders = Vec::new();
                    for _ in 0..connections {
                        let connection = Connection::over(by_tls(&tls, address).await, version).await;
                        senders.push(Sender::new(connection));
                    }
                    Self {
                        senders,
                        what: Ask::Page,
                        _tunnels: Vec::new(),
                    }
                }
                Reached::Tunnel(address) => {
                    let (mut senders, mut tunnels) = (Vec::new(), Vec::new());
                    for caller in 0..callers {
                        let until = connections * (caller + 1) / callers;
                        let who = format!("client-{caller}");
                        let own = site.ca.certificate(&Identity::new("cluster.local", "shop", who));
                        while senders.len() < until {
                            let tunnel = tunnel_to(address, &own, settings).await;
                            for _ in 0..STREAMS_PER_TUNNEL.min(until - senders.len()) {
                                let request = ConnectRequest::new(waypoint::VIP);
                                let (stream, _) = tunnel.open(&request).await.expect("the front is there");
                                senders.push(Sender::new(Connection::over(stream, version).await));
                            }
                            tunnels.push(tunnel);
                        }
                    }
                    Self {
                        senders,
                        what: Ask::Page,
                        _tunnels: tunnels,
                    }
                }
            }
        })
    }

    /// The same connections, asking for something else.
    #[must_use]
    pub fn asking(self, what: Ask) -> Self {
        Self { what, ..self }
    }

    /// So many requests on the first connection, one after the other; how long they took.
    pub fn requests(&mut self, runtime: &Runtime, count: u64) -> Duration {
        let (what, sender) = (self.what, &mut self.senders[0]);
        sender.begin();
        let started = Instant::now();
        runtime.block_on(async {
            for _ in 0..count {
                sender.ask(what).await;
            }
        });
        started.elapsed()
    }

    /// A body of so many bytes on the first connection; how long it took.
    pub fn bulk(&mut self, runtime: &Runtime, bytes: u64) -> Duration {
        let started = Instant::now();
        runtime.block_on(self.senders[0].bulk(bytes));
        started.elapsed()
    }

    /// A body of so many bytes on the first connection, and on the second, until it has come, one request after the
    /// other: how long the body took, and the times of the requests in microseconds.
    pub fn beside(&mut self, runtime: &Runtime, bytes: u64) -> (Duration, Vec<u32>) {
        let small = self.senders.remove(1);
        let mut large = self.senders.remove(0);
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        let (took, large, small, times) = runtime.block_on(async {
            let asking = tasks::spawn("bench-client-load", asks_until(small, over));
            let loading = tasks::spawn("bench-client-load", async move {
                let started = Instant::now();
                large.bulk(bytes).await;
                ended.store(true, Ordering::Relaxed);
                (started.elapsed(), large)
            });
            let (took, large) = loading.await.expect("no client panics");
            let (small, times) = asking.await.expect("no client panics");
            (took, large, small, times)
        });
        self.senders.insert(0, small);
        self.senders.insert(0, large);
        (took, times)
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
        let (what, senders) = (self.what, std::mem::take(&mut self.senders));
        let mut clocks = every
            .map(|every| pace::ticks(senders.len(), started, every))
            .unwrap_or_default()
            .into_iter();
        let (senders, mut times) = runtime.block_on(async {
            let running: Vec<_> = senders
                .into_iter()
                .map(|sender| tasks::spawn("bench-client-load", asks(sender, what, until, clocks.next())))
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
            requests: times.len() as u64,
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
    what: Ask,
    until: Instant,
    mut clock: Option<mpsc::Receiver<Instant>>,
) -> (Sender, Vec<u32>) {
    let mut times = Vec::new();
    sender.begin();
    while Instant::now() < until {
        let due = match &mut clock {
            Some(clock) => clock.recv().await.expect("the clock outlives who it ticks for"),
            None => Instant::now(),
        };
        sender.ask(what).await;
        times.push(micros(due.elapsed()));
    }
    (sender, times)
}

async fn asks_until(mut sender: Sender, over: Arc<AtomicBool>) -> (Sender, Vec<u32>) {
    let mut times = Vec::new();
    loop {
        let asked = Instant::now();
        sender.ask(Ask::Page).await;
        times.push(micros(asked.elapsed()));
        if over.load(Ordering::Relaxed) {
            return (sender, times);
        }
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

async fn tunnel_to(address: SocketAddr, own: &WorkloadCertificate, settings: &Settings) -> ClientConnection {
    let tls = own.client_config(&[waypoint::identity()]);
    let socket = TcpStream::connect(address).await.expect("the waypoint listens");
    let _ = socket.set_nodelay(true);
    let tunnel = client::connect_over(socket, address, tls, settings).await;
    tunnel.expect("the waypoint takes tunnels")
}

async fn by_tls(tls: &TlsClient, address: SocketAddr) -> impl AsyncRead + AsyncWrite + Unpin + Send + use<> {
    let socket = TcpStream::connect(address).await.expect("the proxy listens");
    let _ = socket.set_nodelay(true);
    let stream = tls.connect(SERVER, socket).await;
    stream.expect("the proxy is believed, and believes us")
}
