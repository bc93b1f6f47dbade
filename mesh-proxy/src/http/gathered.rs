//! What many requests write to one HTTP/2 connection at the same time, written at once.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// An HTTP/2 client connection's own future, which lets the other tasks that are ready go first. A server's cannot wait like
/// that: where a response's head and the end of its stream come together, h2 may send the reset alone.
///
/// A request that puts frames onto a connection wakes the connection's task, and the scheduler runs the task that was woken
/// last before any other. So each request would have a TLS record and a system call for itself, even where more requests are
/// ready to be put onto the same connection. A task that wakes itself goes to the end of the queue instead: when its turn
/// comes, all of them have written, and one record carries them. Where nothing else is ready, its turn comes at once.
pub(crate) struct Gathered<F> {
    connection: F,
    gave_way: bool,
}

impl<F: Future + Unpin> Gathered<F> {
    pub(crate) fn new(connection: F) -> Self {
        Self { connection, gave_way: false }
    }
}

impl<F: Future + Unpin> Future for Gathered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.gave_way = !self.gave_way;
        if self.gave_way {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.connection).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn tasks_that_are_ready_go_first() {
        let order = RefCell::new(Vec::new());
        let connection = Gathered::new(Box::pin(async { order.borrow_mut().push("connection") }));
        let request = async { order.borrow_mut().push("request") };
        tokio::join!(connection, request);
        assert_eq!(*order.borrow(), ["request", "connection"]);
    }
}
