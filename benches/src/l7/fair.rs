//! Four endpoints, one of them slow: who gets how many requests, and what that does to their times.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Runtime;
use tulle_model::MeshUpdate;
use tulle_model::policy::traffic::{Algorithm, LoadBalancing};
use tulle_model::policy::{Concern, On, Policy, Target};
use tulle_model::route::{Kind, Origin};
use tulle_model::testing::{service_key, workload};

use super::server::{self, Manner};
use super::waypoint::{Fronting, rule_front};
use super::{Cpu, Device, Figures, Lives, Load, Reached, Site, Version, address, listen, threads};

/// How long the slow one takes.
const SLOW: Duration = Duration::from_millis(20);
/// Endpoints; the last is slow.
const ENDPOINTS: usize = 4;
/// Connections that ask.
const CONNECTIONS: usize = 16;

/// What was measured of a way to choose.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The way.
    pub algorithm: Algorithm,
    /// Requests that each endpoint got; the slow one is the last.
    pub asked: [u64; ENDPOINTS],
    /// Times of all of them.
    pub figures: Figures,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.asked.iter().sum();
        let share = |asked: &u64| format!("{:.1} %", *asked as f64 * 100.0 / all.max(1) as f64);
        let shares: Vec<String> = self.asked.iter().map(share).collect();
        write!(
            f,
            "fairness: {:?}: {} (the last takes {SLOW:?}); {:.0} req/s, p50 {:.0} us, p99 {:.0} us",
            self.algorithm,
            shares.join(", "),
            self.figures.rate,
            self.figures.p50,
            self.figures.p99
        )
    }
}

/// Measures each way for this time.
pub fn measure(length: Duration, mut each: impl FnMut(&Measured)) {
    let (site, clients, servers) = (Site::start(), threads("client"), threads("server"));
    let mut endpoints = Vec::new();
    let mut updates = rule_front(Version::One);
    for number in 0..ENDPOINTS {
        let manner = Manner {
            delay: if number + 1 == ENDPOINTS {
                SLOW
            } else {
                Duration::ZERO
            },
            ..Manner::default()
        };
        let at = serve(&servers, &site, manner.clone());
        let ip = format!("10.0.0.{}", 11 + number);
        let told = format!("{ip}:15008").parse().expect("an address");
        let named = workload(&format!("shop/web-{number}")).sa("web").ip(&ip).hbone();
        updates.push(named.serves("shop/web").into());
        endpoints.push((manner, (told, at)));
    }
    let pods = endpoints.iter().map(|(_, pod)| *pod);
    let fronting = Fronting::over(&site.ca, pods, updates);
    let device = Device {
        name: "waypoint",
        reached: Reached::Tunnel(fronting.address),
        cpu: Cpu::Nobody,
        _lives: Lives::Nothing,
    };
    let mut load = Load::open(&clients, &site, &device, Version::One, CONNECTIONS);
    for algorithm in [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
    ] {
        fronting.apply(vec![MeshUpdate::WaypointPolicy(Arc::new(policy(algorithm)))]);
        // The first requests open connections.
        load.full(&clients, &device, length / 4);
        for (manner, _) in &endpoints {
            manner.asked.store(0, Ordering::Relaxed);
        }
        let figures = load.full(&clients, &device, length);
        let mut asked = [0; ENDPOINTS];
        for (asked, (manner, _)) in asked.iter_mut().zip(&endpoints) {
            *asked = manner.asked.load(Ordering::Relaxed);
        }
        each(&Measured {
            algorithm,
            asked,
            figures,
        });
    }
}

fn serve(servers: &Runtime, site: &Site, manner: Manner) -> std::net::SocketAddr {
    servers.block_on(async {
        let listener = listen().await;
        let at = address(&listener);
        let certificate = site.ca.certificate(&server::identity());
        drop(servers.spawn(server::by_tunnel(listener, certificate, manner)));
        at
    })
}

fn policy(algorithm: Algorithm) -> Policy {
    Policy {
        object: "TrafficPolicy".into(),
        origin: Origin {
            kind: Kind::Policy,
            namespace: "shop".into(),
            name: "balance".into(),
            rule_index: 0,
            rule_name: "".into(),
            created: None,
            generation: 1,
        },
        targets: vec![Target {
            on: On::Service(service_key("shop/web")),
            port: None,
            section: None,
        }],
        dry_run: false,
        concern: Concern::LoadBalancing(LoadBalancing {
            algorithm: Some(algorithm),
            ..LoadBalancing::default()
        }),
    }
}
