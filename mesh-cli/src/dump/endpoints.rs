//! Endpoints: a row for each.

use serde_json::Value;

use super::text::{address, list, number, short_cluster, text};
use super::{Entry, state};
use crate::output::{Cell, Table};

pub fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(&[
        "CLUSTER",
        "ADDRESS",
        "HEALTH",
        "WEIGHT",
        "WORKLOAD",
        "VERSION",
        "MESH",
        "STATE",
        "+LOCALITY",
        "+IDENTITY",
    ]);
    for entry in entries {
        let localities = list(&entry.resource["endpoints"]).iter();
        let endpoints =
            localities.flat_map(|l| list(&l["lb_endpoints"]).iter().map(move |e| (locality(&l["locality"]), e)));
        let mut none = true;
        for (locality, endpoint) in endpoints {
            none = false;
            let info = &endpoint["metadata"]["typed_filter_metadata"][mesh_common::names::METADATA_WORKLOAD];
            let tls =
                text(&endpoint["metadata"]["filter_metadata"]["envoy.transport_socket_match"]["tlsMode"]) == "mesh";
            table.row(vec![
                short_cluster(&entry.name).into(),
                address(&endpoint["endpoint"]["address"]).into(),
                health(text(&endpoint["health_status"])),
                number(&endpoint["load_balancing_weight"]).unwrap_or(1).to_string().into(),
                text(&info["workload"]).into(),
                text(&info["version"]).into(),
                if tls { Cell::good("yes") } else { Cell::dim("no") },
                state(entry),
                locality.into(),
                text(&info["identity"]).into(),
            ]);
        }
        if none {
            let mut cells = vec![short_cluster(&entry.name).into(), Cell::warn("none")];
            cells.extend((0..5).map(|_| Cell::default()));
            cells.push(state(entry));
            cells.extend((0..2).map(|_| Cell::default()));
            table.row(cells);
        }
    }
    table
}

/// What is not known to be bad is taken as good, as proxies do.
fn health(status: &str) -> Cell {
    match status {
        "" | "UNKNOWN" | "HEALTHY" => Cell::good("healthy"),
        other => Cell::bad(other.to_lowercase()),
    }
}

fn locality(value: &Value) -> String {
    let parts = [text(&value["region"]), text(&value["zone"]), text(&value["sub_zone"])];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/")
}
