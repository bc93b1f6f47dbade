//! The body of a response on its way downstream. It carries its exchange along and ends it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::Reason;
use http_body::{Body, Frame, SizeHint};

use super::deadline::Deadline;
use super::exchange::Exchange;
use crate::error::Kind;
use crate::upstream::UpstreamBody;

pub(crate) struct ResponseBody(Option<Streaming>);

struct Streaming {
    content: Content,
    exchange: Box<Exchange>,
    deadline: Deadline,
}

pub(crate) enum Content {
    Empty,
    Full(Bytes),
    Upstream(UpstreamBody),
}

impl ResponseBody {
    pub(crate) fn new(content: Content, mut exchange: Box<Exchange>, deadline: Deadline) -> Self {
        if content.is_end() {
            exchange.complete();
        }
        Self(Some(Streaming { content, exchange, deadline }))
    }

    /// The exchange goes on elsewhere.
    pub(crate) fn none() -> Self {
        Self(None)
    }
}

impl Content {
    fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
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
        let body = match &mut this.content {
            Content::Empty => return Poll::Ready(None),
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                exchange.response_bytes += bytes.len() as u64;
                exchange.complete();
                this.content = Content::Empty;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Content::Upstream(body) => body,
        };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            let kind = ready!(this.deadline.poll(exchange.upload.as_ref(), cx));
            exchange.error = Some(kind.into());
            this.content = Content::Empty;
            return Poll::Ready(Some(Err(Reason::CANCEL.into())));
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
                }
                if body.is_end_stream() {
                    exchange.complete();
                } else {
                    this.deadline.moved(Instant::now);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err((error, reason))) => {
                let gone = exchange.upload.as_ref().is_some_and(|upload| upload.failed());
                exchange.error = Some(if gone { Kind::Downstream.into() } else { error });
                this.content = Content::Empty;
                Poll::Ready(Some(Err(reason.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|it| it.content.is_end())
    }

    fn size_hint(&self) -> SizeHint {
        match self.0.as_ref().map(|it| &it.content) {
            None | Some(Content::Empty) => SizeHint::with_exact(0),
            Some(Content::Full(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Some(Content::Upstream(body)) => body.size_hint(),
        }
    }
}
