//! One HTTP/1 request over a stream that is already connected: admin sockets, probes, the demo application.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest answer that is read.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The peer does not speak HTTP, or the stream broke.
    #[error("the request failed: {0}")]
    Request(#[from] hyper::Error),
    /// The body broke off or is too large.
    #[error("the answer could not be read: {0}")]
    Body(String),
    /// The request itself cannot be written.
    #[error("the request is malformed: {0}")]
    Malformed(#[from] http::Error),
}

/// Sends `GET path` and reads the whole answer. The stream is closed afterwards.
///
/// # Errors
/// When the stream breaks, or the answer is larger than [`ANSWER_BYTES_MAX`].
pub async fn get<S>(
    stream: S,
    host: &str,
    path: &str,
    headers: HeaderMap,
) -> Result<Response<Bytes>, HttpClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::get(path).body(Empty::<Bytes>::new())?;
    *request.headers_mut() = headers;
    send(stream, host, request).await
}

/// Sends `POST path` with a JSON body and reads the whole answer. The stream is closed afterwards.
///
/// # Errors
/// As [`get`].
pub async fn post_json<S>(
    stream: S,
    host: &str,
    path: &str,
    json: String,
) -> Result<Response<Bytes>, HttpClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    post(stream, host, path, "application/json", Bytes::from(json)).await
}

/// Sends `POST path` with a body of a kind and reads the whole answer. The stream is closed afterwards.
///
/// # Errors
/// As [`get`].
pub async fn post<S>(
    stream: S,
    host: &str,
    path: &str,
    kind: &'static str,
    body: Bytes,
) -> Result<Response<Bytes>, HttpClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::post(path)
        .header(http::header::CONTENT_TYPE, kind)
        .body(Full::new(body))?;
    send(stream, host, request).await
}

async fn send<S, B>(
    stream: S,
    host: &str,
    mut request: Request<B>,
) -> Result<Response<Bytes>, HttpClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let host = http::HeaderValue::try_from(host).map_err(http::Error::from)?;
    request.headers_mut().insert(http::header::HOST, host);
    request
        .headers_mut()
        .insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| HttpClientError::Body(error.to_string()))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    tokio::pin!(answer, connection);
    // The connection is driven here, so nothing outlives the request.
    tokio::select! {
        answered = &mut answer => answered,
        broken = &mut connection => {
            broken?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn an_answer_is_read_to_its_end() {
        let (near, mut far) = tokio::io::duplex(1024);
        let server = async move {
            let mut head = vec![0; 1024];
            let len = far.read(&mut head).await.unwrap();
            far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready")
                .await
                .unwrap();
            String::from_utf8(head[..len].to_vec()).unwrap()
        };
        let (answer, request) = tokio::join!(get(near, "tulle", "/healthz/ready", HeaderMap::new()), server);
        assert_eq!(answer.unwrap().body().as_ref(), b"ready");
        assert!(
            request.starts_with("GET /healthz/ready HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.contains("host: tulle\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_broken_stream_is_an_error() {
        let (near, far) = tokio::io::duplex(1024);
        drop(far);
        assert!(get(near, "tulle", "/", HeaderMap::new()).await.is_err());
    }
}
