//! What the names of clusters and listeners stand for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::names;

use super::{Scope, inbound};
use crate::model::{Destination, Endpoint, Model, Port, Protocol, Service, Workload};

/// What a cluster's name stands for.
pub(super) enum Target<'m> {
    Upstream(Upstream<'m>),
    /// A port of the asker's own application.
    Inbound(u16, Protocol),
    Passthrough,
}

/// A service port, or one workload of it.
pub(super) struct Upstream<'m> {
    pub service: &'m Service,
    pub port: &'m Port,
    /// Only this workload, at this address.
    pub only: Option<(&'m Arc<Workload>, SocketAddr)>,
    /// Byte streams, or datagrams, instead of HTTP.
    pub stream: bool,
}

impl<'m> Target<'m> {
    pub fn cluster(model: &'m Model, scope: &Scope, name: &str) -> Option<Self> {
        if name == names::CLUSTER_PASSTHROUGH {
            return Some(Self::Passthrough);
        }
        if let Some(number) = name.strip_prefix("inbound:") {
            let number: u16 = number.parse().ok()?;
            let (port, protocol) = inbound::ports(model, scope).into_iter().find(|(port, _)| *port == number)?;
            return Some(Self::Inbound(port, protocol));
        }
        Upstream::cluster(model, name).map(Self::Upstream)
    }
}

impl<'m> Upstream<'m> {
    pub fn cluster(model: &'m Model, name: &str) -> Option<Self> {
        if let Some(name) = name.strip_prefix(names::UDP_PREFIX) {
            return Self::udp_port(model, name);
        }
        let (name, stream) = match name.strip_prefix("tcp:") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let upstream = match name.strip_prefix(names::DIRECT_PREFIX) {
            Some(address) => Self::direct(model, address.parse().ok()?)?,
            None => Self::service_port(model, name)?,
        };
        let tcp = upstream.port.protocol == Protocol::Tcp;
        // A port that carries only byte streams has them under its plain name.
        (!(tcp && stream)).then_some(Self { stream: tcp || stream, ..upstream })
    }

    /// `<service>.<namespace>.svc.<domain>:<port>`
    pub fn service_port(model: &'m Model, name: &str) -> Option<Self> {
        let (host, number) = split_port(name)?;
        let service = model.service_by_dns(host, "").filter(|service| service.fqdn == host)?;
        Some(Self { service, port: service.ports.get(&number)?, only: None, stream: false })
    }

    /// The service's UDP port of that name.
    fn udp_port(model: &'m Model, name: &str) -> Option<Self> {
        let (host, number) = split_port(name)?;
        let service = model.service_by_dns(host, "").filter(|service| service.fqdn == host)?;
        Some(Self { service, port: service.udp_ports.get(&number)?, only: None, stream: true })
    }

    /// Datagrams, which nothing secures.
    pub fn is_udp(&self) -> bool {
        self.port.protocol == Protocol::Udp
    }

    fn direct(model: &'m Model, address: SocketAddr) -> Option<Self> {
        let (workload, service, port) = match model.destination(address.ip(), address.port()) {
            None => model.unnamed(address.ip(), address.port())?,
            Some(Destination::Service(..)) => return None,
            Some(Destination::Workload { workload, service, service_port }) => {
                let (service, port) = model.port(service, *service_port)?;
                (model.workload(&workload.namespace, &workload.name)?, service, port)
            }
        };
        Some(Self { service, port, only: Some((workload, address)), stream: false })
    }

    pub fn endpoints(&self) -> Vec<Endpoint> {
        match self.only {
            Some((workload, address)) => vec![Endpoint { workload: workload.clone(), port: address.port() }],
            None => self.port.endpoints.clone(),
        }
    }

    /// Where an endpoint is called: at the first of its addresses, or the one that was asked for.
    pub fn address(&self, endpoint: &Endpoint) -> Option<IpAddr> {
        match self.only {
            Some((_, address)) => Some(address.ip()),
            None => endpoint.workload.addresses.first().copied(),
        }
    }
}

/// Names are written in one way only: no leading zeros, no signs.
pub(super) fn split_port(name: &str) -> Option<(&str, u16)> {
    let (host, port) = name.rsplit_once(':')?;
    let number: u16 = port.parse().ok()?;
    (number.to_string() == port).then_some((host, number))
}
