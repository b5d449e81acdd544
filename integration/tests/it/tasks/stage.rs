//! What the task pages play on: the namespace `shop` with its services behind a waypoint, and a shell in the pod `web`.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::time::Instant;
use tulle_integration::http::{App, Seen};
use tulle_integration::mesh::PATIENCE;
use tulle_integration::{TestMesh, manifest};
use tulle_world::Pod;

use super::page;

/// The services, by what their pods are labelled with.
const SERVICES: [(&str, &str); 4] = [
    ("reviews", "app: reviews"),
    ("reviews-v1", "version: v1"),
    ("reviews-v2", "version: v2"),
    ("ratings", "app: ratings"),
];
/// The pods, with labels and node.
const PODS: [(&str, &str, &str, &str); 3] = [
    ("reviews-v1", "reviews", "v1", "n2"),
    ("reviews-v2", "reviews", "v2", "n2"),
    ("ratings", "ratings", "one", "n1"),
];

pub(super) struct Stage {
    _apps: Vec<App>,
    mesh: TestMesh,
    web: Pod,
    /// Where the reader works.
    desk: PathBuf,
    /// Files of the configuration folder that are no page's.
    own: Vec<std::ffi::OsString>,
}

fn address(index: usize) -> IpAddr {
    [10, 96, 0, 20 + u8::try_from(index).unwrap()].into()
}

impl Stage {
    pub(super) async fn start() -> Self {
        let mut mesh = TestMesh::new(&["n1", "n2"]).await;
        mesh.apply("shop", &manifest::namespace("shop", true));
        let web = mesh.pod_in("shop", "n1", "web", "web").await;
        let mut pods = Vec::new();
        for (name, app, version, node) in PODS {
            let pod = mesh.world.add_pod(node, name).await.unwrap();
            let written = manifest::workload("shop", &pod, app);
            mesh.apply(name, &format!("{written}    version: {version}\n"));
            pods.push(pod);
        }
        let outside = mesh.stranger("n1", "outside").await;
        for (index, (name, selector)) in SERVICES.into_iter().enumerate() {
            let service = manifest::service(name, &[address(index)], &[(80, 8080)]);
            let service = service
                .replace("namespace: app", "namespace: shop")
                .replace(&format!("app: {name}"), selector)
                .replace("name: tcp-80", "name: http");
            mesh.apply(&format!("service-{name}"), &service);
        }
        mesh.start().await;
        let all: Vec<&Pod> = std::iter::once(&web).chain(&pods).collect();
        mesh.captured(&all).await;
        let mut apps = Vec::new();
        for pod in pods.iter().chain([&outside]) {
            let name = pod.name().to_owned();
            apps.push(App::answering(pod, 8080, move |index, seen| answer(&name, index, seen)).await);
        }
        let mut stage = Self {
            desk: mesh.folder().join("desk"),
            _apps: apps,
            mesh,
            web,
            own: Vec::new(),
        };
        stage.furnish(&outside);
        let said = stage.run("tulle waypoint apply --namespace shop --enroll-namespace");
        let lines: Vec<String> = said
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[0],
            "waypoint shop/waypoint applied, the namespace goes through it"
        );
        for (name, _) in SERVICES {
            let row = format!("Service shop/{name} traffic to it direct waypoint");
            assert!(lines.contains(&row), "{said}");
        }
        stage.mesh.start_instance("n2", "shop", "waypoint").await;
        stage.own = stage.configured();
        stage
    }

    /// A `curl` that finds the services by name, as the cluster's DNS would, and the outside world where it is.
    fn furnish(&self, outside: &Pod) {
        std::fs::create_dir_all(self.desk.join("bin")).unwrap();
        let mut script = String::from("#!/bin/sh\nexec /usr/bin/curl --silent --max-time 10");
        for (index, (name, _)) in SERVICES.into_iter().enumerate() {
            script.push_str(&format!(" --connect-to {name}:80:{}:80", address(index)));
        }
        script.push_str(" --connect-to api.example.com:80:240.240.0.1:80 \"$@\"\n");
        let curl = self.desk.join("bin/curl");
        std::fs::write(&curl, script).unwrap();
        std::fs::set_permissions(&curl, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(self.desk.join("outside"), outside.ipv4().to_string()).unwrap();
    }

    fn configured(&self) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(&self.mesh.mesh.folders().config).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    /// Takes back what a page applied.
    pub(super) fn clear(&self) {
        for file in self.configured() {
            if !self.own.contains(&file) {
                std::fs::remove_file(self.mesh.mesh.folders().config.join(file)).unwrap();
            }
        }
    }

    /// Saves a file where the reader works. The outside world has an address of its own in each run.
    pub(super) fn save(&self, name: &str, text: &str) {
        let outside = std::fs::read_to_string(self.desk.join("outside")).unwrap();
        std::fs::write(self.desk.join(name), text.replace("203.0.113.7", &outside)).unwrap();
    }

    /// Runs a command until it prints what is expected; what it printed last, if it never does. What changes something is
    /// run once.
    pub(super) async fn expect(&self, line: &str, expected: &[String]) -> Result<(), String> {
        let once = ["tulle config apply", "tulle waypoint ", "rm "];
        let deadline = Instant::now() + PATIENCE;
        loop {
            let printed = self.run(line);
            if page::fits(expected, &printed.lines().collect::<Vec<_>>()) {
                return Ok(());
            }
            if Instant::now() >= deadline || once.iter().any(|start| line.starts_with(start)) {
                return Err(printed);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a command prints in the pod `web`.
    fn run(&self, line: &str) -> String {
        let folders = self.mesh.mesh.folders();
        let bin = folders.binary.parent().unwrap().display();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!("{{ {line}\n}} 2>&1")])
            .current_dir(&self.desk)
            .env(
                "PATH",
                format!("{}/bin:{bin}:/usr/sbin:/usr/bin:/sbin:/bin", self.desk.display()),
            )
            .env("TULLE_RUN_DIR", &folders.run)
            .env("TULLE_CONFIG_DIR", &folders.config)
            .env("TULLE_STATE_DIR", &folders.state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let child = self.web.namespace().spawn(command).unwrap();
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    }

    pub(super) fn logs(&self) -> String {
        self.mesh.logs()
    }
}

/// The application: it says who it is, what it was asked, and fails where it is asked to.
fn answer(name: &str, index: usize, seen: &Seen) -> Response<Full<Bytes>> {
    let path = seen.target.split('?').next().unwrap_or_default();
    let header = |name: &str| {
        let value = seen.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or("-").to_owned()
    };
    let (status, text) = match path {
        "/seen" => (200, format!("{name} has seen {index} requests")),
        "/headers" => (
            200,
            format!(
                "{name} host={} user={} attempt={}",
                header("host"),
                header("x-user"),
                header("x-envoy-attempt-count")
            ),
        ),
        // Every second request fails: what is tried again succeeds.
        "/flaky" if header("x-envoy-attempt-count") == "1" => (503, format!("{name} is not well")),
        _ => (200, name.to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text + "\n")));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}
