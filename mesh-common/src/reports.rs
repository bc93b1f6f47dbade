//! What proxies and control plane agree on about reports, beside the messages themselves.

use crate::names::OVERFLOW;
use crate::proto::telemetry::{Direction, Labels, Protocol};

/// Series that a proxy reports, and that are kept of it.
pub const MAX_SERIES: usize = 2_000;

/// The series in which those beyond are counted together.
pub fn beyond(direction: Direction, protocol: Protocol) -> Labels {
    Labels { direction: direction.into(), protocol: protocol.into(), service: OVERFLOW.to_owned(), ..Labels::default() }
}
