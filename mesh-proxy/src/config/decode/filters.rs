//! What filters are told by a route, a virtual host or a table.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::google::protobuf::Any;
use mesh_common::names::{FILTER_CORS, FILTER_FAULT};

use super::{At, Decoded, cors, fault, unpack, unsupported_type};
use crate::config::{Cors, Fault};

#[derive(Clone, Default)]
pub(super) struct PerFilter {
    pub(super) fault: Option<Arc<Fault>>,
    pub(super) cors: Option<Arc<Cors>>,
}

impl PerFilter {
    /// What is said of filters that are not known is refused.
    pub(super) fn of(configs: &HashMap<String, Any>) -> Decoded<Self> {
        let mut found = Self::default();
        for (name, any) in configs {
            let field = format!("typed_per_filter_config[{name:?}]");
            let mut any = any.clone();
            let mut optional = false;
            if let Some(wrapper) = unpack::<FilterConfig>(&any) {
                let wrapper = wrapper.at(&field)?;
                if wrapper.disabled {
                    continue;
                }
                optional = wrapper.is_optional;
                let Some(inner) = wrapper.config else { continue };
                any = inner;
            }
            match (name.as_str(), fault::fault(&any), cors::policy(&any)) {
                (FILTER_FAULT, Some(fault), _) => found.fault = Some(Arc::new(fault.at(field)?)),
                (FILTER_CORS, _, Some(cors)) => found.cors = Some(Arc::new(cors.at(field)?)),
                _ if optional => {}
                _ => return Err(unsupported_type(&any)).at(field),
            }
        }
        Ok(found)
    }

    /// What the wider scope says counts where this one is silent.
    pub(super) fn or(self, wider: &Self) -> Self {
        Self { fault: self.fault.or_else(|| wider.fault.clone()), cors: self.cors.or_else(|| wider.cors.clone()) }
    }
}
