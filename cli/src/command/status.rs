//! `tulle status`: is everything well, and if not, what is to be done.

mod row;
mod served;

use std::io::IsTerminal as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tulle_model::Reason;
use tulle_runtime::exit::Exit;

use self::row::{Row, budget, elsewhere, table};
use self::served::{Served, Who};
use super::Reading;
use crate::output::Form;
use crate::running::{Component, Kind};

/// Show the components, their configuration and certificates, and what is wrong
///
/// Components of this machine are asked themselves; proxies on others are shown as the control plane knows them, as
/// `connected`, without their connections and certificates. SYNC is what a proxy has not accepted yet, in changes, and
/// the age of the oldest of them; with more than 10 seconds that is a finding. GEN is shown of proxies that lack
/// nothing. REPLICA is the control plane that serves a proxy. Exit code 1 if something is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Show it again every few seconds, until interrupted; as JSON, one document after the other
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    reading: Reading,
}

/// A pod as its agent sees it.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct PodStatus {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) state: String,
    /// What the state is about, if it says more.
    #[serde(default)]
    pub(crate) detail: Option<String>,
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
    if !status.watch {
        return look(&status.reading, "").await;
    }
    let on_screen = status.reading.output() == Form::Table && std::io::stdout().is_terminal();
    let before = if on_screen { CLEAR } else { "" };
    let shown = watch(async || look(&status.reading, before).await);
    tokio::select! {
        error = shown => Err(error),
        _ = tulle_runtime::signal::shutdown() => Ok(Exit::Ok),
    }
}

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Puts the cursor into the first corner of an empty screen.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Looks again and again, until that fails.
async fn watch(mut look: impl AsyncFnMut() -> anyhow::Result<Exit>) -> anyhow::Error {
    let mut rounds = tokio::time::interval(LOOK_EVERY);
    // Who was held up does not hurry after it.
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        // That something is wrong is shown; the next look may show that it is not any more.
        if let Err(error) = look().await {
            return error;
        }
    }
}

/// Shows everything once, after what goes `before`.
async fn look(reading: &Reading, before: &str) -> anyhow::Result<Exit> {
    let mut rows = Vec::new();
    let mut served = None;
    let mut covered = Vec::new();
    for component in reading.run_dir().components()? {
        let mut who = Who::OnNode {
            kind: component.kind.as_str().to_owned(),
            node: component.node.clone(),
        };
        let found = match component.kind {
            // The control plane sorts first, so it has been asked when the others are.
            Kind::Control => control(&component, &mut served).await,
            Kind::Agent => agent(&component).await,
            Kind::Ztunnel => ztunnel(&component).await,
            Kind::Waypoint => {
                let found = waypoint(&component).await;
                who = Who::Instance(found.as_ref().ok().and_then(|(_, address)| *address));
                found.map(|(row, _)| row)
            }
            // What it runs is shown instead of it.
            Kind::Supervisor => continue,
        };
        let mut row = found.unwrap_or_else(|error| Row {
            findings: vec![format!("{error:#}")],
            ..Row::of(&component)
        });
        if component.kind != Kind::Control
            && let Some(progress) = served.as_ref().and_then(|served| served.progress(&who))
        {
            row.follow(&progress);
        }
        covered.push(who);
        rows.push(row);
    }
    rows.extend(served.iter().flat_map(|served| elsewhere(served, &covered)));
    print!("{before}");
    crate::output::print(reading.output(), "status", &rows, || table(&rows))?;
    if reading.output() == Form::Table {
        if let Some(budget) = budget(&rows, Timestamp::now()) {
            println!("{budget}");
        }
        if let Some(unlisted) = served.as_ref().map(Served::unlisted).filter(|more| *more > 0) {
            println!("{unlisted} more proxies are connected, and lack nothing");
        }
        for role in rows.iter().filter_map(Row::role) {
            println!("{role}");
        }
        for row in &rows {
            for finding in &row.findings {
                println!("‼ {} {}: {finding}", row.component, row.node);
            }
        }
    }
    let well = rows.iter().all(|row| row.state.is_well());
    Ok(if well { Exit::Ok } else { Exit::Failed })
}

/// The control plane's row; `served` becomes what it says of its clients.
async fn control(component: &Component, served: &mut Option<Served>) -> anyhow::Result<Row> {
    let status: Value = component.json("/status").await?;
    let clients =
        Served::deserialize(&status).context("the control plane tells of its clients in another form")?;
    *served = Some(clients);
    let source = &status["source"];
    let mut row = Row::of(component);
    row.version = text(&status["version"]);
    row.generation = source["generation"].as_u64();
    row.connections = served.as_ref().map(Served::streams);
    row.replicas = array(&status["replicas"]).cloned().collect();
    row.sources = array(&status["sync"]).cloned().collect();
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
            let code = Reason::ResourceRejected.code();
            row.findings
                .push(format!("{code} {node} rejected {name}: {said}"));
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
        let code = Reason::ResourceRejected.code();
        lines.push(format!(
            "{code} {name}: an older form is in force since generation {generation}"
        ));
    }
    for condition in array(&object["conditions"]).filter(|condition| condition["status"] == "False") {
        let of = condition["of"]
            .as_str()
            .map(|of| format!(" ({of})"))
            .unwrap_or_default();
        lines.push(format!(
            "{name}{of}: {}: {}",
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
    row.findings.extend(pods.iter().filter_map(pod_line));
    Ok(row.judge(component).await)
}

/// What is wrong with a pod, if anything is: a step that failed, or why it is degraded.
fn pod_line(pod: &PodStatus) -> Option<String> {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let is_degraded = pod.state == "Degraded";
    let detail = pod.detail.as_deref().filter(|_| is_degraded);
    let state = match detail {
        Some(detail) => format!("{}: {detail}", pod.state),
        None => pod.state.clone(),
    };
    match &pod.error {
        Some(error) => Some(format!(
            "{} {name} ({state}): {}; {}",
            error.code, error.message, error.fix
        )),
        None if is_degraded => Some(match detail {
            Some(detail) => format!("{name} is degraded: {detail}"),
            None => format!("{name} is degraded"),
        }),
        None => None,
    }
}

async fn ztunnel(component: &Component) -> anyhow::Result<Row> {
    let dump: Value = component.json("/config_dump").await?;
    let connections: Vec<Value> = component.json("/connections").await?;
    let mut row = Row::of(component);
    row.version = text(&dump["version"]["version"]);
    row.connections = Some(connections.len());
    let certificates: Vec<&Value> = array(&dump["certificates"]).collect();
    row.certified(&certificates);
    for certificate in certificates.iter().filter(|one| !one["lastError"].is_null()) {
        row.findings.push(format!(
            "{}: {}",
            text(&certificate["identity"]),
            text(&certificate["lastError"])
        ));
    }
    Ok(row.judge(component).await)
}

/// A waypoint's row, and the address of the instance.
async fn waypoint(component: &Component) -> anyhow::Result<(Row, Option<IpAddr>)> {
    let dump: Value = component.json("/config_dump").await?;
    let instance = dump["config"]["instanceIp"].as_str();
    let instance = instance.and_then(|address| address.parse::<IpAddr>().ok());
    let mut row = Row::of(component);
    row.node = component.node.replacen('.', "/", 1);
    row.version = tulle_runtime::build_info::tag();
    row.certified(&array(&dump["certificates"]).collect::<Vec<_>>());
    for front in array(&dump["fronts"]) {
        for missing in array(&front["missingPolicies"]) {
            row.findings
                .push(format!("T0414 nobody passes until {} arrives", text(missing)));
        }
    }
    let instance = instance.map(|address| address.to_canonical());
    Ok((row.judge(component).await, instance))
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_degraded_pod_says_why() {
        let line = |state: &str, detail: Value, error: Value| {
            let pod =
                json!({"namespace": "shop", "name": "web", "state": state, "detail": detail, "error": error});
            pod_line(&serde_json::from_value(pod).unwrap())
        };
        let (rules, step) = (
            "something in the pod changes its rules",
            "a step failed and is tried again",
        );
        let error = json!({"code": "T0104", "message": "port 15001 is taken by nginx", "fix": "free it"});
        for (state, detail, error, expect) in [
            (
                "Degraded",
                json!(rules),
                Value::Null,
                Some("shop/web is degraded: something in the pod changes its rules"),
            ),
            (
                "Degraded",
                json!(rules),
                error.clone(),
                Some(
                    "T0104 shop/web (Degraded: something in the pod changes its rules): \
                     port 15001 is taken by nginx; free it",
                ),
            ),
            (
                "Retry",
                json!(step),
                error,
                Some("T0104 shop/web (Retry): port 15001 is taken by nginx; free it"),
            ),
            ("Degraded", Value::Null, Value::Null, Some("shop/web is degraded")),
            ("In", Value::Null, Value::Null, None),
        ] {
            assert_eq!(line(state, detail, error).as_deref(), expect);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_watched_is_looked_at_every_two_seconds_until_that_fails() {
        let begin = tokio::time::Instant::now();
        let mut looks = Vec::new();
        let error = watch(async || {
            looks.push(begin.elapsed().as_secs());
            // That something is wrong ends nothing.
            match looks.len() {
                3 => anyhow::bail!("no folder"),
                _ => Ok(Exit::Failed),
            }
        });
        assert_eq!(error.await.to_string(), "no folder");
        assert_eq!(looks, [0, 2, 4]);
    }

    #[test]
    fn an_object_with_an_older_form_in_force_was_rejected() {
        let key = json!({"kind": "Service", "namespace": "shop", "name": "web"});
        let lines = object_lines(&json!({"key": key, "staleSince": 7, "conditions": []}));
        assert_eq!(
            lines,
            ["T0201 Service shop/web: an older form is in force since generation 7"]
        );
    }
}
