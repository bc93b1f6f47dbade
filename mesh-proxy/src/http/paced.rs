use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::pace::Pacer;

/// A body that is handed on no faster than its pacer lets it. It is read on when the piece that was read last is gone.
pub(crate) struct Paced<B> {
    body: B,
    held: Bytes,
    pacer: Box<Pacer>,
}

impl<B> Paced<B> {
    pub(crate) fn new(body: B, pacer: Box<Pacer>) -> Self {
        Self { body, held: Bytes::new(), pacer }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) if !data.is_empty() => this.held = data,
                Ok(nothing) => return Poll::Ready(Some(Ok(Frame::data(nothing)))),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let bytes = ready!(this.pacer.poll(this.held.len(), cx));
        Poll::Ready(Some(Ok(Frame::data(this.held.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (held, rest) = (self.held.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}
