//! Delivers spans to the collector that the settings name: a service of the mesh, over the waypoint's own connections.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use tulle_model::waypoint::{ProviderKind, Settings};
use tulle_runtime::telemetry::export::{Delivering, DeliveryError};

use super::spans::Transport;
use crate::context::Waypoint;
use crate::policy::ask::{Ask as _, Asked, BEGINS, Over, Question};

/// Bytes of a collector's answer: an empty message, or what it did not like.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Delivers to whichever collector the settings name when spans leave.
#[derive(Debug)]
pub struct ToProvider(pub Weak<Waypoint>);

impl Transport for ToProvider {
    fn post(&self, body: Bytes) -> Delivering {
        let waypoint = self.0.upgrade();
        Box::pin(async move {
            let gone = || DeliveryError::Refused("the waypoint ends".to_owned());
            deliver(&waypoint.ok_or_else(gone)?, body).await
        })
    }
}

/// The service that takes spans, if the settings name one that exists.
#[must_use]
pub fn collector(settings: &Settings) -> Option<Asked> {
    let wanted = settings.telemetry.tracing.as_ref()?;
    let provider = settings
        .providers
        .iter()
        .find(|provider| provider.name == *wanted)?;
    match &provider.kind {
        ProviderKind::Tracing(target) => Some(Asked {
            service: target.service.clone(),
            port: target.port,
        }),
        ProviderKind::ExtAuthz(_) | ProviderKind::RateLimit(_) => None,
    }
}

async fn deliver(waypoint: &Arc<Waypoint>, body: Bytes) -> Result<(), DeliveryError> {
    let settings = Arc::clone(&waypoint.view.load().settings);
    let nobody = || DeliveryError::Refused("the settings name no collector of spans".to_owned());
    let to = collector(&settings).ok_or_else(nobody)?;
    let request = Request::post(format!("http://{}:{}{PATH}", to.service.hostname, to.port))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .map_err(|error| DeliveryError::Refused(error.to_string()))?;
    let question = Question {
        to: &to,
        over: Over::Http2,
        request,
        answer_bytes_max: ANSWER_BYTES_MAX,
        // Spans of many requests go together, and no request waits for them.
        hops: BEGINS,
    };
    let answer = waypoint.ask(question).await;
    let answer = answer.map_err(|error| DeliveryError::Unreachable(error.to_string()))?;
    // Without a body, the trailers are the headers.
    let of = |headers: &HeaderMap| headers.get("grpc-status").cloned();
    let grpc = of(&answer.trailers).or_else(|| of(answer.response.headers()));
    verdict(answer.response.status(), grpc.as_ref())
}

/// Which answers let the message be sent again is OTLP's to say.
fn verdict(status: StatusCode, grpc: Option<&HeaderValue>) -> Result<(), DeliveryError> {
    match grpc.and_then(|grpc| grpc.to_str().ok()) {
        Some("0") if status == StatusCode::OK => Ok(()),
        Some(code @ ("1" | "4" | "8" | "10" | "11" | "14" | "15")) => {
            Err(DeliveryError::Unreachable(format!("grpc-status {code}")))
        }
        Some(code) => Err(DeliveryError::Refused(format!(
            "status {status}, grpc-status {code}"
        ))),
        None if status.is_server_error() => Err(DeliveryError::Unreachable(format!("status {status}"))),
        None => Err(DeliveryError::Refused(format!("status {status}, no grpc-status"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_sent_again_and_what_stays_is_not() {
        let of = |status, grpc: Option<&'static str>| {
            let grpc = grpc.map(HeaderValue::from_static);
            verdict(StatusCode::from_u16(status).unwrap(), grpc.as_ref())
        };
        assert!(of(200, Some("0")).is_ok());
        assert!(matches!(of(200, Some("14")), Err(DeliveryError::Unreachable(_))));
        assert!(matches!(of(503, None), Err(DeliveryError::Unreachable(_))));
        assert!(matches!(of(200, Some("12")), Err(DeliveryError::Refused(_))));
        assert!(matches!(of(200, None), Err(DeliveryError::Refused(_))));
    }
}
