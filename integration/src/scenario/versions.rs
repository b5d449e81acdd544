//! Peers of other versions. There is no earlier release yet, so they are played: what a peer without our extensions
//! says and understands, and what a later one might say.

use prost::Message as _;
use tulle_linux::seqpacket::SeqPacket;
use tulle_proto::convert::zds::{Answer, Hello, PACKET_MAX, Request};
use tulle_proto::discovery::DeltaDiscoveryRequest;
use tulle_proto::resume::Layout;
use tulle_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, TRUST_TYPE, security};

use super::fed::{Fed, NODE, resource};
use super::operator::within;
use super::{Figure, Run, Scale, Scenario, scenario};
use crate::TestMesh;
use crate::ads::{self, Stream};
use crate::load::Plan;
use crate::manifest::NAMESPACE as ENROLLED;
use crate::mesh::PATIENCE;
use crate::traffic::gets_through;

pub(super) const SCENARIOS: &[Scenario] = &[scenario(
    "F29",
    60,
    "peers without our extensions, and peers with enumerations and fields of later versions",
    f29,
)];

/// A field that no message of today has.
const LATER_FIELD: [u8; 3] = [0xb8, 0x3e, 1];
/// A value that no enumeration of today has.
const LATER_VALUE: i32 = 77;

/// A policy of the enrolled namespace that refuses nobody there is.
fn policy(name: &str) -> security::Authorization {
    let nobody = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(
            "cluster.local/ns/none/sa/nobody".into(),
        )),
    };
    let one = security::Match {
        principals: vec![nobody],
        ..security::Match::default()
    };
    security::Authorization {
        name: name.into(),
        namespace: ENROLLED.into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Deny.into(),
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches: vec![one] }],
        }],
        ..security::Authorization::default()
    }
}

/// The same policy as a later version might write it.
fn of_later_versions(name: &str) -> Vec<(&'static str, Vec<u8>)> {
    let action = security::Authorization {
        action: LATER_VALUE,
        ..policy(name)
    };
    let scope = security::Authorization {
        scope: LATER_VALUE,
        ..policy(name)
    };
    let mut field = policy(name).encode_to_vec();
    field.extend(LATER_FIELD);
    // A match with a field more: what it would narrow is not known.
    let mut inner = policy(name).rules[0].clauses[0].matches[0].encode_to_vec();
    inner.extend(LATER_FIELD);
    let wrap = |number: u8, bytes: &[u8]| {
        let mut all = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("it is short")];
        all.extend(bytes);
        all
    };
    let rule = wrap(1, &wrap(2, &inner));
    let mut matched = security::Authorization {
        rules: Vec::new(),
        ..policy(name)
    }
    .encode_to_vec();
    matched.extend(wrap(5, &rule));
    vec![
        ("action", action.encode_to_vec()),
        ("scope", scope.encode_to_vec()),
        ("field", field),
        ("match", matched),
    ]
}

fn f29(scale: Scale) -> Run {
    Box::pin(async move {
        let mut mesh = TestMesh::new(&["n1", NODE, "n3"]).await;
        let old = mesh.pod("n3", "old").await;
        let mut fed = Fed::start(mesh, Plan::light()).await;
        let quiet = fed.load.observe(scale.window()).await;
        let begun = tokio::time::Instant::now();
        let (resent, plain) = older_server(&fed).await;
        let (ignored, kept_open, closed) = later_server(&mut fed).await;
        let returned = older_client(&fed).await;
        let pods = older_proxy(&mut fed, &old).await;
        let during = fed.load.report(begun, tokio::time::Instant::now());
        let (established, lost) = fed.load.established();
        Figure::new("F29")
            .expect("older_server_asked_plainly", plain, plain, "true")
            .with("versions_told_to_it", resent)
            .expect("later_field_of_address_ignored", ignored, ignored, "true")
            .expect(
                "later_policy_keeps_last_good",
                format!("{kept_open}/4"),
                kept_open == 4,
                "4/4",
            )
            .expect("later_policy_closes", format!("{closed}/4"), closed == 4, "4/4")
            .expect("older_client_resent", returned, returned == 0, "0")
            .expect(
                "older_proxy_served",
                pods,
                pods == 1,
                "1 pod, its namespace alone",
            )
            .expect(
                "quiet_failed",
                quiet.connects.failed,
                quiet.connects.failed == 0,
                "0",
            )
            // A policy that closes ends what is open, too.
            .with("ended_by_closing", format!("{lost}/{established}"))
            .with("refused_by_closing", during.connects.failed)
    })
}

/// A control plane that offers no types of ours and reads no digests: the proxy comes back with plain versions.
async fn older_server(fed: &Fed) -> (usize, bool) {
    fed.impostor.hang_up();
    let of_address = |requests: &[DeltaDiscoveryRequest]| -> Vec<DeltaDiscoveryRequest> {
        requests
            .iter()
            .filter(|request| request.type_url == ADDRESS_TYPE)
            .cloned()
            .collect()
    };
    within(PATIENCE, async || {
        of_address(&fed.impostor.first_requests()).len() >= 2
    })
    .await;
    let all = fed.impostor.first_requests();
    let versions = of_address(&all)
        .last()
        .map(|request| request.initial_resource_versions.clone())
        .unwrap_or_default();
    let no_trust = all.iter().all(|request| request.type_url != TRUST_TYPE);
    let by_digests = Layout::ALL
        .iter()
        .any(|layout| versions.contains_key(layout.name()));
    let plain = !versions.is_empty() && !by_digests;
    (versions.len(), plain && no_trust)
}

/// A control plane that says things of later versions. Gives whether an address with a field more is taken, how often the
/// last good policy stayed in force, and how often a policy that was never understood refused everybody.
async fn later_server(fed: &mut Fed) -> (bool, usize, usize) {
    let (from, to) = (fed.web.namespace().clone(), fed.echo.address());
    let name = "Kubernetes//Pod/far/later";
    let workload = tulle_proto::workload::Workload {
        name: "later".into(),
        namespace: "far".into(),
        uid: name.into(),
        addresses: vec![vec![192, 0, 2, 11]],
        ..Default::default()
    };
    let kind = tulle_proto::workload::address::Type::Workload(workload);
    let mut body = tulle_proto::workload::Address { r#type: Some(kind) }.encode_to_vec();
    body.extend(LATER_FIELD);
    let answer = fed
        .impostor
        .tell(ADDRESS_TYPE, vec![resource(ADDRESS_TYPE, name, "1", body)], &[])
        .await;
    let ignored = answer.refused.is_none() && fed.dump().await["workloads"].to_string().contains(name);
    let (mut kept, mut closed) = (0, 0);
    for (what, body) in of_later_versions("later") {
        let name = format!("{ENROLLED}/later");
        let told = |version: &str, body| vec![resource(AUTHORIZATION_TYPE, &name, version, body)];
        // With a form that was understood: that one stays.
        let good = policy("later").encode_to_vec();
        let answer = fed
            .impostor
            .tell(AUTHORIZATION_TYPE, told("good", good), &[])
            .await;
        assert_eq!(answer.refused, None);
        let answer = fed
            .impostor
            .tell(AUTHORIZATION_TYPE, told(what, body.clone()), &[])
            .await;
        kept += usize::from(answer.refused.is_some() && gets_through(&from, to).await);
        // Without one: nobody gets in.
        fed.impostor.tell(AUTHORIZATION_TYPE, Vec::new(), &[&name]).await;
        let answer = fed.impostor.tell(AUTHORIZATION_TYPE, told(what, body), &[]).await;
        closed += usize::from(answer.refused.is_some() && !gets_through(&from, to).await);
        fed.impostor.tell(AUTHORIZATION_TYPE, Vec::new(), &[&name]).await;
        assert!(
            within(PATIENCE, async || gets_through(&from, to).await)
                .await
                .is_some(),
            "{}",
            fed.mesh.logs()
        );
    }
    (ignored, kept, closed)
}

/// A client without gzip, digests and types of ours, which comes back with plain versions: what it is told again.
async fn older_client(fed: &Fed) -> usize {
    let control = fed.mesh.world.node(tulle_world::CONTROL).unwrap().ipv4();
    let folders = fed.mesh.mesh.folders();
    let token = tulle_xds::token::create(&folders.state, "n1").unwrap();
    let of = (
        format!("https://{control}:15012"),
        folders.state.join("ca/root-cert.pem"),
        token,
    );
    let back = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut table = ads::Table::default();
            let mut request = ads::first("n1", ADDRESS_TYPE);
            // Nothing but what every client says.
            if let Some(fields) = request.node.as_mut().and_then(|node| node.metadata.as_mut()) {
                fields.fields.retain(|key, _| key == "NODE_NAME");
            }
            let mut resent = 0;
            for _ in 0..2 {
                let mut stream = Stream::open(&ads::node_config(&of.0, &of.1, &of.2), &request)
                    .await
                    .unwrap();
                let response = stream.next(usize::MAX).await.unwrap().decode();
                resent = response.resources.len();
                table.take(&response);
                request.initial_resource_versions = table.held.clone();
            }
            resent
        })
    };
    let node = fed.mesh.world.node("n1").unwrap();
    node.namespace().run_async(back).await.unwrap()
}

/// A node proxy of version 1, without any ability of ours: the agent gives it pods with their namespace and no sockets.
async fn older_proxy(fed: &mut Fed, pod: &tulle_world::Pod) -> usize {
    let mesh = &mut fed.mesh;
    let token = tulle_xds::token::create(&mesh.mesh.folders().state, pod.node()).unwrap();
    mesh.mesh.set_token(pod.node(), &token).unwrap();
    mesh.mesh.start_agent(&mesh.world, pod.node()).unwrap();
    let path = mesh.mesh.folders().run.join(format!("{}.zds", pod.node()));
    assert!(
        within(PATIENCE, async || path.exists()).await.is_some(),
        "{}",
        mesh.logs()
    );
    let socket = SeqPacket::connect(&path).unwrap();
    socket
        .send(&Hello { abilities: None }.encode(), &[])
        .await
        .unwrap();
    let mut served = 0;
    // Until the pod came; the agent may say before that its snapshot is complete.
    while served == 0 {
        let mut buffer = vec![0; PACKET_MAX];
        let received = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await;
        let Ok(Ok(received)) = received else {
            return 0;
        };
        if received.len == 0 {
            return 0;
        }
        let request = Request::decode(&buffer[..received.len]).unwrap();
        served += usize::from(matches!(request, Request::Add(_)) && received.fds.len() == 1);
        socket.send(&Answer::accepted().encode(), &[]).await.unwrap();
    }
    served
}
