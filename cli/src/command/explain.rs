//! `tulle explain`: what would happen to a connection, by the proxies' own decisions on their own state.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use serde_json::{Value, json};
use tulle_model::reason::Reason;
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::output::Form;
use crate::running::{Component, Kind, RunDir};

/// Say what would happen to a connection, and which policy decides
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle explain productpage-v1 details:9080\n  \
    tulle explain shop/reviews-v2 10.96.0.13:9080 --exit-code")]
pub(crate) struct Explain {
    /// The calling workload: NAME or NAMESPACE/NAME
    source: String,
    /// Service, workload or address, with a port: NAME:PORT, NAMESPACE/NAME:PORT, IP:PORT, [IPv6]:PORT
    destination: String,
    /// Exit with 1 when the connection would be refused
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Everything `explain` found out.
#[derive(Debug, serde::Serialize)]
struct Explained {
    source: Value,
    destination: SocketAddr,
    /// What the caller's proxy does.
    outbound: Value,
    /// What the destination's proxy does; absent if it is not asked.
    inbound: Option<Value>,
    verdict: &'static str,
}

pub(crate) async fn run(explain: Explain) -> anyhow::Result<Exit> {
    let run_dir = explain.reading.run_dir();
    let explained = answer(&run_dir, &explain.source, &explain.destination).await?;
    match explain.reading.output() {
        Form::Json => {
            crate::output::print(Form::Json, "explain", &[&explained], || crate::output::table(&[]))?
        }
        Form::Table => print!("{}", page(&explained)),
    }
    Ok(if explain.exit_code && explained.verdict == "deny" {
        Exit::Failed
    } else {
        Exit::Ok
    })
}

async fn answer(run_dir: &RunDir, source: &str, destination: &str) -> anyhow::Result<Explained> {
    let proxies = run_dir.of_kind(Kind::Ztunnel)?;
    let first = proxies
        .first()
        .context("no node proxy answers; is the mesh running?")?;
    let dump: Value = first.json("/config_dump").await?;
    let source = find_workload(&dump, source)?;
    let destination = resolve(&dump, destination)?;
    let question = |direction: &str, destination: SocketAddr| {
        let name = json!({
            "namespace": source["namespace"], "name": source["name"], "service_account": source["serviceAccount"],
        });
        json!({"direction": direction, "source": name, "destination": destination})
    };
    let caller = proxy_of(&proxies, &source);
    let outbound: Value = match caller {
        Some(proxy) => proxy.ask("/explain", &question("outbound", destination)).await?,
        None => {
            json!({"plan": {"kind": "plain", "next_hop": destination}, "note": "no node proxy serves the caller"})
        }
    };
    let inbound = match answering(&dump, &proxies, &outbound, destination) {
        Some((proxy, target)) => Some(proxy.ask("/explain", &question("inbound", target)).await?),
        None => None,
    };
    let denied = |answer: &Value| answer["verdict"] == "deny";
    let refused = denied(&outbound) || inbound.as_ref().is_some_and(denied);
    Ok(Explained {
        source,
        destination,
        outbound,
        inbound,
        verdict: if refused { "deny" } else { "allow" },
    })
}

/// The proxy that judges the connection, and the address it judges.
fn answering<'a>(
    dump: &Value,
    proxies: &'a [Component],
    outbound: &Value,
    destination: SocketAddr,
) -> Option<(&'a Component, SocketAddr)> {
    let plan = &outbound["plan"];
    let target = plan["authority"].as_str().or_else(|| plan["next_hop"].as_str());
    let target = target.and_then(|text| text.parse().ok()).unwrap_or(destination);
    let has_address = |workload: &&Value| {
        let addresses = workload["addresses"].as_array();
        addresses.is_some_and(|all| all.iter().any(|address| *address == json!(target.ip())))
    };
    let workload = dump["workloads"].as_array()?.iter().find(has_address)?;
    (workload["tunnelProtocol"] == "HBONE").then_some(())?;
    Some((proxy_of(proxies, workload)?, target))
}

fn proxy_of<'a>(proxies: &'a [Component], workload: &Value) -> Option<&'a Component> {
    proxies.iter().find(|proxy| workload["node"] == *proxy.node)
}

/// `NAME` or `NAMESPACE/NAME` among objects; the name alone must be unique.
fn find<'a>(objects: &'a Value, wanted: &str) -> Result<Option<&'a Value>, String> {
    let matches = |object: &&Value| match wanted.split_once('/') {
        Some((namespace, name)) => object["namespace"] == namespace && object["name"] == name,
        None => object["name"] == wanted,
    };
    let found: Vec<_> = objects.as_array().into_iter().flatten().filter(matches).collect();
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(format!(
            "{wanted} is in several namespaces; write NAMESPACE/{wanted}"
        )),
    }
}

fn find_workload(dump: &Value, wanted: &str) -> anyhow::Result<Value> {
    let found = find(&dump["workloads"], wanted).map_err(anyhow::Error::msg)?;
    let missing = || format!("no workload {wanted}; `tulle ztunnel-config workloads` lists them");
    found.cloned().with_context(missing)
}

/// Service before workload before address, as a caller's resolver would have it.
fn resolve(dump: &Value, destination: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = destination.parse() {
        return Ok(address);
    }
    let (host, port) = destination
        .rsplit_once(':')
        .context("the destination has no port; write NAME:PORT")?;
    let port: u16 = port.parse().with_context(|| format!("{port} is no port"))?;
    let service = find(&dump["services"], host).map_err(anyhow::Error::msg)?;
    let by_hostname = |service: &&Value| service["hostname"] == host;
    let service = service.or_else(|| dump["services"].as_array()?.iter().find(by_hostname));
    let addresses = match service {
        Some(service) => &service["addresses"],
        None => &find(&dump["workloads"], host)
            .map_err(anyhow::Error::msg)?
            .with_context(|| format!("no service or workload {host}"))?["addresses"],
    };
    let first = addresses
        .get(0)
        .with_context(|| format!("{host} has no address"))?;
    let text = first["address"].as_str().or(first.as_str()).unwrap_or_default();
    let ip: IpAddr = text
        .parse()
        .with_context(|| format!("{text:?} of {host} is no address"))?;
    Ok(SocketAddr::new(ip, port))
}

/// The explanation for people.
fn page(explained: &Explained) -> String {
    let source = &explained.source;
    let plan = &explained.outbound["plan"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = vec![format!(
        "source   spiffe://{}/ns/{}/sa/{}   (node {})",
        text(&source["trustDomain"]),
        text(&source["namespace"]),
        text(&source["serviceAccount"]),
        text(&source["node"])
    )];
    let way = match plan["kind"].as_str() {
        Some("hbone") => format!(
            "──HBONE──▶ {} for {}",
            text(&plan["next_hop"]),
            text(&plan["authority"])
        ),
        Some(_) => format!("──plain──▶ {}", text(&plan["next_hop"])),
        None => "refused by the caller's proxy".to_owned(),
    };
    lines.push(format!("path     {} {way}", explained.destination));
    for (place, answer) in [
        ("caller", Some(&explained.outbound)),
        ("server", explained.inbound.as_ref()),
    ] {
        if let Some(answer) = answer {
            lines.push(verdict_line(place, answer));
        }
    }
    lines.push(format!("verdict  {}", explained.verdict));
    lines.join("\n") + "\n"
}

fn verdict_line(place: &str, answer: &Value) -> String {
    let generation = &answer["generation"];
    let policy = answer["policy"]
        .as_str()
        .map(|policy| format!(" by {policy}"))
        .unwrap_or_default();
    match (answer["verdict"].as_str(), answer["reason"].as_str()) {
        (Some("deny"), Some(reason)) => {
            let help = reason
                .split(' ')
                .next()
                .and_then(Reason::from_code)
                .map_or("", Reason::help);
            format!("{place}   DENY{policy}   {reason}: {help}   (generation {generation})")
        }
        (Some("deny"), None) => format!("{place}   DENY{policy}   (generation {generation})"),
        _ => format!("{place}   ALLOW{policy}   (generation {generation})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        json!({
            "workloads": [
                {"namespace": "shop", "name": "web", "addresses": ["10.1.0.2"], "node": "n1"},
                {"namespace": "a", "name": "db", "addresses": ["10.1.0.3"], "node": "n2"},
                {"namespace": "b", "name": "db", "addresses": ["10.1.0.4"], "node": "n2"},
            ],
            "services": [{"namespace": "shop", "name": "web", "hostname": "web.shop.svc.cluster.local",
                          "addresses": [{"network": "", "address": "10.96.0.1"}]}],
        })
    }

    #[test]
    fn a_service_is_meant_before_a_workload_of_its_name() {
        assert_eq!(
            resolve(&dump(), "web:80").unwrap(),
            "10.96.0.1:80".parse().unwrap()
        );
        assert_eq!(
            resolve(&dump(), "web.shop.svc.cluster.local:80").unwrap(),
            "10.96.0.1:80".parse().unwrap()
        );
        assert_eq!(
            resolve(&dump(), "a/db:80").unwrap(),
            "10.1.0.3:80".parse().unwrap()
        );
        assert_eq!(
            resolve(&dump(), "[fd00::1]:80").unwrap(),
            "[fd00::1]:80".parse().unwrap()
        );
    }

    #[test]
    fn an_ambiguous_or_unknown_name_is_an_error() {
        for destination in ["db:80", "nobody:80", "web", "web:http"] {
            assert!(resolve(&dump(), destination).is_err(), "{destination}");
        }
    }
}
