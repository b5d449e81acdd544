//! Services that are asked: one backend for each of them, so that what is learnt of their endpoints outlives a question.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::ask::Asked;
use crate::snapshot::Snapshot;
use crate::upstream::backend::{Backend, BackendKey};
use crate::upstream::metrics::Events;

/// Services that are remembered. With more, the one that was asked longest ago is forgotten.
const SERVICES_MAX: usize = 256;

/// The services that are asked.
#[derive(Debug, Default)]
pub struct AskedServices {
    known: Mutex<HashMap<Asked, AskedService>>,
}

#[derive(Debug)]
struct AskedService {
    backend: Arc<Backend>,
    /// The snapshot in which it was last looked up. While it is referred to, no other lies in its place.
    seen: Weak<Snapshot>,
    used: Instant,
}

impl AskedServices {
    /// The backend that a question goes to, as this snapshot has it. What happens to its endpoints is counted in `events`.
    pub fn backend(&self, asked: &Asked, snapshot: &Arc<Snapshot>, events: &Events) -> Arc<Backend> {
        let (backend, is_fresh) = self.known(asked, snapshot, events);
        if !is_fresh {
            // Not under the lock: others ask meanwhile, and see what was there before.
            backend.refresh(&snapshot.mesh, &snapshot.own, &snapshot.settings);
            if let Some(service) = self.known.lock().get_mut(asked) {
                service.seen = Arc::downgrade(snapshot);
            }
        }
        backend
    }

    fn known(&self, asked: &Asked, snapshot: &Arc<Snapshot>, events: &Events) -> (Arc<Backend>, bool) {
        let mut known = self.known.lock();
        if let Some(service) = known.get_mut(asked) {
            service.used = Instant::now();
            let is_fresh = std::ptr::eq(service.seen.as_ptr(), Arc::as_ptr(snapshot));
            return (Arc::clone(&service.backend), is_fresh);
        }
        if known.len() >= SERVICES_MAX
            && let Some(oldest) = known
                .iter()
                .min_by_key(|(_, service)| service.used)
                .map(|(asked, _)| asked.clone())
        {
            known.remove(&oldest);
        }
        let key = BackendKey::Service(asked.service.clone(), asked.port);
        let backend = Arc::new(Backend::new(key, events.clone()));
        let service = AskedService {
            backend: Arc::clone(&backend),
            seen: Weak::new(),
            used: Instant::now(),
        };
        known.insert(asked.clone(), service);
        (backend, false)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::snapshot::Fronts;
    use tokio::time::advance;
    use tulle_model::NamespacedHostname;
    use tulle_model::testing::{mesh, service, workload};
    use tulle_model::waypoint::Settings;

    fn asked(name: &str) -> Asked {
        Asked {
            service: NamespacedHostname::new("shop", format!("{name}.shop.svc.cluster.local")),
            port: 80,
        }
    }

    /// A state of the mesh in which `shop/judge` has so many endpoints.
    fn snapshot(endpoints: u8) -> Arc<Snapshot> {
        let mut mesh = mesh().with(service("shop/judge").vip("10.96.0.2").port(80, 8080));
        for n in 0..endpoints {
            let one = workload(&format!("shop/judge-{n}")).ip(&format!("10.0.0.{}", n + 1));
            mesh = mesh.with(one.serves("shop/judge"));
        }
        Arc::new(Snapshot {
            mesh: mesh.snapshot(),
            settings: Arc::new(Settings::new("shop", "way")),
            own: Arc::new(workload("shop/way").ip("10.0.0.9").build()),
            fronts: Fronts::default(),
        })
    }

    #[tokio::test]
    async fn a_service_that_is_asked_is_one_backend_in_every_snapshot() {
        let (services, events) = (AskedServices::default(), Events::default());
        let endpoints = |backend: &Backend| backend.cluster().map(|cluster| cluster.endpoints().len());
        let first = snapshot(1);
        let one = services.backend(&asked("judge"), &first, &events);
        assert_eq!(endpoints(&one), Some(1));
        let cluster = one.cluster().unwrap();
        let again = services.backend(&asked("judge"), &first, &events);
        assert!(Arc::ptr_eq(&one, &again));
        assert!(
            Arc::ptr_eq(&cluster, &again.cluster().unwrap()),
            "nothing is built again"
        );
        drop(first);
        let later = services.backend(&asked("judge"), &snapshot(2), &events);
        assert!(Arc::ptr_eq(&one, &later));
        assert_eq!(endpoints(&later), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn asked_services_are_bounded() {
        let (services, events, snapshot) = (AskedServices::default(), Events::default(), snapshot(1));
        for n in 0..=SERVICES_MAX {
            advance(Duration::from_millis(1)).await;
            services.backend(&asked(&n.to_string()), &snapshot, &events);
        }
        let known = services.known.lock();
        assert_eq!(known.len(), SERVICES_MAX);
        assert!(!known.contains_key(&asked("0")) && known.contains_key(&asked("256")));
    }
}
