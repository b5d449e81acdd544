//! `TrafficPolicy`: each of its parts is a concern of its own.

use std::time::Duration;

use tulle_model::Str;
use tulle_model::filter::{Ask, ExtAuthz};
use tulle_model::policy::Concern;
use tulle_model::policy::traffic::{
    Abort, Algorithm, CircuitBreaker, CookieKey, Descriptor, Entry, FailurePercent, Fault, GlobalRateLimit,
    Key, LoadBalancing, LocalRateLimit, Locality, Outlier, RetryBudget, SlowStart, SuccessRate,
};
use tulle_model::route::Match;

use super::super::lookup::Lookup;
use super::super::route::{Referred, backend, http_match, session};
use super::{Said, unreadable};
use crate::api::TrafficPolicy;
use crate::api::route::HttpMatch;
use crate::api::traffic as api;

/// What a policy says.
pub(super) fn said(policy: &TrafficPolicy, around: &impl Lookup) -> Said {
    if let Some(of) = &policy.unreadable {
        return unreadable(&of.cause);
    }
    let spec = &policy.spec;
    let mut draft = Draft {
        concerns: Vec::new(),
        flaws: Vec::new(),
    };
    draft.add(spec.fault.as_ref().map(|of| fault(of).map(Concern::Fault)));
    if let Some(limit) = &spec.rate_limit {
        draft.add(
            limit
                .local
                .as_ref()
                .map(|of| local(of).map(Concern::LocalRateLimit)),
        );
        draft.add(
            limit
                .global
                .as_ref()
                .map(|of| global(of, around).map(Concern::GlobalRateLimit)),
        );
    }
    draft.add(
        spec.circuit_breaker
            .as_ref()
            .map(|of| Ok(Concern::Circuit(circuit(of)))),
    );
    draft.add(
        spec.outlier_detection
            .as_ref()
            .map(|of| Ok(Concern::Outlier(outlier(of)))),
    );
    draft.add(
        spec.load_balancing
            .as_ref()
            .map(|of| load_balancing(of).map(Concern::LoadBalancing)),
    );
    draft.add(
        spec.retry_budget
            .as_ref()
            .map(|of| Ok(Concern::RetryBudget(budget(of)))),
    );
    draft.add(
        spec.session_persistence
            .as_ref()
            .map(|of| session(of).map(Concern::Session)),
    );
    if let Some(of) = &spec.external_auth {
        draft
            .concerns
            .push(match asked(of, &policy.metadata.namespace, around) {
                Ok(asked) => Concern::ExtAuthz(Box::new(asked)),
                Err(cause) => {
                    let denied = Concern::DenyAll(cause.as_str().into());
                    draft.flaws.push(format!(
                        "{cause}; everything on its targets is denied until it is corrected"
                    ));
                    denied
                }
            });
    }
    let flaw = (!draft.flaws.is_empty()).then(|| ("Invalid", draft.flaws.join("; ")));
    Said {
        concerns: draft.concerns,
        flaw,
    }
}

struct Draft {
    concerns: Vec<Concern>,
    flaws: Vec<String>,
}

impl Draft {
    /// Adds a concern; one that cannot be translated is left out and told.
    fn add(&mut self, concern: Option<Result<Concern, String>>) {
        match concern {
            Some(Ok(concern)) => self.concerns.push(concern),
            Some(Err(cause)) => self.flaws.push(cause),
            None => {}
        }
    }
}

fn matches(of: &[HttpMatch]) -> Result<Vec<Match>, String> {
    of.iter().map(http_match).collect()
}

fn fault(of: &api::Fault) -> Result<Fault, String> {
    let abort = of.abort.as_ref().and_then(|abort| {
        let http = abort.http_status.map(Abort::Http);
        http.or_else(|| abort.grpc_status.map(Abort::Grpc))
    });
    Ok(Fault {
        delay: of.delay.as_ref().map(|delay| delay.duration.0),
        delay_ppm: of.delay.as_ref().map_or(0, |delay| delay.percent.0),
        abort,
        abort_ppm: of.abort.as_ref().map_or(0, |abort| abort.percent.0),
        matches: matches(&of.matches)?,
        source_namespaces: of.source_namespaces.clone(),
    })
}

fn local(of: &api::LocalRateLimit) -> Result<LocalRateLimit, String> {
    Ok(LocalRateLimit {
        requests: of.requests,
        per: of.per.map_or(Duration::from_secs(1), |span| span.0),
        burst: of.burst,
        keys: of.keys.iter().map(key).collect::<Result<_, _>>()?,
        matches: matches(&of.matches)?,
        share: of.share,
        keys_max: of.max_keys,
    })
}

fn global(of: &api::GlobalRateLimit, around: &impl Lookup) -> Result<GlobalRateLimit, String> {
    let provider = &of.provider.name;
    if !around.mesh().counts(provider) {
        let shown: String = provider.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(format!("the mesh has no provider `{shown}` that counts requests"));
    }
    let entry = |entry: &api::DescriptorEntry| {
        Ok(Entry {
            name: entry.name.clone(),
            key: key(&entry.key)?,
        })
    };
    let descriptor = |descriptor: &api::Descriptor| {
        let entries: Result<Vec<Entry>, String> = descriptor.entries.iter().map(entry).collect();
        Ok(Descriptor { entries: entries? })
    };
    let descriptors: Result<Vec<Descriptor>, String> = of.descriptors.iter().map(descriptor).collect();
    Ok(GlobalRateLimit {
        provider: provider.clone(),
        domain: of.domain.clone(),
        descriptors: descriptors?,
        timeout: of.timeout.map(|span| span.0),
        fail_open: of.fail_open,
    })
}

fn key(of: &api::RequestKey) -> Result<Key, String> {
    let name = || of.name.clone();
    Ok(match &*of.kind {
        "SourceIdentity" => Key::SourceIdentity,
        "SourceNamespace" => Key::SourceNamespace,
        "SourceIP" => Key::SourceIp,
        "Route" => Key::Route,
        "Method" => Key::Method,
        "Header" => Key::Header(name()),
        "Query" => Key::Query(name()),
        "Constant" => Key::Constant(name()),
        "Cookie" => Key::Cookie(CookieKey {
            name: name(),
            path: of.path.clone(),
            ttl: of.ttl.map(|span| span.0),
        }),
        _ => return Err("a key is not known".to_owned()),
    })
}

fn circuit(of: &api::CircuitBreaker) -> CircuitBreaker {
    CircuitBreaker {
        connections: of.max_connections,
        pending: of.max_pending_requests,
        requests: of.max_requests,
        retries: of.max_retries,
        requests_per_connection: of.max_requests_per_connection,
        age_max: of.max_connection_age.map(|span| span.0),
        connect_timeout: of.connect_timeout.map(|span| span.0),
    }
}

fn outlier(of: &api::OutlierDetection) -> Outlier {
    Outlier {
        consecutive: of.consecutive_failures,
        gateway_errors_only: of.gateway_errors_only,
        codes: of.codes.clone(),
        interval: of.interval.map(|span| span.0),
        base: of.base_ejection_time.map(|span| span.0),
        max: of.max_ejection_time.map(|span| span.0),
        percent_max: of.max_ejection_percent,
        success_rate: of.success_rate.as_ref().map(|rate| SuccessRate {
            endpoints_min: rate.minimum_endpoints,
            requests_min: rate.minimum_requests,
            deviations_milli: rate.deviations.map(|number| number.0),
        }),
        failure_percent: of.failure_percentage.as_ref().map(|failure| FailurePercent {
            percent: failure.threshold,
            endpoints_min: failure.minimum_endpoints,
            requests_min: failure.minimum_requests,
        }),
    }
}

fn load_balancing(of: &api::LoadBalancing) -> Result<LoadBalancing, String> {
    let algorithm = match &*of.algorithm {
        "" => None,
        "PeakEwma" => Some(Algorithm::PeakEwma),
        "LeastRequest" => Some(Algorithm::LeastRequest),
        "RoundRobin" => Some(Algorithm::RoundRobin),
        "Random" => Some(Algorithm::Random),
        "RingHash" => Some(Algorithm::RingHash),
        "Maglev" => Some(Algorithm::Maglev),
        _ => return Err("the algorithm is not known".to_owned()),
    };
    Ok(LoadBalancing {
        algorithm,
        hash: of.hash.iter().map(key).collect::<Result<_, _>>()?,
        ring_min: of.minimum_ring_size,
        choices: of.choices,
        slow_start: of.slow_start.as_ref().map(|slow| SlowStart {
            window: slow.window.0,
            aggression_milli: slow.aggression.map(|number| number.0),
            percent_min: slow.minimum_percent,
        }),
        locality: of.locality.as_ref().map(|locality| Locality {
            failover: locality.failover.clone(),
            distribute: locality.distribute.clone(),
        }),
    })
}

fn budget(of: &api::RetryBudget) -> RetryBudget {
    RetryBudget {
        percent: of.percent,
        interval: of.interval.map(|span| span.0),
        per_second_min: of.min_retries_per_second,
    }
}

/// Who is asked. A provider that is not known, or a service that is not there, cannot allow anything.
pub(in crate::translate) fn asked(
    of: &api::ExternalAuth,
    namespace: &Str,
    around: &impl Lookup,
) -> Result<ExtAuthz, String> {
    let ask = match (&of.provider, &of.backend_ref) {
        (Some(provider), None) => {
            if !around.mesh().decides(&provider.name) {
                let shown: String = provider
                    .name
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(64)
                    .collect();
                return Err(format!("the mesh has no provider `{shown}` that decides"));
            }
            Ask::Provider(provider.name.clone())
        }
        (None, Some(reference)) => {
            let by = Referred {
                group: "tulle.dev",
                kind: "TrafficPolicy",
                namespace,
                needs_grant: true,
            };
            let backend = backend(reference, by, around);
            match &*of.protocol {
                "HTTP" => Ask::Http {
                    backend,
                    path: of.path.clone(),
                },
                _ => Ask::Grpc(backend),
            }
        }
        _ => return Err("externalAuth needs one of provider and backendRef".to_owned()),
    };
    Ok(with(of, ask))
}

/// What is asked, given who.
pub(in crate::translate) fn with(of: &api::ExternalAuth, ask: Ask) -> ExtAuthz {
    ExtAuthz {
        ask,
        headers: of.allowed_headers.clone(),
        response_headers: of.allowed_response_headers.clone(),
        body_bytes_max: of.max_body_bytes,
        allow_partial: of.allow_partial,
        timeout: of.timeout.map(|span| span.0),
        fail_open: of.fail_open,
        status_on_error: of.status_on_error,
    }
}
