//! Large bodies through a waypoint between node proxies, all of them processes: what the waypoint's takes of memory.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tulle_world::Component;

use super::process::resident_mib;
use crate::http::{self as client, App, get};
use crate::mesh::eventually;
use crate::programs::run;
use crate::{TestMesh, manifest};

/// Bytes of an answer, and how many of them follow one another: 1 GiB in all.
const ANSWER: usize = 64 * 1024 * 1024;
const ANSWERS: usize = 16;
/// Pause between two looks at the memory.
const PAUSE: Duration = Duration::from_millis(5);
const SERVICE: &str = "10.96.0.80";
const GATEWAY: &str = "way";

/// Memory of the waypoint's process, in MiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    before: f64,
    most: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, most } = self;
        write!(
            f,
            "between node proxies: {ANSWERS} answers of {} MiB, RSS of the waypoint {before:.1} MiB before, at most \
             {most:.1} (+{:.1})",
            ANSWER >> 20,
            most - before
        )
    }
}

pub(super) async fn measure() -> Measured {
    let mut mesh = TestMesh::new(&["n1", "n2"]).await;
    let caller = mesh.pod("n1", "client").await;
    let server = mesh.pod("n2", "server").await;
    let address: IpAddr = SERVICE.parse().unwrap();
    let service = manifest::service("server", &[address], &[(80, 8080)]);
    let bound = format!("  name: server\n  labels:\n    istio.io/use-waypoint: {GATEWAY}\n");
    let service = service.replacen("  name: server\n", &bound, 1);
    mesh.apply(
        "server-service",
        &service.replace("name: tcp-80\n", "name: http\n"),
    );
    mesh.start().await;
    mesh.captured(&[&caller, &server]).await;
    mesh.start_waypoint("n2", manifest::NAMESPACE, GATEWAY).await;
    let long = Bytes::from(vec![b'x'; ANSWER]);
    let app = App::answering(&server, 8080, move |_, seen| {
        let is_long = seen.target.starts_with("/long");
        let body = if is_long {
            long.clone()
        } else {
            Bytes::from_static(b"short")
        };
        Response::new(Full::new(body))
    });
    let app = app.await;
    let to = SocketAddr::new(address, 80);
    let through = eventually(async || {
        let answer = client::ask(caller.namespace(), to, get("/")).await;
        let seen = app.seen();
        let told = seen
            .last()
            .is_some_and(|seen| seen.headers.contains_key("x-request-id"));
        answer.is_ok_and(|answer| answer.status == 200) && told
    });
    assert!(through.await, "{}", mesh.logs());
    let component = Component::waypoint(manifest::NAMESPACE, GATEWAY);
    let process = mesh.mesh.process(&component).expect("it runs").id();
    let before = resident_mib(process);
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let watch = std::thread::spawn(move || {
        let mut most = 0.0;
        while !ends.load(Ordering::Relaxed) {
            most = resident_mib(process).max(most);
            #[allow(clippy::disallowed_methods, reason = "no task waits here")]
            std::thread::sleep(PAUSE);
        }
        most
    });
    let url = format!("http://{SERVICE}/long?[1-{ANSWERS}]");
    let write = "%{http_code} %{size_download}\\n";
    let arguments = ["--silent", "--output", "/dev/null", "--write-out", write, &url];
    let (_, said) = run(&caller, "curl", &arguments);
    over.store(true, Ordering::Relaxed);
    let most = watch.join().unwrap();
    let whole = said.lines().filter(|line| *line == format!("200 {ANSWER}"));
    assert_eq!(whole.count(), ANSWERS, "{said}\n{}", mesh.logs());
    Measured { before, most }
}
