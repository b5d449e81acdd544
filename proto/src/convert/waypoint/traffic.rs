//! Concerns of traffic.

use tulle_model::policy::traffic::{
    Abort, Algorithm, CookieKey, Descriptor, Entry, FailurePercent, Key, Locality, SlowStart, SuccessRate,
};
use tulle_model::policy::{
    CircuitBreaker, Fault, GlobalRateLimit, LoadBalancing, LocalRateLimit, Outlier, RetryBudget,
};

use super::super::{Cause, Flaw, each, known, required};
use super::{duration, names, route, status, statuses, texts, to_duration, unset, within};
use crate::waypoint as wire;
use crate::waypoint::{fault, key};

pub(super) fn fault(message: wire::Fault) -> Result<Fault, Flaw> {
    let abort = |abort: fault::Abort| {
        Ok(match abort {
            fault::Abort::HttpStatus(number) => {
                Abort::Http(status("http_status", number)?.ok_or_else(|| unset("http_status"))?)
            }
            fault::Abort::GrpcStatus(number) => Abort::Grpc(number),
        })
    };
    Ok(Fault {
        delay: duration("delay", message.delay)?,
        delay_ppm: message.delay_ppm,
        abort: message.abort.map(abort).transpose()?,
        abort_ppm: message.abort_ppm,
        matches: each("matches", message.matches, route::matching)?,
        source_namespaces: names(message.source_namespaces),
    })
}

pub(super) fn local_rate_limit(message: wire::LocalRateLimit) -> Result<LocalRateLimit, Flaw> {
    let per = duration("per", message.per)?.ok_or_else(|| unset("per"))?;
    if per.is_zero() {
        return Err(Flaw::new("per", Cause::Duration(0)));
    }
    Ok(LocalRateLimit {
        requests: message.requests,
        per,
        burst: message.burst,
        keys: each("keys", message.keys, key_of)?,
        matches: each("matches", message.matches, route::matching)?,
        share: message.share,
        keys_max: message.max_keys,
    })
}

pub(super) fn global_rate_limit(message: wire::GlobalRateLimit) -> Result<GlobalRateLimit, Flaw> {
    let entry = |entry: wire::Entry| {
        Ok(Entry {
            name: required("name", entry.name)?,
            key: within("key", entry.key, key_of)?.ok_or_else(|| unset("key"))?,
        })
    };
    let descriptor = |descriptor: wire::Descriptor| {
        Ok(Descriptor {
            entries: each("entries", descriptor.entries, entry)?,
        })
    };
    Ok(GlobalRateLimit {
        provider: required("provider", message.provider)?,
        domain: message.domain.into(),
        descriptors: each("descriptors", message.descriptors, descriptor)?,
        timeout: duration("timeout", message.timeout)?,
        fail_open: message.fail_open,
    })
}

fn key_of(message: wire::Key) -> Result<Key, Flaw> {
    let set = |is: bool, key: Key| if is { Ok(key) } else { Err(unset("by")) };
    match message.by.ok_or_else(|| unset("by"))? {
        key::By::SourceIdentity(is) => set(is, Key::SourceIdentity),
        key::By::SourceNamespace(is) => set(is, Key::SourceNamespace),
        key::By::SourceIp(is) => set(is, Key::SourceIp),
        key::By::Route(is) => set(is, Key::Route),
        key::By::Method(is) => set(is, Key::Method),
        key::By::Header(name) => Ok(Key::Header(required("header", name)?)),
        key::By::Query(name) => Ok(Key::Query(required("query", name)?)),
        key::By::Constant(text) => Ok(Key::Constant(text.into())),
        key::By::Cookie(cookie) => Ok(Key::Cookie(CookieKey {
            name: required("cookie.name", cookie.name)?,
            path: cookie.path.into(),
            ttl: duration("cookie.ttl", cookie.ttl)?,
        })),
    }
}

pub(super) fn circuit(message: wire::CircuitBreaker) -> Result<CircuitBreaker, Flaw> {
    Ok(CircuitBreaker {
        connections: message.max_connections,
        pending: message.max_pending,
        requests: message.max_requests,
        retries: message.max_retries,
        requests_per_connection: message.requests_per_connection,
        age_max: duration("max_age", message.max_age)?,
        connect_timeout: duration("connect_timeout", message.connect_timeout)?,
    })
}

pub(super) fn outlier(message: wire::Outlier) -> Result<Outlier, Flaw> {
    Ok(Outlier {
        consecutive: message.consecutive,
        gateway_errors_only: message.gateway_errors_only,
        codes: statuses("codes", message.codes)?,
        interval: duration("interval", message.interval)?,
        base: duration("base", message.base)?,
        max: duration("max", message.max)?,
        percent_max: message.max_percent,
        success_rate: message.success_rate.map(|rate| SuccessRate {
            endpoints_min: rate.min_endpoints,
            requests_min: rate.min_requests,
            deviations_milli: rate.deviations_milli,
        }),
        failure_percent: message.failure_percent.map(|failure| FailurePercent {
            percent: failure.percent,
            endpoints_min: failure.min_endpoints,
            requests_min: failure.min_requests,
        }),
    })
}

pub(super) fn load_balancing(message: wire::LoadBalancing) -> Result<LoadBalancing, Flaw> {
    let slow_start = |slow: wire::SlowStart| {
        Ok(SlowStart {
            window: duration("window", slow.window)?.ok_or_else(|| unset("window"))?,
            aggression_milli: slow.aggression_milli,
            percent_min: slow.min_percent,
        })
    };
    Ok(LoadBalancing {
        algorithm: match known("algorithm", message.algorithm)? {
            wire::Algorithm::Default => None,
            wire::Algorithm::PeakEwma => Some(Algorithm::PeakEwma),
            wire::Algorithm::LeastRequest => Some(Algorithm::LeastRequest),
            wire::Algorithm::RoundRobin => Some(Algorithm::RoundRobin),
            wire::Algorithm::Random => Some(Algorithm::Random),
            wire::Algorithm::RingHash => Some(Algorithm::RingHash),
            wire::Algorithm::Maglev => Some(Algorithm::Maglev),
        },
        hash: each("hash", message.hash, key_of)?,
        ring_min: message.ring_min,
        choices: message.choices,
        slow_start: within("slow_start", message.slow_start, slow_start)?,
        locality: message.locality.map(|locality| Locality {
            failover: locality
                .failover
                .into_iter()
                .map(|(from, to)| (from.into(), names(to.regions)))
                .collect(),
            distribute: locality
                .distribute
                .into_iter()
                .map(|(from, to)| {
                    let shares = to.percent.into_iter().map(|(to, percent)| (to.into(), percent));
                    (from.into(), shares.collect())
                })
                .collect(),
        }),
    })
}

pub(super) fn retry_budget(message: wire::RetryBudget) -> Result<RetryBudget, Flaw> {
    Ok(RetryBudget {
        percent: message.percent,
        interval: duration("interval", message.interval)?,
        per_second_min: message.min_per_second,
    })
}

impl From<&Fault> for wire::Fault {
    fn from(fault: &Fault) -> Self {
        Self {
            delay: fault.delay.map(to_duration),
            delay_ppm: fault.delay_ppm,
            abort: fault.abort.map(|abort| match abort {
                Abort::Http(status) => fault::Abort::HttpStatus(status.into()),
                Abort::Grpc(status) => fault::Abort::GrpcStatus(status),
            }),
            abort_ppm: fault.abort_ppm,
            matches: fault.matches.iter().map(Into::into).collect(),
            source_namespaces: texts(&fault.source_namespaces),
        }
    }
}

impl From<&LocalRateLimit> for wire::LocalRateLimit {
    fn from(limit: &LocalRateLimit) -> Self {
        Self {
            requests: limit.requests,
            per: Some(to_duration(limit.per)),
            burst: limit.burst,
            keys: limit.keys.iter().map(Into::into).collect(),
            matches: limit.matches.iter().map(Into::into).collect(),
            share: limit.share,
            max_keys: limit.keys_max,
        }
    }
}

impl From<&GlobalRateLimit> for wire::GlobalRateLimit {
    fn from(limit: &GlobalRateLimit) -> Self {
        let entry = |entry: &Entry| wire::Entry {
            name: entry.name.as_ref().into(),
            key: Some((&entry.key).into()),
        };
        let descriptor = |descriptor: &Descriptor| wire::Descriptor {
            entries: descriptor.entries.iter().map(entry).collect(),
        };
        Self {
            provider: limit.provider.as_ref().into(),
            domain: limit.domain.as_ref().into(),
            descriptors: limit.descriptors.iter().map(descriptor).collect(),
            timeout: limit.timeout.map(to_duration),
            fail_open: limit.fail_open,
        }
    }
}

impl From<&Key> for wire::Key {
    fn from(key: &Key) -> Self {
        let by = match key {
            Key::SourceIdentity => key::By::SourceIdentity(true),
            Key::SourceNamespace => key::By::SourceNamespace(true),
            Key::SourceIp => key::By::SourceIp(true),
            Key::Header(name) => key::By::Header(name.as_ref().into()),
            Key::Route => key::By::Route(true),
            Key::Query(name) => key::By::Query(name.as_ref().into()),
            Key::Cookie(cookie) => key::By::Cookie(wire::CookieKey {
                name: cookie.name.as_ref().into(),
                path: cookie.path.as_ref().into(),
                ttl: cookie.ttl.map(to_duration),
            }),
            Key::Method => key::By::Method(true),
            Key::Constant(text) => key::By::Constant(text.as_ref().into()),
        };
        Self { by: Some(by) }
    }
}

impl From<&CircuitBreaker> for wire::CircuitBreaker {
    fn from(circuit: &CircuitBreaker) -> Self {
        Self {
            max_connections: circuit.connections,
            max_pending: circuit.pending,
            max_requests: circuit.requests,
            max_retries: circuit.retries,
            requests_per_connection: circuit.requests_per_connection,
            max_age: circuit.age_max.map(to_duration),
            connect_timeout: circuit.connect_timeout.map(to_duration),
        }
    }
}

impl From<&Outlier> for wire::Outlier {
    fn from(outlier: &Outlier) -> Self {
        Self {
            consecutive: outlier.consecutive,
            gateway_errors_only: outlier.gateway_errors_only,
            codes: outlier.codes.iter().copied().map(Into::into).collect(),
            interval: outlier.interval.map(to_duration),
            base: outlier.base.map(to_duration),
            max: outlier.max.map(to_duration),
            max_percent: outlier.percent_max,
            success_rate: outlier.success_rate.as_ref().map(|rate| wire::SuccessRate {
                min_endpoints: rate.endpoints_min,
                min_requests: rate.requests_min,
                deviations_milli: rate.deviations_milli,
            }),
            failure_percent: outlier
                .failure_percent
                .as_ref()
                .map(|failure| wire::FailurePercent {
                    percent: failure.percent,
                    min_endpoints: failure.endpoints_min,
                    min_requests: failure.requests_min,
                }),
        }
    }
}

impl From<&LoadBalancing> for wire::LoadBalancing {
    fn from(balancing: &LoadBalancing) -> Self {
        let algorithm = match balancing.algorithm {
            None => wire::Algorithm::Default,
            Some(Algorithm::PeakEwma) => wire::Algorithm::PeakEwma,
            Some(Algorithm::LeastRequest) => wire::Algorithm::LeastRequest,
            Some(Algorithm::RoundRobin) => wire::Algorithm::RoundRobin,
            Some(Algorithm::Random) => wire::Algorithm::Random,
            Some(Algorithm::RingHash) => wire::Algorithm::RingHash,
            Some(Algorithm::Maglev) => wire::Algorithm::Maglev,
        };
        Self {
            algorithm: algorithm.into(),
            hash: balancing.hash.iter().map(Into::into).collect(),
            ring_min: balancing.ring_min,
            choices: balancing.choices,
            slow_start: balancing.slow_start.as_ref().map(|slow| wire::SlowStart {
                window: Some(to_duration(slow.window)),
                aggression_milli: slow.aggression_milli,
                min_percent: slow.percent_min,
            }),
            locality: balancing.locality.as_ref().map(Into::into),
        }
    }
}

impl From<&Locality> for wire::Locality {
    fn from(locality: &Locality) -> Self {
        let failover = locality.failover.iter().map(|(from, to)| {
            let regions = wire::Regions { regions: texts(to) };
            (from.as_ref().into(), regions)
        });
        let distribute = locality.distribute.iter().map(|(from, to)| {
            let percent = to.iter().map(|(to, percent)| (to.as_ref().into(), *percent));
            let shares = wire::Shares {
                percent: percent.collect(),
            };
            (from.as_ref().into(), shares)
        });
        Self {
            failover: failover.collect(),
            distribute: distribute.collect(),
        }
    }
}

impl From<&RetryBudget> for wire::RetryBudget {
    fn from(budget: &RetryBudget) -> Self {
        Self {
            percent: budget.percent,
            interval: budget.interval.map(to_duration),
            min_per_second: budget.per_second_min,
        }
    }
}
