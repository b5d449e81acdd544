//! Endpoints outside of the mesh that are known by name: looked up, judged, remembered for a while.
//!
//! A name may lead anywhere, and whoever answers for it may be anybody. So every address is judged before it is dialled,
//! and it is the address that was judged that is dialled: a second look-up cannot lead elsewhere.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tulle_model::service::Service;
use tulle_model::{NetworkAddress, Reason, Str};
use tulle_xds_client::on_demand::{Held, address_key};

use super::dial::Network;
use super::endpoint::Endpoint;
use crate::context::Waypoint;
use crate::policy::jwt::target::is_forbidden;
use crate::snapshot::Snapshot;

/// Names that are remembered. With more, the one that was asked for longest ago is forgotten.
pub const NAMES_MAX: usize = 1_024;
/// How long the addresses of a name are used without another look.
pub const FRESH: Duration = Duration::from_secs(30);
/// The same after a look that failed, while there are addresses from before.
const FRESH_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long the addresses of a name are used while nobody can say them: after that they may long be somebody else's.
pub const STALE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are remembered.
const ADDRESSES_MAX: usize = 64;

/// What names stand for.
#[derive(Debug, Default)]
pub struct Names {
    known: Mutex<HashMap<Str, Arc<Name>>>,
}

#[derive(Debug)]
struct Name {
    /// When it was asked for.
    used: Mutex<Instant>,
    /// Held while somebody looks: all who want the same name wait for one look.
    found: tokio::sync::Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    addresses: Vec<IpAddr>,
    fresh_until: Option<Instant>,
    /// When somebody said them.
    said: Option<Instant>,
}

/// A name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be looked up: {why}")]
pub struct NotFound {
    /// The name.
    pub name: Str,
    /// What went wrong.
    pub why: String,
}

impl Names {
    /// The addresses of a host. Those from before are used when nobody can say it now, for [`STALE_MAX`].
    ///
    /// # Errors
    /// There are none, and there were none, or not lately.
    pub async fn look_up(&self, host: &Str, network: &dyn Network) -> Result<Vec<IpAddr>, NotFound> {
        let name = self.name(host);
        let mut found = name.found.lock().await;
        if found.fresh_until.is_some_and(|until| Instant::now() < until) {
            return Ok(found.addresses.clone());
        }
        let looked = timeout(LOOK_MAX, network.resolve(host)).await;
        let looked = looked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let is_stale = found.said.is_none_or(|said| said.elapsed() >= STALE_MAX);
        let (addresses, fresh) = match looked {
            Ok(addresses) if !addresses.is_empty() => {
                let addresses = reached(addresses, network);
                found.said = Some(Instant::now());
                (addresses, FRESH)
            }
            nothing if is_stale => {
                *found = Found::default();
                let why = nothing.map_or_else(|error| error.to_string(), |_| "it has no address".to_owned());
                let name = host.clone();
                return Err(NotFound { name, why });
            }
            _ => (std::mem::take(&mut found.addresses), FRESH_AFTER_FAILURE),
        };
        found.addresses.clone_from(&addresses);
        found.fresh_until = Some(Instant::now() + fresh);
        Ok(addresses)
    }

    fn name(&self, host: &Str) -> Arc<Name> {
        let mut known = self.known.lock();
        if let Some(name) = known.get(host) {
            *name.used.lock() = Instant::now();
            return Arc::clone(name);
        }
        if known.len() >= NAMES_MAX
            && let Some(oldest) = known
                .iter()
                .min_by_key(|(_, name)| *name.used.lock())
                .map(|(host, _)| host.clone())
        {
            known.remove(&oldest);
        }
        let name = Arc::new(Name {
            used: Mutex::new(Instant::now()),
            found: tokio::sync::Mutex::default(),
        });
        known.insert(host.clone(), Arc::clone(&name));
        name
    }
}

/// The addresses that there is a route to, in the order of who said them. Without any, all of them: the dial says why.
fn reached(mut addresses: Vec<IpAddr>, network: &dyn Network) -> Vec<IpAddr> {
    let mut unique = HashSet::with_capacity(addresses.len());
    addresses.retain(|address| unique.insert(*address));
    addresses.truncate(ADDRESSES_MAX);
    let there = |address: &&IpAddr| network.has_route(**address);
    let reached: Vec<_> = addresses.iter().filter(there).copied().collect();
    if reached.is_empty() { addresses } else { reached }
}

/// The host that an endpoint stands for, for who asks for `asked`: its own, or any that its wildcard takes.
///
/// # Errors
/// `route_not_found` for a host that the wildcard does not take.
pub fn host_of(endpoint: &Endpoint, asked: Option<&str>) -> Result<Str, Reason> {
    let own = &endpoint.workload.hostname;
    let Some(suffix) = own.strip_prefix('*') else {
        return Ok(own.clone());
    };
    let asked = asked.map(|asked| asked.trim_end_matches('.').to_ascii_lowercase());
    let taken = |asked: &String| asked.len() > suffix.len() && asked.ends_with(suffix);
    asked.filter(taken).map(Str::from).ok_or(Reason::RouteNotFound)
}

/// What an endpoint is asked for by.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The host, as far as it is known.
    pub host: Option<&'a str>,
    /// The address.
    pub address: SocketAddr,
    /// How often the endpoint was tried before: each try of a name takes the next of its addresses.
    pub tried: usize,
}

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The address that is dialled.
    pub address: SocketAddr,
    /// How many addresses the endpoint has.
    pub of: usize,
}

/// Where an endpoint is: at its own address, or where its name leads. What is reached by a tunnel proves who it is; any other
/// address is as good as who wrote it down.
///
/// # Errors
/// It is not reached, see [`find`], it has neither, or it is this waypoint or where nobody may be sent.
pub async fn address(
    waypoint: &Waypoint,
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    wanted: Wanted<'_>,
) -> Result<Place, Reason> {
    match endpoint.address(wanted.address) {
        Some(address) => {
            if !endpoint.is_tunnelled() {
                let near = is_refused(waypoint, snapshot, address.ip().to_canonical());
                let judged = if near { Dial::MustNot } else { Dial::May };
                may_dial(judged, &endpoint.workload.uid.0, address.ip())?;
            }
            Ok(Place { address, of: 1 })
        }
        None if endpoint.original.is_some() => {
            let address = Box::pin(original(waypoint, snapshot, endpoint, wanted.address)).await?;
            Ok(Place { address, of: 1 })
        }
        None if endpoint.is_named() => Box::pin(find(waypoint, snapshot, endpoint, wanted)).await,
        None => Err(Reason::NoHealthyEndpoint),
    }
}

/// Where an endpoint is that stands for the addresses of its service: where it was asked for, if that is one of them.
async fn original(
    waypoint: &Waypoint,
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    asked: SocketAddr,
) -> Result<SocketAddr, Reason> {
    let ip = asked.ip().to_canonical();
    if !endpoint.stands_for(ip) {
        return Err(Reason::NoHealthyEndpoint);
    }
    let own = endpoint.original.as_deref();
    may_dial(
        judge(waypoint, snapshot, ip, own).await,
        &endpoint.workload.uid.0,
        ip,
    )?;
    Ok(SocketAddr::new(
        ip,
        endpoint.target_port.unwrap_or_else(|| asked.port()),
    ))
}

/// Where an endpoint is that is known by name: at one of its addresses, in the order in which they were said. Who was
/// there before in vain comes to the next one.
///
/// # Errors
/// Why it is not reached: nobody asked for it by a name that it takes, the name leads nowhere, or to where nobody may
/// be sent.
pub async fn find(
    waypoint: &Waypoint,
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    wanted: Wanted<'_>,
) -> Result<Place, Reason> {
    let host = host_of(endpoint, wanted.host)?;
    let upstreams = &waypoint.upstreams;
    let addresses = upstreams
        .names
        .look_up(&host, &*upstreams.network)
        .await
        .map_err(|error| {
            tracing::info!(%error, "an endpoint outside of the mesh is not reached");
            Reason::NoHealthyEndpoint
        })?;
    let of = addresses.len();
    let nth = wanted.tried % of.max(1);
    let address = *addresses.get(nth).ok_or(Reason::NoHealthyEndpoint)?;
    may_dial(
        judge(waypoint, snapshot, address.to_canonical(), None).await,
        &host,
        address,
    )?;
    let port = endpoint.target_port.unwrap_or_else(|| wanted.address.port());
    let address = SocketAddr::new(address, port);
    Ok(Place { address, of })
}

/// Whether an address may be dialled that a name outside of the mesh leads to.
enum Dial {
    May,
    MustNot,
    /// Nobody has said whether the mesh has it, so it is not dialled.
    Unknown,
}

/// What a judgement of an address means to who asked for this host, or by this endpoint.
fn may_dial(judged: Dial, host: &str, address: IpAddr) -> Result<(), Reason> {
    match judged {
        Dial::May => Ok(()),
        Dial::MustNot => {
            tracing::warn!(%host, %address, "a way out of the mesh leads to where nobody may be sent");
            Err(Reason::EgressAddressRefused)
        }
        Dial::Unknown => {
            tracing::warn!(%host, %address, "the control plane does not say whether the mesh has this address");
            Err(Reason::NoHealthyEndpoint)
        }
    }
}

/// Whether an address that somebody wrote down for an endpoint is this waypoint, its machine, a link, or what clouds hand out
/// secrets at. That it is a node, or the mesh has it, is no reason against it: pods without tunnels are reached like this.
fn is_refused(waypoint: &Waypoint, snapshot: &Snapshot, address: IpAddr) -> bool {
    let config = &waypoint.config;
    let is_among = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
    (is_forbidden(address) || is_this_waypoint(waypoint, snapshot, address))
        && (is_among(&config.egress_deny) || !is_among(&config.egress_allow))
}

fn is_this_waypoint(waypoint: &Waypoint, snapshot: &Snapshot, address: IpAddr) -> bool {
    let told = waypoint.config.instance_ip.map(|own| own.to_canonical());
    let mut own = snapshot.own.addresses.iter().map(IpAddr::to_canonical);
    told == Some(address) || own.any(|own| own == address)
}

/// Judges an address: not this machine, not a node, not a link or what clouds hand out secrets at, not the control plane,
/// and nothing that the mesh has. A waypoint is told of what it stands in front of alone, so the control plane is asked
/// about the rest. That the service itself, which has its callers go where they meant to, has the address is no reason
/// against it.
async fn judge(waypoint: &Waypoint, snapshot: &Snapshot, address: IpAddr, of: Option<&Service>) -> Dial {
    let config = &waypoint.config;
    let is_among = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
    if is_among(&config.egress_deny) {
        return Dial::MustNot;
    }
    if is_among(&config.egress_allow) {
        return Dial::May;
    }
    let is_near = is_this_waypoint(waypoint, snapshot, address) || snapshot.settings.is_node(address);
    if is_forbidden(address) || is_near || is_control_plane(waypoint, address).await {
        return Dial::MustNot;
    }
    let at = NetworkAddress::new(snapshot.own.network.clone(), address);
    let own = of.map(Service::key);
    let known = |mesh: &tulle_model::Snapshot| {
        let mut services = mesh.services_at(&at);
        mesh.workload_by_address(&at).is_some() || services.any(|one| own.as_ref() != Some(&one.key()))
    };
    // The control plane, asked for an address that the service itself has, answers with that service.
    let is_answer = of.is_some_and(|service| service.addresses.contains(&at));
    match waypoint.mesh.has(|| address_key(&at), known).await {
        Held::Yes if is_answer && !known(&waypoint.mesh.snapshot()) => Dial::May,
        Held::Yes => Dial::MustNot,
        Held::No => Dial::May,
        Held::Unknown => Dial::Unknown,
    }
}

/// Whether an address is one of the control plane's. Where that is configured by a name that leads nowhere now, nobody
/// knows; what runs in the mesh is known as part of it.
async fn is_control_plane(waypoint: &Waypoint, address: IpAddr) -> bool {
    let upstreams = &waypoint.upstreams;
    for host in waypoint.config.control_plane_hosts() {
        let is_it = match host.parse::<IpAddr>() {
            Ok(own) => own.to_canonical() == address,
            Err(_) => {
                let found = upstreams.names.look_up(&host.into(), &*upstreams.network).await;
                found.is_ok_and(|own| own.iter().any(|own| own.to_canonical() == address))
            }
        };
        if is_it {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::dial::{Connecting, Resolving};
    use tokio::time::advance;

    /// Answers in turn; the last answer again and again.
    #[derive(Debug)]
    struct Fake(Mutex<Vec<Option<&'static str>>>);

    impl Network for Fake {
        fn connect(&self, _: SocketAddr) -> Connecting<'_> {
            Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
        }

        fn resolve<'a>(&'a self, _: &'a str) -> Resolving<'a> {
            let mut answers = self.0.lock();
            let answer = if answers.len() > 1 {
                answers.remove(0)
            } else {
                answers[0]
            };
            Box::pin(async move {
                let address = answer.ok_or(io::ErrorKind::NotFound)?;
                Ok(vec![address.parse().unwrap()])
            })
        }
    }

    /// Says four addresses of two families, and has a route to those of one.
    #[derive(Debug)]
    struct OneFamily {
        is_ipv4: Option<bool>,
    }

    impl Network for OneFamily {
        fn connect(&self, _: SocketAddr) -> Connecting<'_> {
            Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
        }

        fn resolve<'a>(&'a self, _: &'a str) -> Resolving<'a> {
            let said = ["2001:db8::2", "2.2.2.2", "2001:db8::1", "2.2.2.2", "1.1.1.1"];
            Box::pin(async move { Ok(said.iter().map(|one| one.parse().unwrap()).collect()) })
        }

        fn has_route(&self, to: IpAddr) -> bool {
            self.is_ipv4 == Some(to.is_ipv4())
        }
    }

    #[tokio::test]
    async fn addresses_keep_their_order_and_those_without_a_route_are_left_out() {
        for (is_ipv4, expect) in [
            (Some(true), &["2.2.2.2", "1.1.1.1"][..]),
            (Some(false), &["2001:db8::2", "2001:db8::1"]),
            (None, &["2001:db8::2", "2.2.2.2", "2001:db8::1", "1.1.1.1"]),
        ] {
            let names = Names::default();
            let (host, network) = ("api.example".into(), OneFamily { is_ipv4 });
            let found = names.look_up(&host, &network).await.unwrap();
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found, expect, "{is_ipv4:?}");
        }
    }

    async fn found(names: &Names, network: &Fake) -> Option<String> {
        let found = names.look_up(&"api.example".into(), network).await.ok()?;
        Some(found[0].to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_after_a_while_and_the_last_good_answer_stays() {
        let network = Fake(Mutex::new(vec![
            None,
            Some("1.1.1.1"),
            Some("2.2.2.2"),
            None,
            Some("3.3.3.3"),
        ]));
        let names = Names::default();
        assert_eq!(found(&names, &network).await, None);
        assert_eq!(found(&names, &network).await.as_deref(), Some("1.1.1.1"));
        assert_eq!(
            found(&names, &network).await.as_deref(),
            Some("1.1.1.1"),
            "it is fresh"
        );
        advance(FRESH).await;
        assert_eq!(found(&names, &network).await.as_deref(), Some("2.2.2.2"));
        advance(FRESH).await;
        assert_eq!(
            found(&names, &network).await.as_deref(),
            Some("2.2.2.2"),
            "nobody says it now"
        );
        advance(FRESH_AFTER_FAILURE).await;
        assert_eq!(found(&names, &network).await.as_deref(), Some("3.3.3.3"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_stays_for_a_day_and_no_longer() {
        let network = Fake(Mutex::new(vec![Some("1.1.1.1"), None]));
        let names = Names::default();
        assert_eq!(found(&names, &network).await.as_deref(), Some("1.1.1.1"));
        advance(STALE_MAX - Duration::from_secs(1)).await;
        assert_eq!(found(&names, &network).await.as_deref(), Some("1.1.1.1"));
        advance(FRESH_AFTER_FAILURE).await;
        assert_eq!(found(&names, &network).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_bounded() {
        let (names, network) = (Names::default(), Fake(Mutex::new(vec![Some("1.1.1.1")])));
        for n in 0..NAMES_MAX + 10 {
            advance(Duration::from_millis(1)).await;
            names
                .look_up(&format!("{n}.example").into(), &network)
                .await
                .unwrap();
        }
        let known = names.known.lock();
        assert_eq!(known.len(), NAMES_MAX);
        assert!(!known.contains_key("0.example") && known.contains_key("1033.example"));
    }
}
