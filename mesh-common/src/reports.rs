//! What proxies and control plane agree on about reports, beside the messages themselves.

use crate::names::OVERFLOW;
use crate::proto::telemetry::{Direction, Labels, Protocol};

/// Series that a proxy reports, and that are kept of it.
pub const MAX_SERIES: usize = 2_000;

/// Statuses of gRPC that say that the server failed, and not that the client asked for what it cannot have.
fn is_grpc_failure(status: u32) -> bool {
    matches!(status, 2 | 4 | 8 | 13 | 14 | 15)
}

/// Whether the server, or the way to it, failed; a refusal that is the client's fault does not count. A status of 0 is none.
pub fn has_failed(status: u32, grpc_status: Option<u32>) -> bool {
    status == 0 || status >= 500 || grpc_status.is_some_and(is_grpc_failure)
}

/// The series in which those beyond are counted together.
pub fn beyond(direction: Direction, protocol: Protocol) -> Labels {
    Labels { direction: direction.into(), protocol: protocol.into(), service: OVERFLOW.to_owned(), ..Labels::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_did_wrong_is_no_failure() {
        assert!(has_failed(0, None) && has_failed(500, None) && has_failed(200, Some(14)));
        assert!(!has_failed(404, None) && !has_failed(200, Some(5)) && !has_failed(200, Some(0)));
    }
}
