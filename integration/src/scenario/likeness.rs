//! What applications see with the mesh and without it: there must be no difference.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use tulle_linux::NetNs;
use tulle_world::Pod;

use super::stage::PORT;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::faults::run;
use crate::manifest::{self, NAMESPACE};

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F37",
    30,
    "UDP, ICMP, server-first, half-close, reset, source address, IPv6 and large frames, with and without the mesh",
    f37,
)];

/// How long a single exchange may take.
const EXCHANGE: Duration = Duration::from_secs(5);
/// Bytes that are sent after the other side has closed its half.
const LATE_BYTES: usize = 1 << 20;

fn f37(_: Scale) -> Run {
    Box::pin(async move {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.apply("namespace", &manifest::namespace(NAMESPACE, false));
        let web = mesh.pod("n1", "web").await;
        let db = mesh.pod("n2", "db").await;
        for node in ["n1", "n2"] {
            large_frames(mesh.world.node(node).unwrap().namespace());
        }
        large_frames(mesh.world.wire());
        large_frames(web.namespace());
        large_frames(db.namespace());
        mesh.start().await;
        let without = observe(&web, &db).await;
        mesh.apply("namespace", &manifest::namespace(NAMESPACE, true));
        mesh.captured(&[&web, &db]).await;
        let within = observe(&web, &db).await;
        let tunnelled = mesh
            .metric("n2", &["istio_tcp_connections_opened_total", "mutual_tls"])
            .await;
        let differences: Vec<_> = without
            .iter()
            .zip(&within)
            .filter(|(without, within)| without != within)
            .map(|(without, within)| format!("without the mesh: {without}; within: {within}"))
            .collect();
        Figure::new("F37")
            .with("observations", within.len())
            .expect(
                "tunnelled",
                tunnelled,
                tunnelled >= 6.0,
                "≥ 6, else nothing was compared",
            )
            .none("differences", differences.len() as u64)
            .noting(differences)
    })
}

/// Sets the links of a namespace to frames of 9,000 bytes.
fn large_frames(namespace: &NetNs) {
    let links = run(namespace, "ip", &["-o", "link", "show"]);
    for line in links.lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        let name = name.split('@').next().unwrap_or_default();
        if name != "lo" && !name.is_empty() {
            run(namespace, "ip", &["link", "set", name, "mtu", "9000"]);
        }
    }
}

/// Every observation as a text, in a fixed order.
async fn observe(web: &Pod, db: &Pod) -> Vec<String> {
    let mut seen = Vec::new();
    for address in [IpAddr::from(db.ipv4()), IpAddr::from(db.ipv6())] {
        let to = SocketAddr::new(address, PORT);
        let pair = Pair {
            client: web.namespace().clone(),
            server: db.namespace().clone(),
            to,
        };
        seen.push(format!("udp: {}", pair.udp(100).await));
        seen.push(format!("udp of 8,000 bytes: {}", pair.udp(8_000).await));
        seen.push(format!("ping: {}", pair.ping()));
        seen.push(format!("server first: {}", pair.server_first().await));
        seen.push(format!("half-close: {}", pair.half_close().await));
        seen.push(format!("reset by the server: {}", pair.reset_by_server().await));
        seen.push(format!("reset by the client: {}", pair.reset_by_client().await));
    }
    seen
}

/// A client's and a server's namespace, and where the server listens.
struct Pair {
    client: NetNs,
    server: NetNs,
    to: SocketAddr,
}

impl Pair {
    /// Lets a server handle one connection and a client use it; gives what both saw.
    async fn tcp(
        &self,
        serve: impl FnOnce(TcpStream, SocketAddr) -> String + Send + 'static,
        call: impl FnOnce(TcpStream) -> String + Send + 'static,
    ) -> String {
        let to = self.to;
        let bind = move || TcpListener::bind(to);
        let listener = self.server.run_async(bind).await.unwrap().unwrap();
        let server = std::thread::spawn(move || {
            let (stream, peer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(EXCHANGE)).unwrap();
            serve(stream, peer)
        });
        let connect = move || TcpStream::connect_timeout(&to, EXCHANGE);
        let client = self.client.run_async(connect).await.unwrap();
        let client = match client {
            Ok(stream) => {
                stream.set_read_timeout(Some(EXCHANGE)).unwrap();
                call(stream)
            }
            Err(error) => format!("cannot connect: {error}"),
        };
        let server = server.join().expect("a server does not panic");
        format!("client {client}, server {server}")
    }

    async fn server_first(&self) -> String {
        let serve = |mut stream: TcpStream, peer: SocketAddr| {
            stream.write_all(b"220 ready\r\n").unwrap();
            let mut answer = [0; 4];
            let read = stream.read_exact(&mut answer).is_ok();
            format!("called by {}, answered {read}", peer.ip().to_canonical())
        };
        let call = |mut stream: TcpStream| {
            let mut banner = [0; 11];
            let read = stream.read_exact(&mut banner).is_ok();
            stream.write_all(b"HELO").unwrap();
            format!("greeted {read}")
        };
        self.tcp(serve, call).await
    }

    async fn half_close(&self) -> String {
        let serve = |mut stream: TcpStream, _| {
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).unwrap();
            stream.write_all(&vec![7; LATE_BYTES]).unwrap();
            format!("got {} bytes and the end", asked.len())
        };
        let call = |mut stream: TcpStream| {
            stream.write_all(b"question").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            format!("got {} bytes after closing its half", answer.len())
        };
        self.tcp(serve, call).await
    }

    async fn reset_by_server(&self) -> String {
        let serve = |mut stream: TcpStream, _| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            reset(stream);
            "reset".to_owned()
        };
        let call = |mut stream: TcpStream| {
            stream.write_all(b"x").unwrap();
            ended(&mut stream)
        };
        self.tcp(serve, call).await
    }

    async fn reset_by_client(&self) -> String {
        let serve = |mut stream: TcpStream, _| {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(b"y").unwrap();
            ended(&mut stream)
        };
        let call = |mut stream: TcpStream| {
            stream.write_all(b"x").unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            reset(stream);
            "reset".to_owned()
        };
        self.tcp(serve, call).await
    }

    async fn udp(&self, bytes: usize) -> String {
        let to = self.to;
        let any = SocketAddr::new(
            if to.is_ipv4() {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0; 16])
            },
            0,
        );
        let server = self
            .server
            .run_async(move || UdpSocket::bind(to))
            .await
            .unwrap()
            .unwrap();
        let client = self
            .client
            .run_async(move || UdpSocket::bind(any))
            .await
            .unwrap()
            .unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(EXCHANGE)).unwrap();
        }
        let exchange = || -> std::io::Result<(usize, IpAddr)> {
            let mut buffer = vec![0; 10_000];
            client.send_to(&vec![1; bytes], to)?;
            let (size, peer) = server.recv_from(&mut buffer)?;
            server.send_to(&buffer[..size], peer)?;
            let (size, _) = client.recv_from(&mut buffer)?;
            Ok((size, peer.ip()))
        };
        match exchange() {
            Ok((size, peer)) => format!("{size} bytes back, sent by {peer}"),
            Err(error) => format!("{}", error.kind()),
        }
    }

    fn ping(&self) -> String {
        let mut command = Command::new("ping");
        command.args(["-c", "1", "-W", "2", "-n", "-s", "1000"]);
        command
            .arg(self.to.ip().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = self.client.spawn(command);
        let mut child = child.unwrap_or_else(|error| panic!("ping (package iputils-ping): {error}"));
        format!("answered {}", child.wait().unwrap().success())
    }
}

/// Closes with RST instead of FIN.
fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// How a connection ends for a reader.
fn ended(stream: &mut TcpStream) -> String {
    match stream.read(&mut [0]) {
        Ok(0) => "saw the end".to_owned(),
        Ok(_) => "got bytes".to_owned(),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => "saw a reset".to_owned(),
        Err(error) => format!("saw {}", error.kind()),
    }
}
