//! The fields of the mesh settings.

use super::Shape::{self, Any, Fields, List};
use super::gateway::EXTERNAL_AUTH;

const SERVICE: Shape = Fields(&[("service", Any), ("port", Any)]);

pub(super) const SETTINGS: Shape = Fields(&[
    ("trustDomain", Any),
    ("trustDomainAliases", Any),
    ("rootNamespace", Any),
    ("network", Any),
    ("mtlsMode", Any),
    ("excludedNamespaces", Any),
    (
        "providers",
        List(&Fields(&[
            ("name", Any),
            ("extAuthz", EXTERNAL_AUTH),
            ("rateLimit", SERVICE),
            ("tracing", SERVICE),
        ])),
    ),
    (
        "waypoint",
        Fields(&[
            ("sourceIdentity", Any),
            ("pathNormalization", Any),
            ("gatewayIdentities", Any),
            ("accessLog", Any),
            ("accessLogJson", Any),
            ("tracing", Any),
            ("sampling", Any),
            (
                "limits",
                Fields(&[
                    ("tunnels", Any),
                    ("streams", Any),
                    ("bufferBytes", Any),
                    ("headerBytes", Any),
                    ("headTimeout", Any),
                    ("bodyIdle", Any),
                    ("streamIdle", Any),
                    ("drain", Any),
                ]),
            ),
        ]),
    ),
]);
