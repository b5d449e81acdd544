//! `BatchCertificateService`: many certificates in one call, each judged by itself.

use tonic::{Request, Response, Status};
use tulle_proto::node_ca::batch_certificate_service_server::BatchCertificateService;
use tulle_proto::node_ca::result::Outcome;
use tulle_proto::node_ca::{BatchRequest, BatchResponse, Refusal as WireRefusal, Result as WireResult};

use crate::ca::authorize::Refusal;
use crate::ca::service::CaService;

/// Requests in one call.
pub const REQUESTS_MAX: usize = 256;
/// Largest message taken.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

#[tonic::async_trait]
impl BatchCertificateService for CaService {
    async fn create_certificates(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        let caller = self.caller(&request).await?;
        let requests = request.into_inner().requests;
        if requests.len() > REQUESTS_MAX {
            let text = format!("a batch holds at most {REQUESTS_MAX} requests");
            return Err(Status::invalid_argument(text));
        }
        let answers = self.answer_all(&caller, requests).await.into_iter();
        let results = answers.map(|answer| WireResult {
            outcome: Some(match answer {
                Ok(certificate) => Outcome::Certificate(certificate),
                Err(refusal) => Outcome::Refusal(wire(&refusal)),
            }),
        });
        Ok(Response::new(BatchResponse {
            results: results.collect(),
        }))
    }
}

fn wire(refusal: &Refusal) -> WireRefusal {
    let retry_delay = match refusal {
        Refusal::RateLimited { retry_after } => prost_types::Duration::try_from(*retry_after).ok(),
        _ => None,
    };
    WireRefusal {
        reason: refusal.token().to_owned(),
        message: refusal.to_string(),
        retry_delay,
    }
}
