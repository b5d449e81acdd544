//! What must not be told to anybody is planted, the process is made to handle it, and everything it says is searched.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

/// A control plane as a process of its own, which writes a log of everything.
struct Traced {
    folder: tempfile::TempDir,
    address: SocketAddr,
    child: Child,
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Traced {
    fn start(files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        for (name, text) in files {
            write(&folder.path().join("config"), name, text);
        }
        let path = |name: &str| folder.path().join(name);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = fs::File::create(path("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tulle-xds"))
            .args(["--log-level", "trace", "--listen", &address.to_string()])
            .args([
                "--metrics-address",
                "127.0.0.1:0",
                "--readiness-address",
                "127.0.0.1:0",
            ])
            .arg("--config-dir")
            .arg(path("config"))
            .arg("--state-dir")
            .arg(path("state"))
            .arg("--run-dir")
            .arg(path("run"))
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        Self {
            folder,
            address,
            child,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn get(&self, page: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.path("run/xds.sock")).await.ok()?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    fn channel(&self, token: &str) -> AuthenticatedChannel {
        channel(&self.path("state"), self.address, token)
    }
}

/// The texts of all files below a folder.
fn texts(folder: &Path, all: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, all);
        } else {
            let bytes = fs::read(&path).unwrap_or_default();
            all.push((
                path.display().to_string(),
                String::from_utf8_lossy(&bytes).into_owned(),
            ));
        }
    }
}

const PAGES: [&str; 15] = [
    "/status",
    "/metrics",
    "/debug/ambientz",
    "/debug/authorizationz",
    "/debug/ca",
    "/debug/clusterz",
    "/debug/config_dump",
    "/debug/config_dump?type=Workload",
    "/debug/connections",
    "/debug/explain?object=Secret/shop/tls",
    "/debug/history",
    "/debug/mesh",
    "/debug/resources",
    "/debug/syncz",
    "/debug/world",
];

/// A key as somebody may paste it; its lines are what must not be found.
fn pem(planted: &str) -> String {
    let body = planted.repeat(3);
    format!("-----BEGIN PRIVATE KEY-----\n    {body}\n    -----END PRIVATE KEY-----\n")
}

/// `planted-encoded` in base64, as Kubernetes writes it.
const ENCODED: &str = "cGxhbnRlZC1lbmNvZGVk";
/// A credential of somebody's, although not one that is believed here.
const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.cGxhbnRlZC1zaWduYXR1cmU";
const WRONG_TOKEN: &str = "tulle-planted-wrong-token";

/// What is planted beside credentials.
const PLANTED: [&str; 22] = [
    ENCODED,
    "planted-encoded",
    "planted-plain",
    "plantedPasted",
    "planted-broken",
    WRONG_TOKEN,
    JWT,
    "cGxhbnRlZC1zaWduYXR1cmU",
    "planted-nameless",
    "planted-elsewhere",
    "planted-misspelt",
    "planted-listed",
    "planted-json",
    "planted-scalar",
    "planted-nested",
    "planted-number",
    "planted-invalid",
    "planted-refused",
    "planted-twice",
    "planted-again",
    "plantedAnnotated",
    PEM_ENCODED,
];

/// A private key in base64, as in the data of a secret: `planted` stands in it.
const PEM_ENCODED: &str =
    "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCnBsYW50ZWQKLS0tLS1FTkQgUFJJVkFURSBLRVktLS0tLQo=";

/// Secrets in places where nobody looks for them: of no name, of another group or kind, of a form that is refused.
fn odd_files() -> Vec<(&'static str, String)> {
    let secret = |name: &str, more: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: shop}}\n{more}\n")
    };
    let plain = |name: &str, planted: &str| secret(name, &format!("stringData: {{password: {planted}}}"));
    let item = "{apiVersion: v1, kind: Secret, metadata: {name: l}, stringData: {a: planted-listed}}";
    let annotated = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: annotated\n  annotations:\n    key: |\n    {}data:\n  key: {PEM_ENCODED}\n",
        pem("plantedAnnotated")
            .replace("\n    ", "\n      ")
            .replacen("-----", "  -----", 1),
    );
    vec![
        ("nameless.yaml", plain("Not_A_Name", "planted-nameless")),
        ("elsewhere.yaml", plain("e", "planted-elsewhere").replace("apiVersion: v1", "apiVersion: keys.example/v1")),
        ("misspelt.yaml", plain("m", "planted-misspelt").replace("kind: Secret", "kind: Secrett")),
        ("listed.yaml", format!("apiVersion: v1\nkind: List\nitems: [{item}]\n")),
        ("plain.json", r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "j"}, "stringData": {"a": "planted-json"}}"#.to_owned()),
        ("scalar.yaml", secret("s", "stringData: planted-scalar")),
        ("nested.yaml", secret("n", "data: {ca.crt: {a: planted-nested}}")),
        ("number.yaml", secret("i", "data: [planted-number, 7]")),
        ("invalid.yaml", secret("b", "data: {ca.crt: '%planted-invalid%'}")),
        ("refused.yaml", plain("r", "planted-refused").replace("namespace: shop", "namespace: shop, labels: {a: 1}")),
        ("twice.yaml", plain("tls", "planted-twice")),
        ("annotated.yaml", annotated),
    ]
}

fn files() -> [(&'static str, String); 5] {
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls, namespace: shop}}\ndata: {{tls.key: {ENCODED}}}\nstringData: {{password: planted-plain, ca.crt: public}}\n"
    );
    let pasted = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: pasted, namespace: shop}}\ndata:\n  key: |\n    {}",
        pem("plantedPasted")
    );
    [
        ("namespace.yaml", NAMESPACE.to_owned()),
        ("service.yaml", SERVICE.to_owned()),
        ("web.yaml", entry("web", "n1", "10.0.0.1")),
        ("secret.yaml", secret),
        ("pasted.yaml", pasted),
    ]
}

/// A file that cannot be read, with a secret in it.
const BROKEN: &str =
    "apiVersion: v1\nkind: Secret\nmetadata: {name: b}\nstringData: {password: planted-broken\n";

/// Everything that the process says.
async fn said(process: &Traced) -> Vec<(String, String)> {
    let mut said = Vec::new();
    for page in PAGES {
        let answer = process.get(page).await.expect("a page");
        assert!(answer.starts_with("HTTP/1.1 200"), "{page}: {answer}");
        said.push((page.to_owned(), answer));
    }
    for folder in ["state/status", "state/history", "run"] {
        texts(&process.path(folder), &mut said);
    }
    let log = fs::read_to_string(process.path("log")).unwrap();
    assert!(log.contains("DEBUG"), "the log tells everything it can");
    said.push(("log".to_owned(), log));
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn r506_no_secret_is_logged_shown_or_recorded() {
    let process = Traced::start(&files());
    let ready = async || process.get("/healthz/ready").await;
    until(async || {
        ready()
            .await
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    for (name, text) in odd_files() {
        write(&process.path("config"), name, &text);
    }
    write(
        &process.path("config"),
        "again.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData: {a: planted-again}\n",
    );
    until(async || process.path("state/status/_files/refused.yaml.yaml").exists()).await;
    fs::remove_file(process.path("config/again.yaml")).unwrap();
    write(&process.path("config"), "broken.yaml", BROKEN);
    let told = process.path("state/status/_files/broken.yaml.yaml");
    until(async || told.exists()).await;
    let token = tulle_xds::token::create(&process.path("state"), "n1").unwrap();
    let (state, _client) = follow_over(process.channel(&token), "n1", false);
    until(async || state.synced() && state.snapshot().workloads().count() == 1).await;
    let identity = tulle_model::Identity::new("cluster.local", "shop", "web");
    for refused in [WRONG_TOKEN, JWT] {
        let ca = GrpcCa::new(process.channel(refused), GrpcCaOptions::default());
        assert!(ca.fetch(&identity).await.is_err());
    }
    let ca = GrpcCa::new(process.channel(&token), GrpcCaOptions::default());
    ca.fetch(&identity).await.unwrap();
    until(async || process.path("state/status/WorkloadEntry/shop/web.yaml").exists()).await;

    let key = fs::read_to_string(process.path("state/ca/root-key.pem")).unwrap();
    let lines = key.lines().filter(|line| !line.starts_with("-----"));
    let parts = token.split('.').filter(|part| part.len() > 16);
    let own: Vec<&str> = lines.chain(parts).chain([token.as_str()]).collect();
    assert!(own.len() > 2, "a key and a token");
    let said = said(&process).await;
    for secret in own.into_iter().chain(PLANTED) {
        for (place, text) in &said {
            assert!(!text.contains(secret), "{secret} is found in {place}");
        }
    }
}
