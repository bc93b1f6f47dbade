use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::pace::Pacer;

/// A body that is handed on no faster than its pacer lets it, if it has one. It is read on when the piece that was read last is
/// gone.
#[derive(Debug)]
pub(crate) struct Paced<B> {
    body: B,
    held: Bytes,
    pacer: Option<Box<Pacer>>,
}

impl<B> Paced<B> {
    pub(crate) fn new(body: B, pacer: Option<Box<Pacer>>) -> Self {
        Self { body, held: Bytes::new(), pacer }
    }

    /// Before any of it is read.
    pub(crate) fn slow_down(&mut self, pacer: Box<Pacer>) {
        self.pacer = Some(pacer);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let Some(pacer) = &mut this.pacer else { return Pin::new(&mut this.body).poll_frame(cx) };
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
        let bytes = ready!(pacer.poll(this.held.len(), cx));
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
