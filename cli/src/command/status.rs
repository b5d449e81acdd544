//! `tulle status`: is everything well, and if not, what is to be done.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::output::Form;
use crate::running::{Component, Kind};

/// Show the components, their configuration and certificates, and what is wrong
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    #[command(flatten)]
    reading: Reading,
}

/// A pod as its agent sees it.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct PodStatus {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) error: Option<PodError>,
}

/// Why a pod is not captured.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct PodError {
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) fix: String,
}

/// One row of the table.
#[derive(Debug, Default, Serialize)]
struct Row {
    component: &'static str,
    node: String,
    version: String,
    /// Generation of the folder; the control plane's alone.
    generation: Option<u64>,
    /// Whether everything sent to it was accepted, by the control plane's account.
    sync: Option<String>,
    connections: Option<usize>,
    certificates: Option<usize>,
    next_expiry: Option<String>,
    state: String,
    /// What a person should know, one line each.
    findings: Vec<String>,
}

/// What an agent says of its node.
#[derive(Debug, Deserialize)]
struct NodeStatus {
    pods: Vec<PodStatus>,
    #[serde(default)]
    proxies: Vec<Value>,
    #[serde(default)]
    notes: Vec<Value>,
}

/// The pods of an agent.
pub(crate) async fn pods(agent: &Component) -> anyhow::Result<Vec<PodStatus>> {
    Ok(agent.json::<NodeStatus>("/pods").await?.pods)
}

pub(crate) async fn run(status: Status) -> anyhow::Result<Exit> {
    let mut rows = Vec::new();
    let mut served = Value::Null;
    for component in status.reading.run_dir().components()? {
        let mut instance = Value::Null;
        let found = match component.kind {
            // The control plane sorts first, so it has been asked when the others are.
            Kind::Control => control(&component, &mut served).await,
            Kind::Agent => agent(&component).await,
            Kind::Ztunnel => ztunnel(&component).await,
            Kind::Waypoint => waypoint(&component, &mut instance).await,
            // What it runs is shown instead of it.
            Kind::Supervisor => continue,
        };
        let mut row = found.unwrap_or_else(|error| Row {
            state: "does not answer".to_owned(),
            findings: vec![format!("{error:#}")],
            ..Row::of(&component)
        });
        row.sync = match component.kind {
            Kind::Control => None,
            Kind::Waypoint => sync(&served, |client| is_instance(client, &instance)),
            // A waypoint may show the credential of its node; it has a row of its own.
            _ => sync(&served, |client| {
                client["node"] == component.node && client["kind"] != "waypoint"
            }),
        };
        rows.push(row);
    }
    crate::output::print(status.reading.output(), "status", &rows, || table(&rows))?;
    if status.reading.output() == Form::Table {
        for row in &rows {
            for finding in &row.findings {
                println!("‼ {} {}: {finding}", row.component, row.node);
            }
        }
    }
    let well = rows.iter().all(|row| row.state == "ok");
    Ok(if well { Exit::Ok } else { Exit::Failed })
}

fn table(rows: &[Row]) -> comfy_table::Table {
    let header = [
        "COMPONENT",
        "NODE",
        "VERSION",
        "GEN",
        "SYNC",
        "CONNS",
        "CERTS",
        "NEXT-EXPIRY",
        "STATE",
    ];
    let mut table = crate::output::table(&header);
    let number = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for row in rows {
        table.add_row([
            row.component.to_owned(),
            if row.node.is_empty() {
                "-".to_owned()
            } else {
                row.node.clone()
            },
            row.version.clone(),
            row.generation
                .map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
            row.sync.clone().unwrap_or_else(|| "-".to_owned()),
            number(row.connections),
            number(row.certificates),
            row.next_expiry.clone().unwrap_or_else(|| "-".to_owned()),
            row.state.clone(),
        ]);
    }
    table
}

impl Row {
    fn of(component: &Component) -> Self {
        let (component, node) = (component.kind.as_str(), component.node.clone());
        Self {
            component,
            node,
            version: "-".to_owned(),
            ..Self::default()
        }
    }

    /// Not ready, or something to know: not ok.
    async fn judge(mut self, component: &Component) -> Self {
        self.state = match component.text("/healthz/ready").await {
            Err(error) => {
                self.findings.push(format!("{error:#}"));
                "not ready"
            }
            Ok(_) if self.findings.is_empty() => "ok",
            Ok(_) => "attention",
        }
        .to_owned();
        self
    }
}

/// Whether a client of the control plane is the waypoint at this address.
fn is_instance(client: &Value, address: &Value) -> bool {
    let from = client["address"].as_str().unwrap_or_default();
    let from = from
        .parse::<std::net::SocketAddr>()
        .map(|from| from.ip().to_canonical());
    let own = address.as_str().unwrap_or_default().parse::<std::net::IpAddr>();
    client["kind"] == "waypoint" && matches!((from, own), (Ok(from), Ok(own)) if from == own)
}

/// Whether these clients, such as a node's agent and proxy, have accepted everything that was sent to them.
fn sync(served: &Value, is_it: impl Fn(&Value) -> bool) -> Option<String> {
    let types = |client: &Value| client["types"].as_object().cloned().unwrap_or_default();
    let clients: Vec<_> = array(&served["clients"]).filter(|client| is_it(client)).collect();
    if served.is_null() {
        return None;
    }
    if clients.is_empty() {
        return Some("not connected".to_owned());
    }
    let lag = |client: &&Value| {
        types(client)
            .values()
            .filter_map(|one| one["lagMs"].as_u64())
            .max()
            .unwrap_or(0)
    };
    let waiting = |client: &&Value| {
        types(client)
            .values()
            .any(|one| one["unacked"].as_u64() != Some(0))
    };
    let rejected = clients
        .iter()
        .map(|client| array(&client["rejections"]).count())
        .sum::<usize>();
    Some(match (clients.iter().any(waiting), rejected) {
        (_, 1..) => format!("rejects {rejected}"),
        (false, 0) => "synced".to_owned(),
        (true, 0) => format!("lag {} ms", clients.iter().map(lag).max().unwrap_or(0)),
    })
}

async fn control(component: &Component, served: &mut Value) -> anyhow::Result<Row> {
    let status: Value = component.json("/status").await?;
    served.clone_from(&status);
    let source = &status["source"];
    let mut row = Row::of(component);
    row.version = text(&status["version"]);
    row.generation = source["generation"].as_u64();
    row.connections = status["clients"].as_array().map(Vec::len);
    row.next_expiry = status["issuer"]["notAfter"].as_str().map(str::to_owned);
    if let Some(degraded) = source["degraded"].as_str() {
        row.findings
            .push(format!("the folder is not used as it is: {degraded}"));
    }
    row.findings.extend(ca_lines(&status["ca"]));
    for problem in array(&source["problems"]).filter(|problem| problem["severity"] != "note") {
        row.findings.push(problem_line(problem));
    }
    for object in array(&source["objects"]) {
        row.findings.extend(object_lines(object));
    }
    for client in array(&status["clients"]) {
        for rejection in array(&client["rejections"]) {
            let (node, name, said) = (
                text(&client["node"]),
                text(&rejection["name"]),
                text(&rejection["text"]),
            );
            row.findings.push(format!("T0201 {node} rejected {name}: {said}"));
        }
    }
    Ok(row.judge(component).await)
}

/// What the authority needs somebody for.
fn ca_lines(ca: &Value) -> Vec<String> {
    let told = ["problem", "expiresSoon"].into_iter();
    let mut lines: Vec<String> = told
        .filter_map(|name| ca[name].as_str().map(str::to_owned))
        .collect();
    if ca["overdue"] == true {
        lines.push("the rotation of the root has waited past its deadline; see `tulle ca status`".to_owned());
    }
    lines
}

/// `file:line:column: code token: cause; fix`.
fn problem_line(problem: &Value) -> String {
    let place = match problem["line"].as_u64() {
        Some(line) if line > 0 => format!("{}:{line}:{}", text(&problem["file"]), problem["column"]),
        _ => text(&problem["file"]),
    };
    let object = match &problem["object"] {
        Value::Object(key) => format!(
            " {} {}/{}:",
            text(&key["kind"]),
            text(&key["namespace"]),
            text(&key["name"])
        ),
        _ => String::new(),
    };
    format!(
        "{place}: {}:{object} {}; {}",
        text(&problem["reason"]),
        text(&problem["cause"]),
        text(&problem["fix"])
    )
}

/// What an object's conditions say that is not well, and whether an older form is in force.
fn object_lines(object: &Value) -> Vec<String> {
    let key = &object["key"];
    let name = format!(
        "{} {}/{}",
        text(&key["kind"]),
        text(&key["namespace"]),
        text(&key["name"])
    );
    let mut lines = Vec::new();
    if let Some(generation) = object["staleSince"].as_u64() {
        lines.push(format!(
            "T0204 {name}: an older form is in force since generation {generation}"
        ));
    }
    for condition in array(&object["conditions"]).filter(|condition| condition["status"] == "False") {
        lines.push(format!(
            "{name}: {}: {}",
            text(&condition["reason"]),
            text(&condition["message"])
        ));
    }
    lines
}

async fn agent(component: &Component) -> anyhow::Result<Row> {
    let NodeStatus { pods, proxies, notes } = component.json("/pods").await?;
    let mut row = Row::of(component);
    row.version = tulle_runtime::build_info::tag();
    row.connections = Some(pods.iter().filter(|pod| pod.state == "In").count());
    if proxies.is_empty() {
        row.findings
            .push("T0108 no node proxy is connected; start one on this node".to_owned());
    }
    for note in &notes {
        let (token, message, fix) = (text(&note["token"]), text(&note["message"]), text(&note["fix"]));
        row.findings.push(format!("{token}: {message}; {fix}"));
    }
    for pod in &pods {
        let name = format!("{}/{}", pod.namespace, pod.name);
        if let Some(error) = &pod.error {
            row.findings.push(format!(
                "{} {name} ({}): {}; {}",
                error.code, pod.state, error.message, error.fix
            ));
        } else if pod.state == "Degraded" {
            row.findings.push(format!("{name} is degraded"));
        }
    }
    Ok(row.judge(component).await)
}

async fn ztunnel(component: &Component) -> anyhow::Result<Row> {
    let dump: Value = component.json("/config_dump").await?;
    let connections: Vec<Value> = component.json("/connections").await?;
    let mut row = Row::of(component);
    row.version = text(&dump["version"]["version"]);
    row.connections = Some(connections.len());
    let certificates: Vec<&Value> = array(&dump["certificates"]).collect();
    row.certificates = Some(certificates.len());
    row.next_expiry = certificates
        .iter()
        .filter_map(|one| one["notAfter"].as_str())
        .min()
        .map(str::to_owned);
    for certificate in certificates.iter().filter(|one| !one["lastError"].is_null()) {
        row.findings.push(format!(
            "{}: {}",
            text(&certificate["identity"]),
            text(&certificate["lastError"])
        ));
    }
    Ok(row.judge(component).await)
}

/// A waypoint's row; `instance` becomes its address.
async fn waypoint(component: &Component, instance: &mut Value) -> anyhow::Result<Row> {
    let mut dump: Value = component.json("/config_dump").await?;
    *instance = dump["config"]["instanceIp"].take();
    let mut row = Row::of(component);
    row.node = component.node.replacen('.', "/", 1);
    row.version = tulle_runtime::build_info::tag();
    let certificates: Vec<&Value> = array(&dump["certificates"]).collect();
    row.certificates = Some(certificates.len());
    row.next_expiry = certificates
        .iter()
        .filter_map(|one| one["notAfter"].as_str())
        .min()
        .map(str::to_owned);
    for front in array(&dump["fronts"]) {
        for missing in array(&front["missingPolicies"]) {
            row.findings
                .push(format!("T0414 nobody passes until {} arrives", text(missing)));
        }
    }
    Ok(row.judge(component).await)
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}
