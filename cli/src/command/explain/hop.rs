//! The waypoint on the way, and the server behind it.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::{Request, proxy_of};
use crate::running::{Component, Kind, RunDir};

/// What the waypoint that the caller's proxy goes to says of a request; `None` if there is none on the way.
pub(super) async fn ask(
    run_dir: &RunDir,
    source: &Value,
    outbound: &Value,
    request: &Request,
) -> anyhow::Result<Option<Value>> {
    let plan = &outbound["plan"];
    let next: Option<SocketAddr> = plan["next_hop"].as_str().and_then(|hop| hop.parse().ok());
    let (Some(next), Some(authority)) = (next, plan["authority"].as_str()) else {
        return Ok(None);
    };
    let Some((waypoint, address)) = at(run_dir, next.ip()).await? else {
        return Ok(None);
    };
    let mut headers = request.headers.clone();
    headers.extend(
        request
            .jwt
            .iter()
            .map(|token| ("authorization".to_owned(), format!("Bearer {token}"))),
    );
    let from = source["addresses"]
        .get(0)
        .cloned()
        .unwrap_or_else(|| json!("0.0.0.0"));
    let mut question = json!({
        "source": identity(source), "sourceIp": from, "authority": authority,
        "method": request.method, "path": request.path, "headers": headers,
    });
    // A waypoint of before knows no such field.
    if let Some(name) = &request.sni {
        question["serverName"] = json!(name);
    }
    let mut answer: Value = waypoint.ask("/explain", &question).await?;
    answer["address"] = json!(address);
    Ok(Some(answer))
}

/// The waypoint at an address, if it runs here.
async fn at(run_dir: &RunDir, ip: IpAddr) -> anyhow::Result<Option<(Component, IpAddr)>> {
    for waypoint in run_dir.of_kind(Kind::Waypoint)? {
        let Ok(dump) = waypoint.json::<Value>("/config_dump").await else {
            continue;
        };
        let own = dump["config"]["instanceIp"]
            .as_str()
            .and_then(|own| own.parse::<IpAddr>().ok());
        if own == Some(ip) {
            return Ok(Some((waypoint, ip)));
        }
    }
    Ok(None)
}

/// What the node proxies of the endpoints say that the waypoint may choose from: the first that refuses, else the first.
pub(super) async fn server(
    dump: &Value,
    proxies: &[Component],
    source: &Value,
    waypoint: &Value,
) -> anyhow::Result<Option<Value>> {
    if waypoint["verdict"] != "allow" {
        return Ok(None);
    }
    let mut first = None;
    let backends = waypoint["backends"].as_array().into_iter().flatten();
    for endpoint in backends.flat_map(|backend| backend["endpoints"].as_array().into_iter().flatten()) {
        let Some(proxy) = serving(dump, proxies, endpoint) else {
            continue;
        };
        let question = json!({
            "direction": "inbound", "identity": waypoint["identity"], "source_ip": waypoint["address"],
            "original_source": identity(source), "destination": endpoint["address"],
        });
        let mut answer: Value = proxy.ask("/explain", &question).await?;
        answer["destination"] = endpoint["address"].clone();
        if answer["verdict"] == "deny" {
            return Ok(Some(answer));
        }
        first.get_or_insert(answer);
    }
    Ok(first)
}

/// The proxy of the node that an endpoint is on, if it goes through one.
fn serving<'a>(dump: &Value, proxies: &'a [Component], endpoint: &Value) -> Option<&'a Component> {
    if endpoint["tunnelled"] != true {
        return None;
    }
    let is_it = |workload: &&Value| workload["uid"] == endpoint["workload"];
    proxy_of(proxies, dump["workloads"].as_array()?.iter().find(is_it)?)
}

fn identity(workload: &Value) -> String {
    let text = |field: &str| workload[field].as_str().unwrap_or_default().to_owned();
    let (domain, namespace, account) = (text("trustDomain"), text("namespace"), text("serviceAccount"));
    format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
}
