//! Carries questions of policies over the waypoint's own connections: through tunnels where the service is in the mesh,
//! and outside of it as requests go there, with the same judgement of where its name leads.

mod asked_services;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use tulle_identity::RootSource;
use tulle_model::{NamespacedHostname, Reason};
use tulle_transport::Baggage;

use super::ask::{Answer, Ask, AskError, Asked, Over, Question};
use super::jwt::Fetch;
use super::jwt::https::Https;
use super::jwt::jwks::FetchError;
use super::jwt::keys::JWKS_BYTES_MAX;
use super::jwt::target::Target;
use crate::context::Waypoint;
use crate::http::body::RequestBody;
use crate::http::interim::Hears;
use crate::upstream::backend::Backend;
use crate::upstream::cluster::{self, Pick};
use crate::upstream::connect::{self, Behalf, To};
use crate::upstream::endpoint::{Endpoint, EndpointState};
use crate::upstream::origination::Origination;
use crate::upstream::outcome::{self, Outcome};
use crate::upstream::pool::{Bounds, Key, LeaseError, Version};
use crate::upstream::walk::Walk;

pub use asked_services::AskedServices;

impl Ask for Waypoint {
    fn ask<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Answer, AskError>> {
        Box::pin(self.carry(question))
    }
}

/// Why a try brought no answer.
enum Failed {
    /// Nothing was sent: another endpoint, or another address, may do.
    Unreached(String),
    /// It may have been heard.
    Asked(AskError),
}

impl Waypoint {
    async fn carry(&self, question: Question<'_>) -> Result<Answer, AskError> {
        let Asked { service, port } = question.to;
        let snapshot = self.view.load();
        let events = &self.metrics.upstream.events;
        let backend = self.asked_services.backend(question.to, &snapshot, events);
        let asked = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
        let mut walk = Walk::default();
        let mut last = AskError::NoEndpoint(service.clone());
        let pick = |tried: &[Arc<EndpointState>]| {
            backend.pick(&cluster::Ask {
                now: backend.now(),
                tried,
                ..cluster::Ask::default()
            })
        };
        // Held until the answer is whole: the endpoint counts the question until then.
        while let Some(mut pick) = pick(walk.tried()) {
            let address = match walk.turn_to((self, &snapshot), &pick, None, asked).await {
                None => break,
                Some(Ok(address)) => address,
                Some(Err(Reason::NoHealthyEndpoint)) => continue,
                Some(Err(reason)) => {
                    last = AskError::Connection(format!("{service}: {reason}"));
                    continue;
                }
            };
            match self.put(&question, (&backend, &mut pick), address).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Unreached(why)) => last = AskError::Connection(why),
                Err(Failed::Asked(error)) => return Err(error),
            }
        }
        Err(last)
    }

    /// Puts a question to one endpoint, at one address.
    async fn put(
        &self,
        question: &Question<'_>,
        (backend, pick): (&Backend, &mut Pick),
        address: SocketAddr,
    ) -> Result<Answer, Failed> {
        let Asked { service, port } = question.to;
        let cluster = Arc::clone(pick.cluster());
        let behalf = Behalf {
            client: SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)),
            source: None,
            baggage: Baggage::default(),
            host: Some(service.hostname.to_string()),
            hops: question.hops,
        };
        let endpoint = pick.endpoint().clone();
        let tls = cluster.tls_to(&endpoint);
        let key = key(question, &endpoint, address, tls);
        let to = To {
            endpoint: &endpoint,
            address,
            tls,
            speaks: Some(key.version),
        };
        let bounds = Bounds {
            breaker: &cluster.state().breaker,
            limits: cluster.policy().limits,
        };
        let mut request = question.request.clone().map(RequestBody::text);
        loop {
            let open = || connect::open(self, to, &behalf, bounds.limits.connect);
            let broken =
                |error: &dyn std::fmt::Display| Failed::Asked(AskError::Connection(error.to_string()));
            let mut lease = match self.upstreams.http.lease(&key, bounds, open).await {
                Ok(lease) => lease,
                Err(LeaseError::Open(error)) => {
                    pick.settle(&connect::outcome_of(&error), backend.now());
                    // Every instance of the waypoint in front of it says so.
                    if connect::reason(&error) == Reason::LoopDetected {
                        return Err(Failed::Asked(AskError::Loop));
                    }
                    return Err(Failed::Unreached(error.to_string()));
                }
                Err(LeaseError::Overflow(_)) => return Err(Failed::Asked(AskError::Busy)),
            };
            let reused = lease.reused;
            match lease.send(request, Hears::default()).await {
                Ok(response) => {
                    let (parts, body) = response.into_parts();
                    pick.settle(&answered(parts.status.as_u16()), backend.now());
                    let collected = Limited::new(body, question.answer_bytes_max).collect().await;
                    let collected = collected.map_err(|error| match error.downcast::<hyper::Error>() {
                        Ok(error) => broken(&error),
                        Err(_) => Failed::Asked(AskError::TooLong),
                    })?;
                    lease.finish();
                    let trailers = collected.trailers().cloned().unwrap_or_default();
                    return Ok(Answer {
                        response: Response::from_parts(parts, collected.to_bytes()),
                        trailers,
                    });
                }
                // A connection that waited may be gone; nothing was sent over it.
                Err(failed) => match failed.unsent {
                    Some(unsent) if reused => request = *unsent,
                    _ => {
                        pick.settle(&Outcome::Reset, backend.now());
                        return Err(broken(&failed.error));
                    }
                },
            }
        }
    }
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered(outcome::Answer {
        status,
        grpc: None,
        hint: None,
    })
}

/// Fetches keys of tokens: from services of the mesh by its tunnels, else by HTTPS.
#[derive(Debug)]
pub struct Fetcher(pub Weak<Waypoint>);

impl Fetch for Fetcher {
    fn fetch<'a>(&'a self, target: &'a Target, hops: u8) -> BoxFuture<'a, Result<Bytes, FetchError>> {
        Box::pin(self.get(target, hops))
    }
}

impl Fetcher {
    async fn get(&self, target: &Target, hops: u8) -> Result<Bytes, FetchError> {
        let gone = || FetchError::Connection("the waypoint ends".to_owned());
        let waypoint = self.0.upgrade().ok_or_else(gone)?;
        let Some(service) = in_mesh(&waypoint, target) else {
            let https = Https {
                roots: RootSource::from_setting(&waypoint.config.jwks_roots),
                network: Arc::clone(&waypoint.upstreams.network),
            };
            drop(waypoint);
            // Without TLS it refuses by itself: that is for services of the mesh.
            return https.get(target).await;
        };
        let request = Request::get(&*target.path)
            .header(http::header::HOST, target.authority())
            .body(Bytes::new())
            .map_err(|error| FetchError::Connection(error.to_string()))?;
        let to = Asked {
            service,
            port: target.port,
        };
        let question = Question {
            to: &to,
            over: Over::Http1,
            request,
            answer_bytes_max: JWKS_BYTES_MAX,
            hops,
        };
        let answer = waypoint.ask(question).await.map_err(|error| match error {
            AskError::TooLong => FetchError::TooLong,
            AskError::Loop => FetchError::Loop,
            other => FetchError::Connection(other.to_string()),
        })?;
        let status = answer.response.status();
        if status != http::StatusCode::OK {
            return Err(FetchError::Status(status.as_u16()));
        }
        Ok(answer.response.into_body())
    }
}

fn in_mesh(waypoint: &Arc<Waypoint>, target: &Target) -> Option<NamespacedHostname> {
    let snapshot = waypoint.view.load();
    let namespace = &waypoint.identity.namespace;
    let service = snapshot.mesh.service_by_hostname(namespace, &target.host)?;
    // An address of HTTPS is spoken to with TLS of its own, which is not what the mesh's tunnels carry.
    (!target.is_https && service.ports.contains_key(&target.port)).then(|| service.key())
}

/// What a connection for a question may be shared by.
fn key(question: &Question<'_>, endpoint: &Endpoint, address: SocketAddr, tls: Option<&Origination>) -> Key {
    Key {
        workload: endpoint.workload.uid.clone(),
        address,
        expected: endpoint.proven(),
        source: None,
        hops: endpoint.counted(question.hops),
        version: match question.over {
            Over::Http1 => Version::Http1,
            Over::Http2 => Version::Http2,
        },
        tls: tls.map(|tls| Arc::clone(tls.policy())),
    }
}
