//! Routes of datagrams: UDPRoute, for UDP ports.

use std::collections::btree_map::Entry;

use mesh_common::resource::{Kind, UdpRoute};

use super::{Attacher, Carries, Refs, key, place, ports};
use crate::model::{Backend, Condition, Port, Service};

impl Attacher<'_> {
    /// Call with the oldest first.
    pub fn udp_route(&mut self, route: &UdpRoute) {
        let key = key(Kind::UdpRoute, &route.metadata);
        let backends = route.spec.rules.first().map_or(&[][..], |rule| &rule.backend_refs);
        for parent in &route.spec.parent_refs {
            let mut refs = Refs::new(self.services, self.objects, &key, parent);
            refs.carries = Carries::Datagrams;
            let backends = refs.backends(backends, |_| None);
            let resolved = refs.condition();
            let accepted = match ports(self.services, self.objects, &key, parent, |service| &service.udp_ports) {
                Ok((service, ports)) => self.attach_udp(&key, service, &ports, &backends),
                Err(condition) => condition,
            };
            self.parent_status(&key, parent, vec![accepted, resolved]);
        }
        self.common(&key, &route.spec.parent_refs, &[]);
    }

    fn attach_udp(
        &mut self,
        key: &mesh_common::resource::Key,
        service: &Service,
        ports: &[&Port],
        backends: &[Backend],
    ) -> Condition {
        let mut attached = false;
        for port in ports {
            if let Entry::Vacant(entry) = self.udp.entry(place(key, service, port)) {
                entry.insert(backends.to_vec());
                attached = true;
            }
        }
        match attached {
            true => Condition::accepted(),
            false => Condition::not_accepted("Conflicted", "an older UDPRoute has the same parent"),
        }
    }
}
