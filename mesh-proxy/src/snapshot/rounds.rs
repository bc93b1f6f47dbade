//! Splits between clusters outlive the resources that they are in: what replaces one goes on where its splits stand, or
//! their shares would be wrong after every change of something else.
//!
//! In: the snapshot, and a resource that nobody shares yet. Out: the same resource.

use std::sync::Arc;

use super::{Resource, Snapshot};
use crate::config::{Action, FilterChain, Listener, NetworkFilter, RouteTable};

pub(super) fn go_on(resource: &mut Resource, former: &Snapshot) {
    match resource {
        Resource::Routes(table) => {
            let former = former.routes.get(table.name.as_str());
            if let (Some(table), Some(former)) = (Arc::get_mut(table), former) {
                of_table(table, &former.value);
            }
        }
        Resource::Listener(listener) => {
            let former = former.listeners.get(listener.name.as_str());
            if let (Some(listener), Some(former)) = (Arc::get_mut(listener), former) {
                of_listener(listener, &former.value);
            }
        }
        Resource::Cluster(_) | Resource::Endpoints(_) | Resource::Name(..) => {}
    }
}

/// The same route is one of a virtual host of the same name, for the same requests.
fn of_table(table: &mut RouteTable, former: &RouteTable) {
    for host in &mut table.virtual_hosts {
        let Some(before) = former.virtual_hosts.iter().find(|it| it.name == host.name) else { continue };
        for route in host.routes.iter_mut().filter_map(Arc::get_mut) {
            let Action::Forward(forward) = &mut route.action else { continue };
            if forward.clusters.choices().len() < 2 {
                continue;
            }
            if let Some(Action::Forward(it)) =
                before.routes.iter().find(|it| it.matches == route.matches).map(|it| &it.action)
            {
                forward.clusters.go_on_from(&it.clusters);
            }
        }
    }
}

/// Byte streams and datagrams.
fn of_listener(listener: &mut Listener, former: &Listener) {
    let before = || former.chains.iter().chain(&former.default_chain);
    for chain in listener.chains.iter_mut().chain(&mut listener.default_chain) {
        if let Some(before) = before().find(|it| it.matches == chain.matches) {
            of_chain(chain, before);
        }
    }
    if let (Some(udp), Some(before)) = (listener.udp.as_mut().and_then(Arc::get_mut), &former.udp) {
        udp.clusters.go_on_from(&before.clusters);
    }
}

fn of_chain(chain: &mut FilterChain, former: &FilterChain) {
    if let (NetworkFilter::Tcp(tcp), NetworkFilter::Tcp(before)) = (&mut chain.filter, &former.filter)
        && let Some(tcp) = Arc::get_mut(tcp)
    {
        tcp.clusters.go_on_from(&before.clusters);
    }
}
