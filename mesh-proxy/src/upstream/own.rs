//! Requests that the proxy makes itself, to endpoints of a cluster: their form, and their answers as a whole.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::BodyExt;
use mesh_common::names::HEADER_DOWNSTREAM_PROTOCOL;

use super::{Target, UpstreamBody, Version};
use crate::config::UpstreamHttp;
use crate::error::{Error, Kind};
use crate::http::RequestBody;
use crate::retry::grpc_status;

/// The most that is read of an answer; what has more loses its connection.
pub(crate) const MAX_ANSWER: usize = 64 << 10;

/// `http2`: what the application is to be asked in, whatever is spoken between proxies.
pub(crate) fn request(
    target: &Target,
    version: Version,
    http2: bool,
    host: &Authority,
    path: &PathAndQuery,
    body: RequestBody,
) -> Result<Request<RequestBody>, Error> {
    let mut request = Request::new(body);
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static("mesh-proxy"));
    if target.is_proxy() {
        let spoken = HeaderValue::from_static(if http2 { "h2" } else { "http/1.1" });
        headers.insert(HEADER_DOWNSTREAM_PROTOCOL, spoken);
    }
    let wrong = |error: http::Error| Error::because(Kind::DownstreamProtocol, error);
    match version {
        Version::Http1 => {
            headers.insert(HOST, HeaderValue::from_str(host.as_str()).map_err(|error| wrong(error.into()))?);
            *request.uri_mut() = Uri::from(path.clone());
        }
        Version::Http2 => {
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(host.clone()).path_and_query(path.clone());
            *request.uri_mut() = uri.build().map_err(wrong)?;
            *request.version_mut() = http::Version::HTTP_2;
        }
    }
    Ok(request)
}

/// What to speak to an endpoint. `http2`: the application has to be asked in that.
pub(crate) fn version(target: &Target, http2: bool) -> Version {
    let cluster = target.cluster();
    let http2 = match cluster.http {
        _ if target.is_proxy() || http2 => true,
        UpstreamHttp::Http2 => cluster.tls.is_none() || target.is_secure(),
        UpstreamHttp::Http1 | UpstreamHttp::Downstream => false,
    };
    if http2 { Version::Http2 } else { Version::Http1 }
}

/// To the end, so that the connection can be used again.
pub(crate) async fn read(mut body: UpstreamBody) -> Result<(Bytes, Option<HeaderMap>), Error> {
    let mut data = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|(error, _)| error)?.into_data() {
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if data.len() > MAX_ANSWER {
            break;
        }
    }
    Ok((data.freeze(), trailers))
}

/// Why an answer has no message of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMessage {
    #[error("status {}", .0.as_u16())]
    Http(StatusCode),
    #[error("gRPC status {0}")]
    Grpc(u32),
    #[error("an answer without a gRPC status")]
    Unfinished,
    #[error("an answer that is not of gRPC")]
    Malformed,
}

/// The message of a call that has ended well. The status is in the head where there are no trailers.
pub(crate) fn grpc_answer(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    trailers: Option<&HeaderMap>,
) -> Result<Bytes, NoMessage> {
    if status != StatusCode::OK {
        return Err(NoMessage::Http(status));
    }
    match trailers.and_then(grpc_status).or_else(|| grpc_status(headers)) {
        Some(0) => grpc_message(body).ok_or(NoMessage::Malformed),
        Some(code) => Err(NoMessage::Grpc(code)),
        None => Err(NoMessage::Unfinished),
    }
}

/// The only message in a body of gRPC, as it is in there; `None` if the body is something else.
pub(super) fn grpc_message(mut body: Bytes) -> Option<Bytes> {
    let whole = body.len() >= 5 && body.get_u8() == 0 && body.get_u32() as usize == body.len();
    whole.then_some(body)
}

/// A message as gRPC has it in a body.
pub(crate) fn grpc_frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(length + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or_default());
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}
