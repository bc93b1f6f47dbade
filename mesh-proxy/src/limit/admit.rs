//! Who finds a place at a port that limits what it has at a time, and how fast its bytes may go.

use mesh_common::identity::Identity;

use super::{Full, LimitHit, Place};
use crate::config::PortLimits;
use crate::error::{Error, Kind};
use crate::http::Upload;
use crate::listen::Context;
use crate::pace::{Pacer, Way};

/// A place for a connection, of which nothing is known yet. `None`: connections are not limited.
pub(crate) fn connection(limits: &PortLimits, ctx: &Context) -> Result<Option<Place>, Error> {
    let Some(limit) = &limits.connections else { return Ok(None) };
    let place = ctx.occupancy.connections.take(&limits.name, limit);
    place.map(Some).map_err(|full| of_connection(full, ctx))
}

/// The connection's caller is known.
pub(crate) fn identified(
    place: &mut Place,
    limits: &PortLimits,
    caller: Option<&Identity>,
    ctx: &Context,
) -> Result<(), Error> {
    let Some(limit) = &limits.connections else { return Ok(()) };
    ctx.occupancy.connections.give(place, limit, caller).map_err(|full| of_connection(full, ctx))
}

/// A place for a request. `None`: requests are not limited.
pub(crate) fn request(limits: &PortLimits, ctx: &Context, caller: Option<&Identity>) -> Result<Option<Place>, Error> {
    let Some(limit) = &limits.requests else { return Ok(None) };
    let places = &ctx.occupancy.requests;
    let mut place = places.take(&limits.name, limit).map_err(|full| of_request(full, ctx))?;
    places.give(&mut place, limit, caller).map_err(|full| of_request(full, ctx))?;
    Ok(Some(place))
}

/// A request whose headers are of that size, and its body. One that is longer than its client says is found out as it comes.
pub(crate) fn size(limits: &PortLimits, ctx: &Context, head: usize, upload: Option<&Upload>) -> Result<(), Error> {
    if let Some(max) = limits.max_head.filter(|max| head as u64 > *max) {
        ctx.telemetry.limit_hit(LimitHit::SizeHeaders);
        return Err(Error::because(Kind::HeadTooLarge, format_args!("limit size_headers of {max}")));
    }
    if let (Some(max), Some(upload)) = (limits.max_body, upload)
        && !upload.limit(max)
    {
        return Err(Error::because(Kind::BodyTooLarge, format_args!("limit size_body of {max}")));
    }
    Ok(())
}

/// What a stream of the caller keeps to. `None`: bytes are not limited that way.
pub(crate) fn pacer(limits: &PortLimits, ctx: &Context, caller: Option<&Identity>, way: Way) -> Option<Box<Pacer>> {
    let rate = match way {
        Way::Up => &limits.up,
        Way::Down => &limits.down,
    };
    let now = tokio::time::Instant::now().into_std();
    let mut pacer = ctx.occupancy.bandwidth.pacer(&limits.name, way, rate.as_ref()?, caller, now);
    pacer.count(&ctx.telemetry, way);
    Some(Box::new(pacer))
}

fn of_connection(full: Full, ctx: &Context) -> Error {
    let hit = match full {
        Full::All(_) => LimitHit::Connections,
        Full::Caller(_) => LimitHit::ConnectionsPerCaller,
    };
    refused(Kind::TooManyConnections, hit, full, ctx)
}

fn of_request(full: Full, ctx: &Context) -> Error {
    let hit = match full {
        Full::All(_) => LimitHit::ConcurrentRequests,
        Full::Caller(_) => LimitHit::ConcurrentRequestsPerCaller,
    };
    refused(Kind::TooManyAtOnce, hit, full, ctx)
}

fn refused(kind: Kind, hit: LimitHit, full: Full, ctx: &Context) -> Error {
    ctx.telemetry.limit_hit(hit);
    let (Full::All(most) | Full::Caller(most)) = full;
    Error::because(kind, format_args!("limit {} of {most}", hit.as_str()))
}
