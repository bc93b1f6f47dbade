//! Hedging. Envoy hedges whatever a route matches, so requests that may not be sent twice get a route without it.

use envoy_types::pb::envoy::config::route::v3::{HedgePolicy, Route as PbRoute, route};

use super::build::duration;
use super::{ClientKind, Scope, matching};
use crate::model::Policy;

/// RFC 9110, 9.2.2.
const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

/// The route that hedges what may be hedged, and the one for the rest. `method`: the only one that it matches.
pub(super) fn apart(scope: &Scope, policy: &Policy, method: Option<&str>, made: PbRoute) -> Vec<PbRoute> {
    // A gRPC client knows no `hedge_policy`.
    let Some(hedge) = policy.hedge().filter(|_| scope.client != ClientKind::Grpc) else { return vec![made] };
    let hedged = |mut made: PbRoute| {
        if let Some(route::Action::Route(action)) = &mut made.action {
            action.hedge_policy = Some(HedgePolicy { hedge_on_per_try_timeout: true, ..HedgePolicy::default() });
            if let Some(retry) = &mut action.retry_policy {
                retry.per_try_timeout = duration(hedge.after.get());
            }
        }
        made
    };
    let all = hedge.any_method == Some(true);
    match method {
        None if !all => {
            let matched = made.r#match.as_ref().map(|matched| matching::with_methods(matched, &IDEMPOTENT));
            vec![hedged(PbRoute { r#match: matched, ..made.clone() }), made]
        }
        Some(method) if !all && !IDEMPOTENT.contains(&method) => vec![made],
        _ => vec![hedged(made)],
    }
}
