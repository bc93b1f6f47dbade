//! The body of a response on its way downstream. It carries its exchange along and ends it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};

use super::exchange::Exchange;
use super::paced::Paced;
use super::reply;
use crate::error::{Error, Kind};
use crate::upstream::{Outcome, UpstreamBody};

pub(crate) struct ResponseBody(Option<Streaming>);

struct Streaming {
    content: Content,
    exchange: Box<Exchange>,
}

pub(crate) enum Content {
    Empty,
    /// Ended before its end.
    Broken(Reason),
    Full(Bytes),
    Upstream(UpstreamBody),
    /// No faster than it may.
    Paced(Box<Paced<UpstreamBody>>),
}

impl ResponseBody {
    pub(crate) fn new(content: Content, mut exchange: Box<Exchange>) -> Self {
        let content = match (content, exchange.down.take()) {
            (Content::Upstream(body), Some(pacer)) => Content::Paced(Box::new(Paced::new(body, Some(pacer)))),
            (content, _) => content,
        };
        if content.is_end() {
            exchange.complete();
        }
        Self(Some(Streaming { content, exchange }))
    }

    /// The exchange goes on elsewhere.
    pub(crate) fn none() -> Self {
        Self(None)
    }
}

impl Streaming {
    /// Ends a gRPC response with the status that says why. A reset would look as if it had been cancelled.
    fn too_late<T>(&mut self, kind: Kind) -> Poll<Option<Result<Frame<Bytes>, T>>> {
        let trailers = reply::grpc_trailers(kind);
        self.exchange.trailers(&trailers);
        self.exchange.error = Some(kind.into());
        // What comes from upstream ends with this.
        self.content = Content::Empty;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    /// Ends the response at the next poll. hyper would throw away what it has not written yet, be it the head, so it gets
    /// the opportunity to write it first.
    fn broken<T>(&mut self, error: Error, reason: Reason, cx: &Context<'_>) -> Poll<T> {
        self.exchange.error = Some(error);
        self.content = Content::Broken(reason);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Content {
    fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Broken(_) => false,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Paced(body) => body.is_end_stream(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    /// Its reason is what an HTTP/2 downstream is told; an HTTP/1.1 connection just ends.
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(this) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        let exchange = &mut *this.exchange;
        let polled = match &mut this.content {
            Content::Empty => return Poll::Ready(None),
            Content::Broken(reason) => {
                let reason = *reason;
                this.content = Content::Empty;
                return Poll::Ready(Some(Err(reason.into())));
            }
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                exchange.response_bytes += bytes.len() as u64;
                exchange.complete();
                this.content = Content::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Content::Upstream(body) => Pin::new(body).poll_frame(cx),
            Content::Paced(body) => Pin::new(&mut **body).poll_frame(cx),
        };
        let Poll::Ready(frame) = polled else {
            let kind = ready!(exchange.deadline.poll(exchange.upload.as_ref(), cx));
            if exchange.head.grpc {
                return this.too_late(kind);
            }
            return this.broken(kind.into(), Reason::CANCEL, cx);
        };
        match frame {
            None => {
                exchange.complete();
                this.content = Content::Empty;
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    exchange.response_bytes += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    exchange.trailers(trailers);
                    exchange.observe_trailers(trailers);
                }
                if this.content.is_end() {
                    exchange.complete();
                } else {
                    exchange.deadline.moved(Instant::now);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err((error, reason))) => {
                let gone = exchange.upload.as_ref().and_then(|upload| upload.failed());
                if let Some(outcome) = Outcome::of_error(error.kind).filter(|_| gone.is_none()) {
                    exchange.observe(outcome, Instant::now);
                }
                this.broken(gone.map_or(error, Error::from), reason, cx)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|it| it.content.is_end())
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.as_ref().map(|it| &it.content) {
            None | Some(Content::Empty | Content::Broken(_)) => SizeHint::with_exact(0),
            Some(Content::Full(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Some(Content::Upstream(body)) => body.size_hint(),
            Some(Content::Paced(body)) => body.size_hint(),
        }
    }
}
