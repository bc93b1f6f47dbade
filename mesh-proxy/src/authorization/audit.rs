//! What was decided, for the audit log.

use super::{Refusal, Verdict};
use crate::listen::{Context, Downstream};
use crate::telemetry::{Asked, Decision, Event};

/// Writes a decision down, if there is an audit log that is to have it. `asked` is not looked at otherwise.
pub(crate) fn record<'a>(
    ctx: &Context,
    event: Event,
    downstream: &Downstream,
    asked: impl FnOnce() -> Option<Asked<'a>>,
    verdict: &Verdict<'_>,
) {
    let Some(log) = ctx.telemetry.audit_log() else { return };
    if log.wants(verdict) {
        let snapshot = ctx.store.load();
        let config_version = snapshot.inbound_version();
        log.write(&Decision { event, downstream, request: asked(), verdict, config_version });
    }
}

/// The same where something else than a policy refuses.
pub(crate) fn record_refusal<'a>(
    ctx: &Context,
    event: Event,
    downstream: &Downstream,
    asked: impl FnOnce() -> Option<Asked<'a>>,
    reason: &str,
) {
    let verdict = Verdict { refused: Some(Refusal::Otherwise(reason)), ..Verdict::default() };
    record(ctx, event, downstream, asked, &verdict);
}
