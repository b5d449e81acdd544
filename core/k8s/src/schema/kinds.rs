//! The tables of fields. `Any` stands where nothing below concerns the mesh.

use super::Shape::{self, Any, Fields, List, Map};
use super::gateway;
use crate::object::Kind;

macro_rules! object {
    ($spec:expr) => {
        Fields(&[
            ("apiVersion", Any),
            ("kind", Any),
            ("metadata", META),
            ("spec", $spec),
            ("status", Any),
        ])
    };
}

/// The shape of a whole document of this kind.
pub(super) fn shape(kind: Kind) -> Shape {
    match kind {
        // Their specs are large, belong to Kubernetes and are mostly not read.
        Kind::Namespace | Kind::Node | Kind::Pod => object!(Any),
        Kind::Service => object!(SERVICE),
        Kind::EndpointSlice => Fields(&[
            ("apiVersion", Any),
            ("kind", Any),
            ("metadata", META),
            ("addressType", Any),
            ("endpoints", Any),
            ("ports", Any),
        ]),
        Kind::ServiceEntry => object!(SERVICE_ENTRY),
        Kind::WorkloadEntry => object!(ENDPOINT),
        Kind::AuthorizationPolicy => object!(AUTHORIZATION_POLICY),
        Kind::PeerAuthentication => object!(PEER_AUTHENTICATION),
        Kind::RequestAuthentication => object!(REQUEST_AUTHENTICATION),
        Kind::GatewayClass => object!(Any),
        Kind::Gateway => object!(gateway::GATEWAY),
        Kind::HttpRoute => object!(gateway::HTTP_ROUTE),
        Kind::GrpcRoute => object!(gateway::GRPC_ROUTE),
        Kind::TlsRoute | Kind::TcpRoute => object!(gateway::STREAM_ROUTE),
        Kind::ReferenceGrant => object!(gateway::REFERENCE_GRANT),
        Kind::BackendTlsPolicy => object!(gateway::BACKEND_TLS_POLICY),
        Kind::TrafficPolicy => object!(gateway::TRAFFIC_POLICY),
        // Their contents belong to whoever made them.
        Kind::ConfigMap | Kind::Secret | Kind::Mesh => Any,
    }
}

const META: Shape = Fields(&[
    ("name", Any),
    ("generateName", Any),
    ("namespace", Any),
    ("uid", Any),
    ("labels", Any),
    ("annotations", Any),
    ("creationTimestamp", Any),
    ("deletionTimestamp", Any),
    ("deletionGracePeriodSeconds", Any),
    ("resourceVersion", Any),
    ("generation", Any),
    ("selfLink", Any),
    ("managedFields", Any),
    ("ownerReferences", Any),
    ("finalizers", Any),
]);

const SERVICE: Shape = Fields(&[
    ("type", Any),
    ("selector", Any),
    ("clusterIP", Any),
    ("clusterIPs", Any),
    (
        "ports",
        List(&Fields(&[
            ("name", Any),
            ("port", Any),
            ("targetPort", Any),
            ("protocol", Any),
            ("appProtocol", Any),
            ("nodePort", Any),
        ])),
    ),
    ("ipFamilies", Any),
    ("ipFamilyPolicy", Any),
    ("publishNotReadyAddresses", Any),
    ("internalTrafficPolicy", Any),
    ("externalTrafficPolicy", Any),
    ("trafficDistribution", Any),
    ("externalName", Any),
    ("externalIPs", Any),
    ("sessionAffinity", Any),
    ("sessionAffinityConfig", Any),
    ("loadBalancerIP", Any),
    ("loadBalancerClass", Any),
    ("loadBalancerSourceRanges", Any),
    ("allocateLoadBalancerNodePorts", Any),
    ("healthCheckNodePort", Any),
]);

const ENDPOINT: Shape = Fields(&[
    ("address", Any),
    ("ports", Any),
    ("labels", Any),
    ("network", Any),
    ("locality", Any),
    ("weight", Any),
    ("serviceAccount", Any),
]);

const SERVICE_ENTRY: Shape = Fields(&[
    ("hosts", Any),
    ("addresses", Any),
    (
        "ports",
        List(&Fields(&[
            ("number", Any),
            ("protocol", Any),
            ("name", Any),
            ("targetPort", Any),
        ])),
    ),
    ("location", Any),
    ("resolution", Any),
    ("endpoints", List(&ENDPOINT)),
    ("workloadSelector", Fields(&[("labels", Any)])),
    ("exportTo", Any),
    ("subjectAltNames", Any),
]);

pub(super) const SELECTOR: Shape = Fields(&[("matchLabels", Any)]);
const TARGET_REF: Shape = Fields(&[("group", Any), ("kind", Any), ("name", Any), ("namespace", Any)]);

const AUTHORIZATION_POLICY: Shape = Fields(&[
    ("selector", SELECTOR),
    ("targetRef", TARGET_REF),
    ("targetRefs", List(&TARGET_REF)),
    ("action", Any),
    ("provider", Fields(&[("name", Any)])),
    (
        "rules",
        List(&Fields(&[
            ("from", List(&Fields(&[("source", SOURCE)]))),
            ("to", List(&Fields(&[("operation", OPERATION)]))),
            (
                "when",
                List(&Fields(&[("key", Any), ("values", Any), ("notValues", Any)])),
            ),
        ])),
    ),
]);

const SOURCE: Shape = Fields(&[
    ("principals", Any),
    ("notPrincipals", Any),
    ("requestPrincipals", Any),
    ("notRequestPrincipals", Any),
    ("namespaces", Any),
    ("notNamespaces", Any),
    ("serviceAccounts", Any),
    ("notServiceAccounts", Any),
    ("ipBlocks", Any),
    ("notIpBlocks", Any),
    ("remoteIpBlocks", Any),
    ("notRemoteIpBlocks", Any),
]);

const OPERATION: Shape = Fields(&[
    ("hosts", Any),
    ("notHosts", Any),
    ("ports", Any),
    ("notPorts", Any),
    ("methods", Any),
    ("notMethods", Any),
    ("paths", Any),
    ("notPaths", Any),
]);

const MTLS: Shape = Fields(&[("mode", Any)]);

const PEER_AUTHENTICATION: Shape = Fields(&[
    ("selector", SELECTOR),
    ("mtls", MTLS),
    ("portLevelMtls", Map(&MTLS)),
]);

const REQUEST_AUTHENTICATION: Shape = Fields(&[
    ("selector", SELECTOR),
    ("targetRef", TARGET_REF),
    ("targetRefs", List(&TARGET_REF)),
    ("jwtRules", List(&JWT_RULE)),
]);

const JWT_RULE: Shape = Fields(&[
    ("issuer", Any),
    ("audiences", Any),
    ("jwksUri", Any),
    ("jwks_uri", Any),
    ("jwks", Any),
    ("fromHeaders", List(&Fields(&[("name", Any), ("prefix", Any)]))),
    ("fromParams", Any),
    ("fromCookies", Any),
    ("outputPayloadToHeader", Any),
    ("forwardOriginalToken", Any),
    (
        "outputClaimToHeaders",
        List(&Fields(&[("header", Any), ("claim", Any)])),
    ),
    ("timeout", Any),
]);
