//! What became of waypoints: as the control plane says, or as far as the folder alone tells.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tulle_runtime::exit::Exit;

use super::super::folder::Folder;
use crate::command::Reading;
use crate::output::{Form, table};
use crate::running::Kind;

/// How often the control plane is asked while somebody waits.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// One waypoint.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    #[serde(rename = "for")]
    purpose: String,
    /// `True`, `False` or `Unknown`.
    programmed: String,
    /// Why not.
    message: String,
    /// The process that serves it, if one runs here: `ready` or `not ready`.
    instance: Option<&'static str>,
    /// Objects that are bound to it, `Kind namespace/name`.
    bound: Vec<String>,
    /// Objects that name it and are not bound, with the reason.
    unbound: Vec<String>,
}

/// Everything that may be bound to a waypoint is looked at: the page tells less unless it is asked for more.
const EVERYTHING: &str = "limit=1000000";
/// The gateways alone.
const GATEWAYS: &str = "kind=Gateway";

/// The objects that the control plane knows, with their conditions; none if it does not answer.
async fn objects(reading: &Reading, which: &str) -> Vec<Value> {
    let Ok(control) = reading.run_dir().of_kind(Kind::Control) else {
        return Vec::new();
    };
    let Some(control) = control.first() else {
        return Vec::new();
    };
    let path = format!("/debug/world?{which}");
    let page: Value = control.json(&path).await.unwrap_or_default();
    page["objects"].as_array().cloned().unwrap_or_default()
}

fn rows(folder: &Folder, objects: &[Value]) -> Vec<Row> {
    let waypoints = folder.of_kind("Gateway").filter(|one| one.is_waypoint());
    let row =
        |one: &crate::command::folder::Document| row(one.namespace(), one.name(), one.purpose(), objects);
    let mut rows: Vec<_> = waypoints.map(row).collect();
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    rows
}

fn row(namespace: &str, name: &str, purpose: &str, objects: &[Value]) -> Row {
    let own = objects.iter().find(|object| {
        let key = &object["key"];
        key["kind"] == "Gateway" && key["namespace"] == namespace && key["name"] == name
    });
    let programmed = own.and_then(|own| condition(own, "Programmed"));
    let mut row = Row {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        purpose: purpose.to_owned(),
        programmed: programmed
            .map_or("Unknown", |found| text(&found["status"]))
            .to_owned(),
        message: programmed.map_or("", |found| text(&found["message"])).to_owned(),
        instance: None,
        bound: Vec::new(),
        unbound: Vec::new(),
    };
    let waypoint = format!("{namespace}/{name}");
    for object in objects {
        let Some(bound) = condition(object, "istio.io/WaypointBound") else {
            continue;
        };
        let message = text(&bound["message"]);
        if !message
            .split_whitespace()
            .any(|word| word.trim_matches(['`', ',', '.', ';', ':']) == waypoint)
        {
            continue;
        }
        let key = &object["key"];
        let what = format!(
            "{} {}/{}",
            text(&key["kind"]),
            text(&key["namespace"]),
            text(&key["name"])
        );
        if bound["status"] == "True" {
            row.bound.push(what);
        } else {
            row.unbound.push(format!("{what}: {}", text(&bound["reason"])));
        }
    }
    row
}

/// A condition of the object as a whole.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut conditions = object["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == kind && condition["of"].is_null())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// How the process of a waypoint is, if one runs here.
async fn instance(reading: &Reading, namespace: &str, name: &str) -> Option<&'static str> {
    let of_kind = reading.run_dir().of_kind(Kind::Waypoint).ok()?;
    let own = of_kind
        .iter()
        .find(|one| one.gateway() == Some((namespace, name)))?;
    let ready = own.text("/healthz/ready").await.is_ok();
    Some(if ready { "ready" } else { "not ready" })
}

/// Lists waypoints.
pub(super) async fn list(reading: &Reading, folder: &Folder) -> anyhow::Result<Exit> {
    let mut rows = rows(folder, &objects(reading, EVERYTHING).await);
    for row in &mut rows {
        row.instance = instance(reading, &row.namespace, &row.name).await;
    }
    crate::output::print(reading.output(), "waypoint.list", &rows, || {
        let mut table = table(&["NAMESPACE", "NAME", "FOR", "PROGRAMMED", "INSTANCE", "BOUND"]);
        for row in &rows {
            let bound = row.bound.len().to_string();
            table.add_row([
                &*row.namespace,
                &*row.name,
                &*row.purpose,
                &*row.programmed,
                row.instance.unwrap_or("-"),
                &*bound,
            ]);
        }
        table
    })?;
    Ok(Exit::Ok)
}

/// Says how one waypoint is.
pub(super) async fn status(
    reading: &Reading,
    folder: &Folder,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Exit> {
    let objects = objects(reading, EVERYTHING).await;
    let found = folder
        .find("Gateway", namespace, name)
        .filter(|one| one.is_waypoint());
    let Some(found) = found else {
        anyhow::bail!("no waypoint {namespace}/{name}; `tulle waypoint list` shows them");
    };
    let row = Row {
        instance: instance(reading, namespace, name).await,
        ..row(namespace, name, found.purpose(), &objects)
    };
    match reading.output() {
        Form::Json => {
            crate::output::print(Form::Json, "waypoint.status", std::slice::from_ref(&row), || {
                table(&[])
            })?
        }
        Form::Table => {
            println!("{}", line(&row));
            if let Some(state) = row.instance {
                println!("  its process is {state}");
            }
            row.bound.iter().for_each(|what| println!("  {what}"));
            row.unbound
                .iter()
                .for_each(|what| println!("  not bound: {what}"));
        }
    }
    Ok(if row.programmed == "True" {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// `waypoint default/waypoint programmed; 3 bound`.
fn line(row: &Row) -> String {
    let Row {
        namespace,
        name,
        message,
        bound,
        ..
    } = row;
    match &*row.programmed {
        "True" => format!("waypoint {namespace}/{name} programmed; {} bound", bound.len()),
        "False" => format!("waypoint {namespace}/{name} not programmed: {message}"),
        _ => format!(
            "waypoint {namespace}/{name} is in the folder; no control plane answers what became of it"
        ),
    }
}

/// Waits until a waypoint serves.
pub(super) async fn wait(
    reading: &Reading,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<Exit> {
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        let row = row(namespace, name, "", &objects(reading, GATEWAYS).await);
        let is_programmed = row.programmed == "True";
        if is_programmed || tokio::time::Instant::now() >= deadline {
            // What programs read is one document: who enforces what, printed before.
            if reading.output() == Form::Table {
                println!("{}", line(&row));
            }
            return Ok(if is_programmed { Exit::Ok } else { Exit::Failed });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(kind: &str, name: &str, condition: &str, status: &str, message: &str) -> Value {
        json!({
            "key": {"kind": kind, "namespace": "shop", "name": name},
            "conditions": [{"type": condition, "status": status, "reason": "Reason", "message": message}],
        })
    }

    #[test]
    fn a_waypoint_counts_what_names_it_and_nothing_else() {
        let objects = [
            object("Gateway", "way", "Programmed", "True", ""),
            object(
                "Service",
                "a",
                "istio.io/WaypointBound",
                "True",
                "bound to shop/way",
            ),
            object(
                "Service",
                "b",
                "istio.io/WaypointBound",
                "True",
                "bound to shop/way-2",
            ),
            object(
                "Service",
                "c",
                "istio.io/WaypointBound",
                "False",
                "shop/way: not yet ready",
            ),
        ];
        let row = row("shop", "way", "service", &objects);
        assert_eq!(row.bound, ["Service shop/a"]);
        assert_eq!(row.unbound, ["Service shop/c: Reason"]);
        assert_eq!(line(&row), "waypoint shop/way programmed; 1 bound");
    }

    #[test]
    fn without_a_control_plane_nothing_is_claimed() {
        let row = row("shop", "way", "service", &[]);
        assert_eq!(row.programmed, "Unknown");
        assert!(line(&row).contains("no control plane answers"));
    }
}
