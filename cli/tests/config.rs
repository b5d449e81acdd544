//! `tulle config` and `tulle analyze` as they are called: over a folder, a running control plane and a real client of it.

#![allow(clippy::unwrap_used, reason = "a test ends at what goes wrong")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;
use tempfile::TempDir;
use tulle_identity::channel::authenticated;
use tulle_identity::{ChannelConfig, RootSource, TokenSource};
use tulle_model::Mesh;
use tulle_runtime::drain::{self, DrainTrigger};
use tulle_runtime::ready::Ready;
use tulle_runtime::tasks;
use tulle_xds_client::metrics::Metrics;
use tulle_xds_client::node::NodeInfo;
use tulle_xds_client::state::MeshState;
use tulle_xds_client::stream::{Client, Options};

const ENTRY: &str = "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop, annotations: {tulle.dev/node: n1, tulle.dev/process: 'netns:web'}}
spec: {address: 10.0.0.1, serviceAccount: web, labels: {app: web}}
";

fn policy(name: &str, port: u16) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]}}\n"
    )
}

/// How a command ended, and what it said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    complaint: String,
}

impl Said {
    /// The items of its JSON, whose schema is checked.
    fn items(&self, schema: &str) -> Vec<Value> {
        let value: Value =
            serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(value["schema"], schema);
        value["items"].as_array().unwrap().clone()
    }
}

/// The folders that commands work on.
struct Folders {
    root: TempDir,
}

impl Folders {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("config")).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
        command
            .env("TULLE_CONFIG_DIR", self.path("config"))
            .env("TULLE_STATE_DIR", self.path("state"))
            .env("TULLE_RUN_DIR", self.path("run"));
        command
    }

    fn tulle(&self, arguments: &[&str]) -> Said {
        let output = self.command().args(arguments).output().unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            complaint: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `tulle config …`, which is to end so.
    #[track_caller]
    fn config(&self, arguments: &[&str], code: i32) -> Said {
        let said = self.tulle(&[&["config"], arguments].concat());
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        said
    }

    fn apply(&self, name: &str, text: &str, arguments: &[&str], code: i32) -> Said {
        let file = self.write(name, text).display().to_string();
        self.config(&[&["apply", "-f", &*file], arguments].concat(), code)
    }
}

/// A control plane of its own process, and a client of it.
struct Plane {
    folders: Folders,
    process: Child,
    held: MeshState,
    _client: DrainTrigger,
}

impl Drop for Plane {
    fn drop(&mut self) {
        // It may have ended; there is nothing else to do about it here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that is free now. Another program could take it; then the test says so.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Plane {
    async fn start() -> Self {
        let folders = Folders::new();
        folders.write("config/web.yaml", ENTRY);
        let port = free_port();
        let process = folders
            .command()
            .args(["xds", "--listen", &format!("127.0.0.1:{port}")])
            .args([
                "--metrics-address",
                "127.0.0.1:0",
                "--readiness-address",
                "127.0.0.1:0",
            ])
            .env("RUST_LOG", "error")
            .spawn()
            .unwrap();
        // Nobody has accepted anything; that it was asked means that it runs.
        let runs = || {
            folders
                .tulle(&["config", "wait", "--timeout", "1"])
                .out
                .contains("acked 0/0")
        };
        assert!((0..30).any(|_| runs()), "the control plane starts");
        let token = tulle_xds::token::create(&folders.path("state"), "n1").unwrap();
        let channel = authenticated(&ChannelConfig {
            address: format!("https://localhost:{port}").parse().unwrap(),
            root: RootSource::File(folders.path("state/ca/root-cert.pem")),
            server_name: Some("istiod.istio-system.svc".to_owned()),
            token: TokenSource::Literal(token),
            headers: Vec::new(),
            cluster_id: Some("Kubernetes".to_owned()),
            mark: None,
        });
        let held = MeshState::new(Mesh::new());
        let node = NodeInfo {
            name: "ztunnel".to_owned(),
            namespace: "istio-system".to_owned(),
            node_name: "n1".to_owned(),
            ..NodeInfo::default()
        };
        let client = Client::new(
            Options::new(node),
            held.clone(),
            Metrics::default(),
            &Ready::new(),
        );
        let (trigger, drain) = drain::new();
        tasks::spawn("client", client.run(channel.unwrap(), drain));
        Self {
            folders,
            process,
            held,
            _client: trigger,
        }
    }

    fn policies(&self) -> usize {
        self.held.snapshot().policies().count()
    }
}

#[test]
fn analyze_tells_by_its_exit_code_whether_anything_is_wrong() {
    let folders = Folders::new();
    folders.write("config/good.yaml", &policy("good", 80));
    let good = folders.tulle(&["analyze"]);
    assert_eq!((good.code, good.out.as_str()), (Some(0), "nothing found\n"));
    let missing = folders.tulle(&["analyze", "no-such-folder"]);
    assert_eq!((missing.code, missing.out.as_str()), (Some(65), ""));
    assert!(
        missing.complaint.contains("cannot read the manifests"),
        "{missing:?}"
    );
    folders.write("config/bad.yaml", &policy("bad", 80).replace("action", "acton"));
    let bad = folders.tulle(&["analyze", "-o", "json"]);
    assert_eq!(bad.code, Some(79), "{bad:?}");
    let items = bad.items("tulle.analyze/v1");
    let misspelt = items
        .iter()
        .find(|item| item["code"] == "T0003")
        .unwrap_or_else(|| panic!("{items:?}"));
    assert_eq!(
        (&misspelt["file"], &misspelt["severity"]),
        (&"bad.yaml".into(), &"error".into())
    );
    assert_eq!(misspelt["object"], "AuthorizationPolicy shop/bad");
}

const GUARDED: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIPs: [10.9.0.1], ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: read-only, namespace: shop}
spec: {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}
";

#[test]
fn a_waypoint_that_comes_or_goes_says_who_enforces_what() {
    let folders = Folders::new();
    folders.write("config/web.yaml", ENTRY);
    folders.write("config/service.yaml", GUARDED);
    let apply = ["waypoint", "apply", "-n", "shop", "--enroll-namespace"];
    let dry = folders.tulle(&[&apply[..], &["--dry-run"]].concat());
    assert_eq!(dry.code, Some(0), "{dry:?}");
    let words: Vec<Vec<&str>> = dry
        .out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for row in [
        "Service shop/web traffic to it direct waypoint",
        "AuthorizationPolicy shop/read-only policy on Service web nobody waypoint",
    ] {
        assert!(
            words.iter().any(|line| line.join(" ") == row),
            "{row}: {}",
            dry.out
        );
    }
    assert!(!folders.path("config/waypoint-shop-waypoint.yaml").exists());

    let applied = folders.tulle(&[&apply[..], &["-o", "json"]].concat());
    let service = |items: &[Value]| {
        let found = items.iter().find(|item| item["object"] == "Service shop/web");
        found.cloned().unwrap_or_else(|| panic!("{items:?}"))
    };
    let row = service(&applied.items("tulle.waypoint.apply/v1"));
    assert_eq!(row["about"], "traffic");
    assert_eq!(
        (&row["before"]["by"], &row["after"]["by"]),
        (&"nobody".into(), &"waypoint".into())
    );
    let again = folders.tulle(&apply);
    assert!(
        again.out.contains("waypoint shop/waypoint unchanged"),
        "{again:?}"
    );

    // It serves: whoever takes it away is told what that means.
    let instance = ENTRY
        .replace("10.0.0.1", "10.0.0.9")
        .replace("web", "waypoint")
        .replace(
            "app: waypoint",
            "gateway.networking.k8s.io/gateway-name: waypoint",
        );
    folders.write("config/instance.yaml", &instance);
    let gone = folders.tulle(&["waypoint", "delete", "-n", "shop", "-o", "json"]);
    let row = service(&gone.items("tulle.waypoint.delete/v1"));
    assert_eq!(
        (&row["before"]["by"], &row["after"]["by"]),
        (&"waypoint".into(), &"nobody".into())
    );
}

#[test]
fn without_a_control_plane_status_says_so_and_wait_gives_up() {
    let folders = Folders::new();
    let status = folders.config(&["status"], 1);
    assert!(status.complaint.contains("no mesh runs here"), "{status:?}");
    let wait = folders.config(&["wait", "--timeout", "1"], 1);
    assert!(wait.out.contains("no mesh runs here"), "{wait:?}");
    let show = folders.config(&["show", "1"], 1);
    assert!(show.complaint.contains("generation 1 is not stored"), "{show:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_applied_is_at_the_proxy_when_wait_returns_and_what_was_refused_is_a_finding() {
    let plane = Plane::start().await;
    let folders = &plane.folders;
    for number in 1..=3 {
        let name = format!("deny-{number}");
        folders.apply(&format!("{name}.yaml"), &policy(&name, 80), &[], 0);
        let waited = folders.config(&["wait", "--for", "acked"], 0);
        assert_eq!(waited.out, "acked 1/1\n");
        assert_eq!(plane.policies(), number);
    }
    folders.config(&["status"], 0);
    // Somebody edits the folder by hand.
    folders.write("config/deny-3.yaml", "kind: [broken\n");
    let refused = folders.config(&["wait"], 79);
    assert!(
        refused.out.contains("acked 1/1")
            && refused.out.contains("deny-3.yaml:")
            && refused.out.contains("T0202"),
        "{refused:?}"
    );
    assert_eq!(plane.policies(), 3, "its last good form is in force");
    let status = folders
        .config(&["status", "-o", "json"], 79)
        .items("tulle.config.status/v1");
    assert_eq!(status[0]["problems"][0]["file"], "deny-3.yaml");
    fs::remove_file(folders.path("config/deny-3.yaml")).unwrap();
    folders.config(&["wait"], 0);
    assert_eq!(plane.policies(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_emptied_stays_in_force_until_that_is_accepted() {
    let plane = Plane::start().await;
    let folders = &plane.folders;
    let all: Vec<String> = (0..12).map(|number| policy(&format!("p{number}"), 80)).collect();
    folders.write("config/all.yaml", &all.join("---\n"));
    folders.config(&["wait"], 0);
    for name in ["all.yaml", "web.yaml"] {
        fs::remove_file(folders.path("config").join(name)).unwrap();
    }
    let degraded = folders.config(&["wait"], 79);
    assert!(degraded.out.contains("degraded:"), "{degraded:?}");
    folders.config(&["accept-empty", "--dry-run"], 0);
    folders.config(&["wait"], 79);
    folders.config(&["accept-empty"], 0);
    folders.config(&["wait"], 0);
    assert_eq!(plane.policies(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_are_listed_shown_compared_and_gone_back_to() {
    let plane = Plane::start().await;
    let folders = &plane.folders;
    let apply = |port, message: &str| {
        folders.apply("deny.yaml", &policy("deny", port), &["--message", message], 0);
        folders.config(&["wait"], 0);
    };
    apply(80, "the first");
    apply(81, "the second");
    let newest = || {
        let all = folders
            .config(&["history", "-o", "json"], 0)
            .items("tulle.config.history/v1");
        all.last().cloned().unwrap()
    };
    let second = newest();
    let number = second["generation"].as_u64().unwrap();
    let (first, second_number) = ((number - 1).to_string(), number.to_string());
    assert_eq!(second["message"], "the second");
    assert_ne!(second["actor"], "");
    assert_eq!(second["changed"][0], "AuthorizationPolicy shop/deny");

    let table = folders.config(&["history"], 0).out;
    assert!(
        table.contains("the first") && table.contains("~AuthorizationPolicy shop/deny"),
        "{table}"
    );
    let shown = folders.config(&["show", &first], 0).out;
    assert!(
        shown.contains("kind: WorkloadEntry") && shown.contains("80"),
        "{shown}"
    );
    let differ = folders.config(&["diff", &first, &second_number, "-o", "json"], 0);
    assert_eq!(
        differ.items("tulle.config.diff/v1")[0]["changed"][0],
        "AuthorizationPolicy shop/deny"
    );
    let effect = folders
        .config(&["diff", &first, &second_number, "--effect"], 0)
        .out;
    assert!(effect.contains("~ Authorization shop/deny"), "{effect}");

    let in_folder = || fs::read_to_string(folders.path("config/deny.yaml")).unwrap();
    let before = in_folder();
    let dry = folders
        .config(&["rollback", &first, "--message", "no", "--dry-run"], 0)
        .out;
    assert!(dry.contains("deny.yaml"), "{dry}");
    assert_eq!(in_folder(), before);
    folders.config(&["rollback", &first, "--message", "81 broke"], 0);
    folders.config(&["wait"], 0);
    assert_eq!(in_folder(), policy("deny", 80));
    assert_eq!(newest()["message"], format!("rollback to {first}: 81 broke"));
    let none = folders.config(&["rollback", "999", "--message", "none"], 1);
    assert!(
        none.complaint.contains("generation 999 is not stored"),
        "{none:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_or_only_tried_leaves_nothing_behind() {
    let plane = Plane::start().await;
    let folders = &plane.folders;
    let in_folder = |name: &str| folders.path("config").join(name).exists();
    let word = folders.path("state/next-change.json");
    folders.apply("deny.yaml", &policy("deny", 80), &["--dry-run"], 0);
    let refused = folders.apply("bad.yaml", &policy("bad", 80).replace("action", "acton"), &[], 65);
    assert!(refused.out.contains("error[T0003]"), "{refused:?}");
    assert!(!in_folder("deny.yaml") && !in_folder("bad.yaml") && !word.exists());

    folders.apply("deny.yaml", &policy("deny", 80), &[], 0);
    folders.config(&["wait"], 0);
    let key = "AuthorizationPolicy/shop/deny";
    let would = folders.config(&["delete", key, "--dry-run"], 0).out;
    assert!(
        would.starts_with("would be deleted") && in_folder("deny.yaml"),
        "{would}"
    );
    let absent = folders.config(&["delete", key, "AuthorizationPolicy/shop/other"], 1);
    assert!(
        absent.complaint.contains("shop/other") && in_folder("deny.yaml"),
        "{absent:?}"
    );
    assert!(!word.exists(), "nothing is about to change");
    folders.config(&["delete", key], 0);
    folders.config(&["wait"], 0);
    assert!(!in_folder("deny.yaml"));
    assert_eq!(plane.policies(), 0);
    let history = folders
        .config(&["history", "-o", "json"], 0)
        .items("tulle.config.history/v1");
    assert_eq!(history.last().unwrap()["message"], "deleted 1 objects");
}
