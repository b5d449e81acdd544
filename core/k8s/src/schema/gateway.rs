//! The fields of the Gateway API's kinds, and of our own policies.

use super::Shape::{self, Any, Fields, List, Map};

pub(super) const GATEWAY: Shape = Fields(&[
    ("gatewayClassName", Any),
    ("listeners", List(&LISTENER)),
    ("addresses", Any),
    ("infrastructure", Any),
    ("backendTLS", Any),
    ("allowedListeners", Any),
    ("tls", Any),
    ("defaultScope", Any),
]);

const LISTENER: Shape = Fields(&[
    ("name", Any),
    ("hostname", Any),
    ("port", Any),
    ("protocol", Any),
    ("tls", Any),
    ("allowedRoutes", ALLOWED_ROUTES),
]);

const ALLOWED_ROUTES: Shape = Fields(&[
    (
        "namespaces",
        Fields(&[("from", Any), ("selector", NAMESPACE_SELECTOR)]),
    ),
    ("kinds", Any),
]);

const NAMESPACE_SELECTOR: Shape = Fields(&[("matchLabels", Any), ("matchExpressions", Any)]);

const PARENT_REF: Shape = Fields(&[
    ("group", Any),
    ("kind", Any),
    ("namespace", Any),
    ("name", Any),
    ("sectionName", Any),
    ("port", Any),
]);

const BACKEND_REF: Shape = Fields(&[
    ("group", Any),
    ("kind", Any),
    ("namespace", Any),
    ("name", Any),
    ("port", Any),
    ("weight", Any),
    ("filters", List(&FILTER)),
]);

const TARGET: Shape = Fields(&[
    ("group", Any),
    ("kind", Any),
    ("namespace", Any),
    ("name", Any),
    ("port", Any),
]);

const KEY_MATCH: Shape = Fields(&[("type", Any), ("name", Any), ("value", Any)]);

const HTTP_MATCH: Shape = Fields(&[
    ("path", Fields(&[("type", Any), ("value", Any)])),
    ("headers", List(&KEY_MATCH)),
    ("queryParams", List(&KEY_MATCH)),
    ("method", Any),
]);

const HEADERS: Shape = Fields(&[
    ("set", List(&Fields(&[("name", Any), ("value", Any)]))),
    ("add", List(&Fields(&[("name", Any), ("value", Any)]))),
    ("remove", Any),
]);

const PATH_MODIFIER: Shape = Fields(&[
    ("type", Any),
    ("replaceFullPath", Any),
    ("replacePrefixMatch", Any),
]);

const FILTER: Shape = Fields(&[
    ("type", Any),
    ("requestHeaderModifier", HEADERS),
    ("responseHeaderModifier", HEADERS),
    (
        "requestMirror",
        Fields(&[
            ("backendRef", TARGET),
            ("percent", Any),
            ("fraction", Fields(&[("numerator", Any), ("denominator", Any)])),
        ]),
    ),
    (
        "requestRedirect",
        Fields(&[
            ("scheme", Any),
            ("hostname", Any),
            ("path", PATH_MODIFIER),
            ("port", Any),
            ("statusCode", Any),
        ]),
    ),
    (
        "urlRewrite",
        Fields(&[("hostname", Any), ("path", PATH_MODIFIER)]),
    ),
    (
        "cors",
        Fields(&[
            ("allowOrigins", Any),
            ("allowCredentials", Any),
            ("allowMethods", Any),
            ("allowHeaders", Any),
            ("exposeHeaders", Any),
            ("maxAge", Any),
        ]),
    ),
    (
        "externalAuth",
        Fields(&[
            ("protocol", Any),
            ("backendRef", TARGET),
            ("grpc", Fields(&[("allowedHeaders", Any)])),
            (
                "http",
                Fields(&[
                    ("path", Any),
                    ("allowedHeaders", Any),
                    ("allowedResponseHeaders", Any),
                ]),
            ),
            ("forwardBody", Fields(&[("maxSize", Any)])),
        ]),
    ),
    ("extensionRef", Any),
]);

const SESSION: Shape = Fields(&[
    ("sessionName", Any),
    ("absoluteTimeout", Any),
    ("idleTimeout", Any),
    ("type", Any),
    ("cookieConfig", Fields(&[("lifetimeType", Any)])),
]);

pub(super) const HTTP_ROUTE: Shape = Fields(&[
    ("parentRefs", List(&PARENT_REF)),
    ("useDefaultGateways", Any),
    ("hostnames", Any),
    (
        "rules",
        List(&Fields(&[
            ("name", Any),
            ("matches", List(&HTTP_MATCH)),
            ("filters", List(&FILTER)),
            ("backendRefs", List(&BACKEND_REF)),
            ("timeouts", Fields(&[("request", Any), ("backendRequest", Any)])),
            (
                "retry",
                Fields(&[("codes", Any), ("attempts", Any), ("backoff", Any)]),
            ),
            ("sessionPersistence", SESSION),
        ])),
    ),
]);

pub(super) const GRPC_ROUTE: Shape = Fields(&[
    ("parentRefs", List(&PARENT_REF)),
    ("useDefaultGateways", Any),
    ("hostnames", Any),
    (
        "rules",
        List(&Fields(&[
            ("name", Any),
            (
                "matches",
                List(&Fields(&[
                    (
                        "method",
                        Fields(&[("type", Any), ("service", Any), ("method", Any)]),
                    ),
                    ("headers", List(&KEY_MATCH)),
                ])),
            ),
            ("filters", List(&FILTER)),
            ("backendRefs", List(&BACKEND_REF)),
            ("sessionPersistence", SESSION),
        ])),
    ),
]);

pub(super) const STREAM_ROUTE: Shape = Fields(&[
    ("parentRefs", List(&PARENT_REF)),
    ("useDefaultGateways", Any),
    ("hostnames", Any),
    (
        "rules",
        List(&Fields(&[("name", Any), ("backendRefs", List(&BACKEND_REF))])),
    ),
]);

pub(super) const REFERENCE_GRANT: Shape = Fields(&[
    (
        "from",
        List(&Fields(&[("group", Any), ("kind", Any), ("namespace", Any)])),
    ),
    (
        "to",
        List(&Fields(&[("group", Any), ("kind", Any), ("name", Any)])),
    ),
]);

const TRAFFIC_TARGET: Shape = Fields(&[
    ("group", Any),
    ("kind", Any),
    ("name", Any),
    ("sectionName", Any),
    ("port", Any),
]);

pub(super) const BACKEND_TLS_POLICY: Shape = Fields(&[
    ("targetRefs", List(&TRAFFIC_TARGET)),
    (
        "validation",
        Fields(&[
            (
                "caCertificateRefs",
                List(&Fields(&[("group", Any), ("kind", Any), ("name", Any)])),
            ),
            ("wellKnownCACertificates", Any),
            ("hostname", Any),
            (
                "subjectAltNames",
                List(&Fields(&[("type", Any), ("hostname", Any), ("uri", Any)])),
            ),
        ]),
    ),
    ("options", Any),
]);

const REQUEST_KEY: Shape = Fields(&[("type", Any), ("name", Any), ("path", Any), ("ttl", Any)]);

const RATE_LIMIT: Shape = Fields(&[
    (
        "local",
        Fields(&[
            ("requests", Any),
            ("per", Any),
            ("burst", Any),
            ("keys", List(&REQUEST_KEY)),
            ("matches", List(&HTTP_MATCH)),
            ("share", Any),
            ("maxKeys", Any),
        ]),
    ),
    (
        "global",
        Fields(&[
            ("provider", Fields(&[("name", Any)])),
            ("domain", Any),
            (
                "descriptors",
                List(&Fields(&[(
                    "entries",
                    List(&Fields(&[("name", Any), ("key", REQUEST_KEY)])),
                )])),
            ),
            ("timeout", Any),
            ("failOpen", Any),
        ]),
    ),
]);

const OUTLIER_DETECTION: Shape = Fields(&[
    ("consecutiveFailures", Any),
    ("gatewayErrorsOnly", Any),
    ("codes", Any),
    ("interval", Any),
    ("baseEjectionTime", Any),
    ("maxEjectionTime", Any),
    ("maxEjectionPercent", Any),
    (
        "successRate",
        Fields(&[
            ("minimumEndpoints", Any),
            ("minimumRequests", Any),
            ("deviations", Any),
        ]),
    ),
    (
        "failurePercentage",
        Fields(&[
            ("threshold", Any),
            ("minimumEndpoints", Any),
            ("minimumRequests", Any),
        ]),
    ),
]);

const LOAD_BALANCING: Shape = Fields(&[
    ("algorithm", Any),
    ("hash", List(&REQUEST_KEY)),
    ("minimumRingSize", Any),
    ("choices", Any),
    (
        "slowStart",
        Fields(&[("window", Any), ("aggression", Any), ("minimumPercent", Any)]),
    ),
    (
        "locality",
        Fields(&[("failover", Map(&Any)), ("distribute", Map(&Map(&Any)))]),
    ),
]);

pub(super) const EXTERNAL_AUTH: Shape = Fields(&[
    ("provider", Fields(&[("name", Any)])),
    ("backendRef", TARGET),
    ("protocol", Any),
    ("path", Any),
    ("allowedHeaders", Any),
    ("allowedResponseHeaders", Any),
    ("maxBodyBytes", Any),
    ("allowPartial", Any),
    ("timeout", Any),
    ("failOpen", Any),
    ("statusOnError", Any),
]);

pub(super) const TRAFFIC_POLICY: Shape = Fields(&[
    ("targetRefs", List(&TRAFFIC_TARGET)),
    (
        "fault",
        Fields(&[
            ("delay", Fields(&[("duration", Any), ("percent", Any)])),
            (
                "abort",
                Fields(&[("httpStatus", Any), ("grpcStatus", Any), ("percent", Any)]),
            ),
            ("matches", List(&HTTP_MATCH)),
            ("sourceNamespaces", Any),
        ]),
    ),
    ("rateLimit", RATE_LIMIT),
    (
        "circuitBreaker",
        Fields(&[
            ("maxConnections", Any),
            ("maxPendingRequests", Any),
            ("maxRequests", Any),
            ("maxRetries", Any),
            ("maxRequestsPerConnection", Any),
            ("maxConnectionAge", Any),
            ("connectTimeout", Any),
        ]),
    ),
    ("outlierDetection", OUTLIER_DETECTION),
    ("loadBalancing", LOAD_BALANCING),
    (
        "retryBudget",
        Fields(&[("percent", Any), ("interval", Any), ("minRetriesPerSecond", Any)]),
    ),
    ("sessionPersistence", SESSION),
    ("externalAuth", EXTERNAL_AUTH),
]);
