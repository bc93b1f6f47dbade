use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};

use super::http1::Http1Body;
use super::http2::Http2Body;
use crate::error::Error;

/// The body of an upstream's response. Dropped before its end, it ends the exchange with the upstream.
pub(crate) enum UpstreamBody {
    Http1(Http1Body),
    Http2(Http2Body),
}

impl Body for UpstreamBody {
    type Data = Bytes;
    /// What went wrong, and what to tell a downstream that speaks HTTP/2.
    type Error = (Error, Reason);

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(|error| (error, Reason::INTERNAL_ERROR)),
            Self::Http2(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}
