//! The process itself: what its metrics page says to a scraper.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A waypoint that knows no control plane; it ends with this.
struct Process {
    child: Child,
    stats: u16,
    _folder: tempfile::TempDir,
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stats = free();
        let child = Command::new(env!("CARGO_BIN_EXE_tulle-waypoint"))
            .env_clear()
            .env("POD_NAMESPACE", "shop")
            .env("SERVICE_ACCOUNT", "way")
            .env("XDS_ADDRESS", "https://127.0.0.1:9")
            .env("CA_ADDRESS", "https://127.0.0.1:9")
            .env("TULLE_WAYPOINT_LISTEN", "127.0.0.1:0")
            .env("TULLE_STATS_PORT", stats.to_string())
            .env("TULLE_ADMIN_PORT", "off")
            .env("TULLE_READINESS_PORT", "off")
            .env("TULLE_RUN_DIR", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            stats,
            _folder: folder,
        }
    }

    /// What a GET is answered with, once the process listens.
    fn get(&mut self, path: &str, accept: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.stats)) {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\naccept: {accept}\r\nconnection: close\r\n\r\n",
                    self.stats
                );
                socket.write_all(request.as_bytes()).unwrap();
                let mut answer = String::new();
                socket.read_to_string(&mut answer).unwrap();
                return answer;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the process ended: {ended:?}");
            assert!(Instant::now() < until, "it does not listen");
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn a_scraper_reads_open_metrics() {
    let mut process = Process::start();
    let accept = "application/openmetrics-text;version=1.0.0;q=0.9,text/plain;q=0.5";
    let answer = process.get("/metrics", accept);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains("content-type: application/openmetrics-text"),
        "{head}"
    );
    assert!(body.contains("# EOF"), "the end is marked");
    for family in [
        "# TYPE istio_requests counter",
        "# TYPE istio_request_duration_milliseconds histogram",
        "# TYPE istio_request_bytes histogram",
        "# TYPE istio_response_bytes histogram",
        "# TYPE istio_request_messages counter",
        "# TYPE istio_response_messages counter",
        "# TYPE istio_tcp_sent_bytes counter",
        "# TYPE istio_tcp_received_bytes counter",
        "# TYPE istio_tcp_connections_opened counter",
        "# TYPE istio_tcp_connections_closed counter",
        "# TYPE tulle_waypoint_retry_budget_ratio gauge",
        "# TYPE tulle_waypoint_ejections counter",
        "# TYPE tulle_waypoint_endpoints gauge",
        "# TYPE tulle_waypoint_ext_authz_duration_seconds histogram",
        "# TYPE tulle_waypoint_config_apply_seconds histogram",
        "# TYPE tulle_waypoint_plaintext_upstream counter",
    ] {
        assert!(body.contains(family), "{family}: {body}");
    }
    assert!(
        body.contains("\ntulle_waypoint_endpoints{state=\"usable\"} 0"),
        "{body}"
    );
}
