//! A pod as the agent finds it: a namespace with an address, reached over a pair of virtual interfaces.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use tulle_agent::locate::Locator;
use tulle_agent::netns::Located;
use tulle_agent::records::Records;
use tulle_linux::NetNs;

/// The pod's address.
pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 7);
/// The address of everyone else.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The pod's other address.
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 7);
/// The other address of everyone else.
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
/// Long enough for a loaded machine; nothing waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A pod's namespace and one outside of it, linked.
pub(crate) struct World {
    pub(crate) pod: NetNs,
    pub(crate) outside: NetNs,
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    /// A world, or nothing (said visibly) where namespaces cannot be made.
    pub(crate) fn new(test: &str) -> Option<Self> {
        log();
        let made = NetNs::create().and_then(|pod| Ok((pod, NetNs::create()?)));
        let (pod, outside) = match made {
            Ok(made) => made,
            Err(error) => {
                // The harness keeps what `eprintln` writes to itself.
                let _ = writeln!(
                    std::io::stderr(),
                    "skipped: {test}: network namespaces cannot be made: {error}"
                );
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        pod.link_to(&folder.path().join("web")).unwrap();
        outside.link_to(&folder.path().join("outside")).unwrap();
        let world = Self { pod, outside, folder };
        ip(&world.pod, "link set lo up");
        ip(&world.outside, "link set lo up");
        let target = world.folder.path().join("outside");
        ip(&world.pod, "link add eth0 type veth peer name eth1");
        let peer = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&world.outside.fd())
        );
        assert!(target.exists());
        ip(&world.pod, &format!("link set eth1 netns {peer}"));
        ip(&world.pod, &format!("addr add {POD}/24 dev eth0"));
        ip(&world.outside, &format!("addr add {OUTSIDE}/24 dev eth1"));
        ip(&world.pod, &format!("addr add {POD6}/64 dev eth0 nodad"));
        ip(&world.outside, &format!("addr add {OUTSIDE6}/64 dev eth1 nodad"));
        ip(&world.pod, "link set eth0 up");
        ip(&world.outside, "link set eth1 up");
        Some(world)
    }

    /// Finds pods by the names of their namespaces, and by records.
    pub(crate) fn locator(&self) -> Locator {
        let records = Records::load(&self.folder.path().join("pods")).unwrap();
        Locator::new(
            self.folder.path(),
            NetNs::current().unwrap().inode(),
            records,
            None,
        )
    }

    pub(crate) async fn located(&self) -> Located {
        let host = NetNs::current().unwrap().inode();
        tulle_agent::netns::locate(self.folder.path().join("web"), &[IpAddr::V4(POD)], host)
            .await
            .unwrap()
    }

    /// A server in the pod.
    pub(crate) fn serve(&self, port: u16) -> TcpListener {
        self.pod
            .run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
            .unwrap()
            .unwrap()
    }

    /// A connection from outside to the pod.
    pub(crate) fn dial(&self, port: u16) -> std::io::Result<TcpStream> {
        let dial = move || TcpStream::connect_timeout(&SocketAddr::from((POD, port)), PATIENCE);
        let stream = self.outside.run(dial).unwrap()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// What a program prints in the pod.
    pub(crate) fn output(&self, program: &str, arguments: &str) -> String {
        run(&self.pod, program, arguments)
    }

    /// Switches IPv6 of the pod on or off, as whoever sets it up may do late.
    pub(crate) fn switch_ipv6(&self, on: bool) {
        for what in ["all", "default", "lo", "eth0"] {
            let off = u8::from(!on);
            self.output("sysctl", &format!("-w net.ipv6.conf.{what}.disable_ipv6={off}"));
        }
    }

    /// Whether a program can be run in the pod, and says that all went well.
    pub(crate) fn succeeds(&self, program: &str, arguments: &str) -> bool {
        let mut command = Command::new(program);
        command
            .args(arguments.split(' '))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stderr(std::process::Stdio::null());
        let ended = self.pod.spawn(command).and_then(|mut child| child.wait());
        ended.is_ok_and(|status| status.success())
    }
}

/// Shows the agent's log when the environment asks for it with `RUST_LOG`.
fn log() {
    use tulle_runtime::config::{Env, ProcessEnv};
    use tulle_runtime::telemetry::{LogFormat, init};
    static LOGS: std::sync::OnceLock<Option<tulle_runtime::telemetry::LogHandle>> =
        std::sync::OnceLock::new();
    LOGS.get_or_init(|| init(LogFormat::Text, &ProcessEnv.var("RUST_LOG")?).ok());
}

/// Both ends of a connection still talk.
pub(crate) fn assert_alive(one: &mut TcpStream, other: &mut TcpStream) {
    use std::io::Read;
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    one.write_all(b"ping").unwrap();
    let mut four = [0; 4];
    other.read_exact(&mut four).unwrap();
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"pong");
}

fn ip(netns: &NetNs, arguments: &str) {
    run(netns, "ip", arguments);
}

/// What a program prints inside of a namespace.
pub(crate) fn run(netns: &NetNs, program: &str, arguments: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments.split(' ').filter(|argument| !argument.is_empty()));
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let output = netns.spawn(command).unwrap().wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    text
}
