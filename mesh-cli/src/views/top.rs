//! What flows, as rows for people and for programs.

use serde::Serialize;

use super::traffic::{self, By, Group, Stats, StatsView};
use crate::output::{Cell, Table};

/// One row as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    #[serde(flatten)]
    stats: StatsView,
}

impl View {
    pub fn of((group, stats): &(Group, Stats)) -> Self {
        let Group { caller, service, version, route } = group.clone();
        Self { caller, service, version, route, stats: stats.into() }
    }
}

pub fn table(rows: &[(Group, Stats)], by: By, namespace: &str) -> Table {
    let (first, second) = match by {
        By::Services => ("SERVICE", "VERSION"),
        By::Callers => ("CALLER", "SERVICE"),
        By::Routes => ("SERVICE", "ROUTE"),
    };
    let mut table = Table::new(&[
        first,
        second,
        "REQ/S",
        "SUCCESS",
        "P50",
        "P90",
        "P99",
        "CONN/S",
        "MTLS",
        "+REQUESTS",
        "+FAILED",
        "+OPENED",
        "+BROKEN",
    ]);
    let short = |name: &str| Cell::from(traffic::short(name, namespace));
    for (group, stats) in rows {
        let names = match by {
            By::Services => [short(&group.service), group.version.clone().unwrap_or_default().into()],
            By::Callers => [short(group.caller.as_deref().unwrap_or_default()), short(&group.service)],
            By::Routes => [short(&group.service), group.route.clone().unwrap_or_default().into()],
        };
        let mut cells: Vec<Cell> = names.into();
        cells.push(rate(stats.requests, stats.rate));
        cells.push(success(stats));
        cells.extend([0.5, 0.9, 0.99].map(|at| quantile(stats, at)));
        cells.push(rate(stats.opened, stats.opened_rate));
        cells.push(mutual_tls(stats));
        cells.extend([stats.requests, stats.failed, stats.opened, stats.broken].map(|it| Cell::from(it.to_string())));
        table.row(cells);
    }
    table
}

pub fn rate(count: u64, rate: f64) -> Cell {
    if count == 0 { Cell::dim("-") } else { format!("{rate:.1}").into() }
}

pub fn success(stats: &Stats) -> Cell {
    match stats.success() {
        None => Cell::dim("-"),
        Some(share) if share >= 1.0 => Cell::good("100%"),
        // Never rounded to a whole that it is not.
        Some(share) => Cell::bad(format!("{:.1}%", (share * 1e3).floor() / 10.0)),
    }
}

pub fn quantile(stats: &Stats, at: f64) -> Cell {
    match stats.quantile(at) {
        None => Cell::dim("-"),
        Some(time) => {
            let ms = time.as_secs_f64() * 1e3;
            let text = if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") };
            text.into()
        }
    }
}

pub fn mutual_tls(stats: &Stats) -> Cell {
    match stats.mutual_tls() {
        None => Cell::dim("-"),
        Some(share) if share >= 1.0 => Cell::good("yes"),
        Some(share) if share <= 0.0 => Cell::warn("no"),
        Some(share) => Cell::warn(format!("{:.0}%", (share * 100.0).clamp(1.0, 99.0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearly_all_is_not_shown_as_all() {
        let of = |requests, failed| success(&Stats { requests, failed, ..Stats::default() }).text;
        assert_eq!(of(100_000, 1), "99.9%");
        assert_eq!(of(100_000, 0), "100%");
        assert_eq!(of(0, 0), "-");
    }
}
