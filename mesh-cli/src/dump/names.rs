//! DNS names of the mesh that the proxy's application has asked for.

use super::text::{number, text, texts};
use super::{Entry, state};
use crate::output::Table;

pub fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(&["NAME", "ADDRESSES", "TTL", "FULL NAME", "STATE"]);
    for entry in entries {
        let name = &entry.resource;
        let ttl = number(&name["ttl_seconds"]).map(|ttl| format!("{ttl}s")).unwrap_or_default();
        table.row(vec![
            entry.name.clone().into(),
            texts(&name["addresses"]).join(", ").into(),
            ttl.into(),
            text(&name["canonical"]).into(),
            state(entry),
        ]);
    }
    table
}
