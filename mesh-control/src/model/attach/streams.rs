//! Routes of byte streams: TCPRoute, and TLSRoute, which tells streams apart by their server name.

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;

use mesh_common::resource::{BackendRef, Key, Kind, NoFilter, ParentReference, TcpRoute, TlsRoute};

use super::{Attacher, Carries, Refs, key, place, ports};
use crate::model::{Backend, Condition, Port, Protocol, Service, TlsStreams};

impl Attacher<'_> {
    /// Call with the oldest first.
    pub fn tcp_route(&mut self, route: &TcpRoute) {
        let key = key(Kind::TcpRoute, &route.metadata);
        let backends = route.spec.rules.first().map_or(&[][..], |rule| &rule.backend_refs);
        for parent in &route.spec.parent_refs {
            self.attach_streams(&key, parent, backends, |attacher, service, ports, backends| {
                attacher.attach_tcp(&key, service, ports, backends)
            });
        }
        self.common(&key, &route.spec.parent_refs, &[]);
    }

    /// Call with the oldest first.
    pub fn tls_route(&mut self, route: &TlsRoute) {
        let key = key(Kind::TlsRoute, &route.metadata);
        let backends = route.spec.rules.first().map_or(&[][..], |rule| &rule.backend_refs);
        for parent in &route.spec.parent_refs {
            self.attach_streams(&key, parent, backends, |attacher, service, ports, backends| {
                attacher.attach_tls(&key, service, ports, &route.spec.hostnames, backends)
            });
        }
        self.common(&key, &route.spec.parent_refs, &[]);
    }

    fn attach_streams(
        &mut self,
        key: &Key,
        parent: &ParentReference,
        backends: &[BackendRef<NoFilter>],
        attach: impl FnOnce(&mut Self, &Service, &[&Port], &[Backend]) -> Condition,
    ) {
        let mut refs = Refs::new(self.services, self.objects, key, parent);
        refs.carries = Carries::Streams;
        let backends = refs.backends(backends, |_| None);
        let resolved = refs.condition();
        let accepted = match ports(self.services, self.objects, key, parent, |service| &service.ports) {
            Ok((service, ports)) => {
                let fitting: Vec<&Port> = ports.into_iter().filter(|port| takes_streams(port)).collect();
                match fitting.is_empty() {
                    true => Condition::not_accepted(
                        "UnsupportedProtocol",
                        format!("every port of {} that this names speaks HTTP; use an HTTPRoute", service.fqdn),
                    ),
                    false => attach(self, service, &fitting, &backends),
                }
            }
            Err(condition) => condition,
        };
        self.parent_status(key, parent, vec![accepted, resolved]);
    }

    fn attach_tcp(&mut self, key: &Key, service: &Service, ports: &[&Port], backends: &[Backend]) -> Condition {
        let mut attached = false;
        for port in ports {
            if let Entry::Vacant(entry) = self.tcp.entry(place(key, service, port)) {
                entry.insert(backends.to_vec());
                attached = true;
            }
        }
        match attached {
            true => Condition::accepted(),
            false => Condition::not_accepted("Conflicted", "an older TCPRoute has the same parent"),
        }
    }

    /// A server name belongs to the oldest route that has it.
    fn attach_tls(
        &mut self,
        key: &Key,
        service: &Service,
        ports: &[&Port],
        hostnames: &[String],
        backends: &[Backend],
    ) -> Condition {
        let mut attached = false;
        let mut conflicts = BTreeSet::new();
        for port in ports {
            let there = self.tls.entry(place(key, service, port)).or_default();
            let mut free = Vec::new();
            for name in hostnames {
                match there.iter().find(|(_, streams)| streams.server_names.contains(name)) {
                    None if free.contains(name) => {}
                    None => free.push(name.clone()),
                    // Another parent reference of the same route named this port before.
                    Some((owner, _)) if owner == key => attached = true,
                    Some((owner, _)) => {
                        conflicts.insert((name.clone(), owner.clone()));
                    }
                }
            }
            if !free.is_empty() {
                attached = true;
                there.push((key.clone(), TlsStreams { server_names: free, backends: backends.to_vec() }));
            }
        }
        if !attached {
            return Condition::not_accepted("Conflicted", "older TLSRoutes have the same parent and all its hostnames");
        }
        let conditions = &mut self.statuses.entry(key.clone()).or_default().conditions;
        for (name, owner) in conflicts {
            let message = format!("streams for {name} follow {owner}, which is older and wins");
            let condition = Condition::ignored("Conflicted", message);
            if !conditions.contains(&condition) {
                conditions.push(condition);
            }
        }
        Condition::accepted()
    }
}

fn takes_streams(port: &Port) -> bool {
    matches!(port.protocol, Protocol::Tcp | Protocol::Detect)
}
