//! `tulle explain`: what would happen to a connection or a request, by the proxies' own decisions on their own state.

mod hop;
mod page;

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use serde_json::{Value, json};
use tulle_runtime::exit::Exit;

use super::Reading;
use crate::output::Form;
use crate::running::{Component, Kind, RunDir};

/// Say what would happen to a connection or a request, and which policy or route decides
///
/// Where a waypoint is on the way, it says what becomes of a request there, stage by stage. Without a method, path or
/// header, that is `GET /`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tulle explain productpage-v1 details:9080\n  \
    tulle explain reviews-v2 ratings:9080 --method GET --path /admin --header x-team=blue\n  \
    tulle explain shop/web-1 shop/db:443 --sni db.example.com\n  \
    tulle explain shop/reviews-v2 10.96.0.13:9080 --exit-code")]
pub(crate) struct Explain {
    /// The calling workload: NAME or NAMESPACE/NAME
    source: String,
    /// Service, workload or address, with a port: NAME:PORT, NAMESPACE/NAME:PORT, IP:PORT, [IPv6]:PORT
    destination: String,
    #[command(flatten)]
    request: Request,
    /// Exit with 1 when it would be refused
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    reading: Reading,
}

/// The request that a waypoint is asked about.
#[derive(Debug, clap::Args)]
struct Request {
    /// Method of the request
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Its path, with its query
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// A header of it; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The server name in the TLS that begins the connection, where the waypoint does not read requests
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// A token, sent as `Authorization: Bearer`
    #[arg(long, value_name = "TOKEN")]
    jwt: Option<String>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Everything `explain` found out.
#[derive(Debug, serde::Serialize)]
struct Explained {
    source: Value,
    destination: SocketAddr,
    /// What the caller's proxy does.
    outbound: Value,
    /// What the waypoint on the way does; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Value>,
    /// What the destination's proxy does; absent if it is not asked. With a waypoint, that of its first endpoint.
    inbound: Option<Value>,
    verdict: &'static str,
}

pub(crate) async fn run(explain: Explain) -> anyhow::Result<Exit> {
    let run_dir = explain.reading.run_dir();
    let explained = answer(&run_dir, &explain).await?;
    match explain.reading.output() {
        Form::Json => {
            crate::output::print(Form::Json, "explain", &[&explained], || crate::output::table(&[]))?
        }
        Form::Table => print!("{}", page::write(&explained)),
    }
    Ok(if explain.exit_code && explained.verdict == "deny" {
        Exit::Failed
    } else {
        Exit::Ok
    })
}

async fn answer(run_dir: &RunDir, explain: &Explain) -> anyhow::Result<Explained> {
    let proxies = run_dir.of_kind(Kind::Ztunnel)?;
    let first = proxies
        .first()
        .context("no node proxy answers; is the mesh running?")?;
    let dump: Value = first.json("/config_dump").await?;
    let source = find_workload(&dump, &explain.source)?;
    let destination = resolve(&dump, &explain.destination)?;
    let name = json!({
        "namespace": source["namespace"], "name": source["name"], "service_account": source["serviceAccount"],
    });
    let question = |direction: &str, destination: SocketAddr| json!({"direction": direction, "source": name, "destination": destination});
    let outbound: Value = match proxy_of(&proxies, &source) {
        Some(proxy) => proxy.ask("/explain", &question("outbound", destination)).await?,
        None => {
            json!({"plan": {"kind": "plain", "next_hop": destination}, "note": "no node proxy serves the caller"})
        }
    };
    let waypoint = hop::ask(run_dir, &source, &outbound, &explain.request).await?;
    let inbound = match &waypoint {
        Some(waypoint) => hop::server(&dump, &proxies, &source, waypoint).await?,
        None => match answering(&dump, &proxies, &outbound, destination) {
            Some((proxy, target)) => Some(proxy.ask("/explain", &question("inbound", target)).await?),
            None => None,
        },
    };
    Ok(Explained {
        verdict: verdict(&outbound, waypoint.as_ref(), inbound.as_ref()),
        source,
        destination,
        outbound,
        waypoint,
        inbound,
    })
}

/// `deny` if anybody on the way refuses; `reply` if the waypoint answers as it is told to; else `allow`.
fn verdict(outbound: &Value, waypoint: Option<&Value>, inbound: Option<&Value>) -> &'static str {
    let all = [Some(outbound), waypoint, inbound];
    if all.iter().flatten().any(|answer| answer["verdict"] == "deny") {
        "deny"
    } else if waypoint.is_some_and(|answer| answer["verdict"] == "reply") {
        "reply"
    } else {
        "allow"
    }
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
    fn whoever_refuses_on_the_way_decides() {
        let says = |verdict: &str| json!({"verdict": verdict});
        let (allow, deny, reply) = (says("allow"), says("deny"), says("reply"));
        assert_eq!(verdict(&allow, None, None), "allow");
        assert_eq!(verdict(&allow, Some(&allow), Some(&deny)), "deny");
        assert_eq!(verdict(&allow, Some(&deny), None), "deny");
        assert_eq!(verdict(&allow, Some(&reply), None), "reply");
    }

    #[test]
    fn a_header_is_a_name_and_a_value() {
        assert_eq!(header("x-team=a=b"), Ok(("x-team".to_owned(), "a=b".to_owned())));
        assert!(header("x-team").is_err());
    }

    #[test]
    fn an_ambiguous_or_unknown_name_is_an_error() {
        for destination in ["db:80", "nobody:80", "web", "web:http"] {
            assert!(resolve(&dump(), destination).is_err(), "{destination}");
        }
    }
}
