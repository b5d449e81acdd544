//! Model → wire → model is the identity, and a mutated wire message is refused or differs in that place only.

mod generate;

use proptest::prelude::*;
use prost::Message;
use tulle_model::authz::policy::Authorization;
use tulle_model::{Service, Workload};
use tulle_proto::{
    Cause, Malformed, Resource, decode_address, decode_authorization, encode_address, encode_authorization,
    names, resource_name, security, workload as wire,
};

fn through_address(resource: Resource) -> Result<Resource, Malformed> {
    decode_address(
        &resource_name(&resource),
        &encode_address(&resource).expect("no policy"),
    )
}

fn through_policy(policy: &Authorization) -> Result<Authorization, Malformed> {
    match decode_authorization(&policy.key().to_string(), &encode_authorization(policy))? {
        Resource::Authorization(policy) => Ok(policy.as_ref().clone()),
        other => panic!("a policy decoded to {other:?}"),
    }
}

proptest! {
    #[test]
    fn a_workload_round_trips(workload in generate::workload()) {
        let resource = Resource::Workload(workload.into());
        prop_assert_eq!(through_address(resource.clone()), Ok(resource));
    }

    #[test]
    fn a_service_round_trips(service in generate::service()) {
        let resource = Resource::Service(service.into());
        prop_assert_eq!(through_address(resource.clone()), Ok(resource));
    }

    #[test]
    fn a_policy_round_trips(policy in generate::policy()) {
        prop_assert_eq!(through_policy(&policy), Ok(policy));
    }

    #[test]
    fn equal_resources_have_equal_bytes(workload in generate::workload()) {
        let bytes = |workload: &Workload| wire::Workload::from(workload).encode_to_vec();
        let again = Workload::try_from(wire::Workload::from(&workload)).unwrap();
        prop_assert_eq!(bytes(&workload), bytes(&again));
    }

    #[test]
    fn an_unknown_field_in_an_address_is_ignored(workload in generate::workload(), number in 100_u32..10_000) {
        let resource = Resource::Workload(workload.into());
        let mut body = encode_address(&resource).unwrap();
        prost::encoding::uint32::encode(number, &7, &mut body);
        prop_assert_eq!(decode_address(&resource_name(&resource), &body), Ok(resource));
    }

    #[test]
    fn an_unknown_field_in_a_policy_is_refused(policy in generate::policy(), number in 8_u32..10_000) {
        let mut body = encode_authorization(&policy);
        prost::encoding::uint32::encode(number, &7, &mut body);
        let flaw = decode_authorization(&policy.key().to_string(), &body).unwrap_err();
        prop_assert_eq!(flaw.cause, Cause::UnknownField(number));
    }

    #[test]
    fn a_flipped_byte_of_a_policy_never_panics_and_never_hides(
        policy in generate::policy(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
    ) {
        let mut body = encode_authorization(&policy);
        let at = at.index(body.len());
        body[at] ^= 1 << bit;
        // Accepted means that every byte had a meaning: writing it again says the same thing.
        if let Ok(Resource::Authorization(changed)) = decode_authorization(&policy.key().to_string(), &body) {
            prop_assert_eq!(through_policy(&changed), Ok(changed.as_ref().clone()));
        }
    }

    #[test]
    fn a_mutated_workload_is_refused_or_changes_only_there(
        workload in generate::workload(), mutation in 0..WORKLOAD_MUTATIONS.len(), value in value(),
    ) {
        let (mutate, forget) = WORKLOAD_MUTATIONS[mutation];
        let mut message = wire::Workload::from(&workload);
        mutate(&mut message, value);
        if let Ok(mut changed) = Workload::try_from(message) {
            let mut before = workload;
            forget(&mut before);
            forget(&mut changed);
            prop_assert_eq!(changed, before);
        }
    }

    #[test]
    fn a_mutated_service_is_refused_or_changes_only_there(
        service in generate::service(), mutation in 0..SERVICE_MUTATIONS.len(), value in value(),
    ) {
        let (mutate, forget) = SERVICE_MUTATIONS[mutation];
        let mut message = wire::Service::from(&service);
        mutate(&mut message, value);
        if let Ok(mut changed) = Service::try_from(message) {
            let mut before = service;
            forget(&mut before);
            forget(&mut changed);
            prop_assert_eq!(changed, before);
        }
    }

    #[test]
    fn a_mutated_policy_is_refused_or_changes_only_there(
        policy in generate::policy(), mutation in 0..POLICY_MUTATIONS.len(), value in value(),
    ) {
        let (mutate, forget) = POLICY_MUTATIONS[mutation];
        let mut message = security::Authorization::from(&policy);
        mutate(&mut message, value);
        if let Ok(mut changed) = Authorization::try_from(message) {
            let mut before = policy;
            forget(&mut before);
            forget(&mut changed);
            prop_assert_eq!(changed, before);
        }
    }
}

/// Values of enums, ports and prefixes that are sometimes good.
fn value() -> impl Strategy<Value = i32> {
    prop_oneof![any::<i32>(), -1..10, 0..200, 0..70_000]
}

/// Changes one field of a message, and blanks the field of the model that may follow it.
type Mutation<Wire, Model> = (fn(&mut Wire, i32), fn(&mut Model));

const WORKLOAD_MUTATIONS: &[Mutation<wire::Workload, Workload>] = &[
    (
        |w, v| w.tunnel_protocol = v,
        |m| m.tunnel_protocol = Default::default(),
    ),
    (|w, v| w.network_mode = v, |m| m.network_mode = Default::default()),
    (|w, v| w.status = v, |m| m.status = Default::default()),
    (
        |w, v| w.workload_type = v,
        |m| m.workload_type = Default::default(),
    ),
    (|w, v| w.capacity = Some(v.unsigned_abs()), |m| m.capacity = 0),
    (|w, v| w.uid = v.to_string(), |m| m.uid = "u".into()),
    (
        |w, _| w.trust_domain = String::new(),
        |m| m.trust_domain = "".into(),
    ),
    (
        |w, _| w.service_account = String::new(),
        |m| m.service_account = "".into(),
    ),
    (|w, _| w.cluster_id = String::new(), |m| m.cluster_id = "".into()),
    (
        |w, v| w.addresses.push(vec![7; v.unsigned_abs() as usize % 20]),
        |m| m.addresses.clear(),
    ),
    (
        |w, v| w.authorization_policies.push(format!("a/{v}")),
        |m| m.authorization_policies.clear(),
    ),
    (
        |w, _| w.waypoint = Some(Default::default()),
        |m| m.waypoint = None,
    ),
    (
        |w, _| w.network_gateway = Some(Default::default()),
        |m| m.network_gateway = None,
    ),
    (
        |w, v| {
            w.application_tunnel = Some(wire::ApplicationTunnel {
                protocol: v % 3,
                port: v.unsigned_abs(),
            })
        },
        |m| m.application_tunnel = None,
    ),
    (
        |w, v| {
            let ports = vec![wire::Port {
                service_port: v.unsigned_abs(),
                target_port: 1,
                app_protocol: v,
            }];
            w.services.insert("a/b".into(), wire::PortList { ports });
        },
        |m| m.services.clear(),
    ),
];

const SERVICE_MUTATIONS: &[Mutation<wire::Service, Service>] = &[
    (|s, v| s.visibility = v, |m| m.visibility = Default::default()),
    (
        |s, v| {
            s.visibility = v.rem_euclid(2);
            s.extensions.push(wire::Extension {
                name: names::EXPORT_TO.into(),
                config: (v % 3 != 0).then(|| prost_types::Any {
                    type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
                    value: "a b".to_owned().encode_to_vec(),
                }),
            });
        },
        |m| m.visibility = Default::default(),
    ),
    (|s, v| s.ip_families = v, |m| m.ip_families = Default::default()),
    (|s, v| s.canonical = v % 2 == 0, |m| m.canonical = false),
    (
        |s, v| s.ingress_use_waypoint = v % 2 == 0,
        |m| m.ingress_use_waypoint = false,
    ),
    (
        |s, v| {
            s.load_balancing = Some(wire::LoadBalancing {
                mode: v % 5,
                ..Default::default()
            })
        },
        |m| m.load_balancing = None,
    ),
    (
        |s, v| {
            let routing_preference = vec![v % 8];
            s.load_balancing = Some(wire::LoadBalancing {
                routing_preference,
                ..Default::default()
            });
        },
        |m| m.load_balancing = None,
    ),
    (|s, v| s.subject_alt_names.push(v.to_string()), |_| ()),
    (
        |s, v| {
            s.weighted_waypoints.push(wire::WeightedWaypoint {
                destination: None,
                weight: v.cast_unsigned(),
            })
        },
        |_| (),
    ),
    (
        |s, v| {
            let address = wire::NetworkAddress {
                network: "n".into(),
                address: vec![9; 4],
                length: Some(v.cast_unsigned() % 64),
            };
            s.addresses.push(address);
        },
        |m| {
            m.addresses.clear();
            m.cidrs.clear();
        },
    ),
    (
        |s, v| {
            s.ports.push(wire::Port {
                service_port: 1,
                target_port: v.cast_unsigned(),
                app_protocol: v,
            })
        },
        |m| m.ports.clear(),
    ),
];

const POLICY_MUTATIONS: &[Mutation<security::Authorization, Authorization>] = &[
    (
        |p, v| p.scope = v,
        |m| m.scope = tulle_model::authz::policy::Scope::Global,
    ),
    (
        |p, v| p.action = v,
        |m| m.action = tulle_model::authz::policy::Action::Allow,
    ),
    (|p, v| p.dry_run = v % 2 == 0, |m| m.dry_run = false),
    (
        |p, v| {
            p.extensions.push(wire::Extension {
                name: v.to_string(),
                config: None,
            })
        },
        |_| (),
    ),
    (
        |p, v| first_match(p).destination_ports.push(v.cast_unsigned()),
        |m| m.rules.clear(),
    ),
    (|p, _| first_match(p).principals.push(Default::default()), |_| ()),
    (
        |p, v| {
            let address = security::Address {
                address: vec![10, 0, 0, 0],
                length: v.cast_unsigned() % 64,
            };
            first_match(p).source_ips.push(address);
        },
        |m| m.rules.clear(),
    ),
    (|p, _| first_match(p).extensions.push(Default::default()), |_| ()),
];

fn first_match(policy: &mut security::Authorization) -> &mut security::Match {
    if policy.rules.is_empty() {
        policy.rules.push(Default::default());
    }
    let clauses = &mut policy.rules[0].clauses;
    if clauses.is_empty() {
        clauses.push(Default::default());
    }
    let matches = &mut clauses[0].matches;
    if matches.is_empty() {
        matches.push(Default::default());
    }
    &mut matches[0]
}
