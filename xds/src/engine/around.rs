//! The world, as translation asks for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tulle_k8s::api::{Gateway, GatewayClass, Namespace, ReferenceGrant};
use tulle_k8s::translate::lookup::{Definition, Lookup, NoDefinition};
use tulle_k8s::translate::waypoint::Binding;
use tulle_k8s::translate::{MeshConfig, service};
use tulle_k8s::{Key, Kind, Object};
use tulle_model::{NamespacedHostname, Service, Str};

use super::compute::services;
use super::world::World;

impl Lookup for World {
    fn mesh(&self) -> &MeshConfig {
        self.mesh()
    }

    fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespace(name)
    }

    fn gateway(&self, namespace: &str, name: &str) -> Option<&Gateway> {
        match self.get(&Key::new(Kind::Gateway, namespace, name))? {
            Object::Gateway(object) => Some(object),
            _ => None,
        }
    }

    fn gateway_class(&self, name: &str) -> Option<&GatewayClass> {
        match self.get(&Key::new(Kind::GatewayClass, "", name))? {
            Object::GatewayClass(object) => Some(object),
            _ => None,
        }
    }

    fn gateways(&self) -> Vec<&Gateway> {
        let all = self
            .of_kind(Kind::Gateway)
            .filter_map(|(_, object)| match object {
                Object::Gateway(object) => Some(object),
                _ => None,
            });
        all.collect()
    }

    fn route(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        let object = self.get(&Key::new(kind, namespace, name));
        object.filter(|_| kind.is_route())
    }

    fn service_of(&self, namespace: &str, name: &str) -> Result<Definition, NoDefinition> {
        let object = self.service(namespace, name).ok_or(NoDefinition::Missing)?;
        if service::is_external_name(object) {
            return Err(NoDefinition::NotInMesh);
        }
        let hostname = service::hostname(&object.metadata, self.mesh());
        let key = Key::new(Kind::Service, namespace, name);
        holding(&key, &hostname, self).ok_or(NoDefinition::Conflicted)
    }

    fn entry_of(&self, namespace: &str, name: &str) -> Result<Vec<Definition>, NoDefinition> {
        let object = self.service_entry(namespace, name).ok_or(NoDefinition::Missing)?;
        let key = Key::new(Kind::ServiceEntry, namespace, name);
        let found: Vec<Definition> = service::hosts(object)
            .filter_map(|host| holding(&key, host, self))
            .collect();
        if found.is_empty() && service::hosts(object).next().is_some() {
            return Err(NoDefinition::Conflicted);
        }
        Ok(found)
    }

    fn hostname(&self, namespace: &str, hostname: &str) -> Option<Definition> {
        let hostname: Str = hostname.into();
        let own = services::winner(&hostname, namespace, self);
        let key = own.or_else(|| services::canonical(&hostname, self))?;
        holding(key, &hostname, self)
    }

    fn grants(&self, namespace: &str) -> Vec<&ReferenceGrant> {
        let grants = self.of_kind(Kind::ReferenceGrant);
        let grants = grants.filter_map(|(key, object)| match object {
            Object::ReferenceGrant(object) if &*key.namespace == namespace => Some(object),
            _ => None,
        });
        grants.collect()
    }

    fn certificates(&self, kind: &str, namespace: &str, name: &str) -> Option<Str> {
        let kind = Kind::find(kind, "")?;
        match self.get(&Key::new(kind, namespace, name))? {
            Object::ConfigMap(object) => object.data.get("ca.crt").cloned(),
            Object::Secret(object) => Some(object.certificates.clone()),
            _ => None,
        }
    }

    fn waypoints_of(&self, service: &NamespacedHostname) -> Vec<Str> {
        binding(service, self)
            .iter()
            .flat_map(|binding| binding.named())
            .map(|waypoint| waypoint.to_string().into())
            .collect()
    }

    fn is_bound(&self, service: &NamespacedHostname) -> bool {
        binding(service, self).is_some_and(|binding| binding.is_bound())
    }

    fn node_addresses(&self) -> Vec<IpAddr> {
        let nodes = self.of_kind(Kind::Node).filter_map(|(_, object)| match object {
            Object::Node(node) => Some(node),
            _ => None,
        });
        let all: BTreeSet<IpAddr> = nodes
            .flat_map(|node| node.status.ips())
            .map(|address| address.to_canonical())
            .collect();
        all.into_iter().collect()
    }
}

/// What an object defines under a host name, if it is the one that holds in its namespace.
fn holding(key: &Key, hostname: &Str, world: &World) -> Option<Definition> {
    let holds = services::winner(hostname, &key.namespace, world) == Some(key);
    let object = world.get(key).filter(|_| holds)?;
    let (found, _) = services::translate(object, hostname, world);
    found.map(|service: Service| Definition {
        is_headless: key.kind == Kind::Service && service.addresses.is_empty(),
        port_names: service::port_names(object),
        service,
    })
}

/// The binding of the definition that holds.
fn binding(service: &NamespacedHostname, world: &World) -> Option<Binding> {
    let key = services::winner(&service.hostname, &service.namespace, world)?;
    Some(services::binding(key, world.get(key)?, world))
}
