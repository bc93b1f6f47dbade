//! Who calls whom, as a tree, as a graph and as data. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use super::top::{mutual_tls, quantile, rate, success};
use super::traffic::{Call, Stats, StatsView, short};
use crate::output::{Cell, Table};

/// Calls by caller and service.
pub struct Topology {
    edges: BTreeMap<(String, String), Stats>,
}

#[derive(Serialize)]
pub struct View {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

#[derive(Serialize)]
struct Node {
    name: String,
}

#[derive(Serialize)]
struct Edge {
    from: String,
    to: String,
    #[serde(flatten)]
    stats: StatsView,
}

impl Topology {
    pub fn of(calls: &[Call]) -> Self {
        let mut edges: BTreeMap<(String, String), Stats> = BTreeMap::new();
        for call in calls {
            edges.entry((call.caller.clone(), call.service.clone())).or_default().add(&call.stats);
        }
        Self { edges }
    }

    pub fn nodes(&self) -> BTreeSet<&str> {
        self.edges.keys().flat_map(|(from, to)| [from.as_str(), to.as_str()]).collect()
    }

    pub fn view(&self) -> View {
        let nodes = self.nodes().into_iter().map(|name| Node { name: name.to_owned() }).collect();
        let edge = |((from, to), stats): (&(String, String), &Stats)| Edge {
            from: from.clone(),
            to: to.clone(),
            stats: stats.into(),
        };
        View { nodes, edges: self.edges.iter().map(edge).collect() }
    }

    /// Each service below those that call it; what it calls itself is shown where it comes first.
    pub fn tree(&self, namespace: &str) -> Table {
        let mut table = Table::new(&["SERVICE", "REQ/S", "SUCCESS", "P50", "P99", "CONN/S", "MTLS"]);
        let mut shown = BTreeSet::new();
        let called: BTreeSet<&str> =
            self.edges.keys().filter(|(from, to)| from != to).map(|(_, to)| to.as_str()).collect();
        let nodes = self.nodes();
        // Those that nobody calls, and then the first of each circle that none of these leads to.
        let (roots, others): (Vec<&str>, Vec<&str>) = nodes.into_iter().partition(|node| !called.contains(node));
        for root in roots.into_iter().chain(others) {
            if shown.insert(root) {
                let mut cells = vec![Cell::from(short(root, namespace))];
                cells.extend((1..7).map(|_| Cell::dim("-")));
                table.row(cells);
                self.below(root, &mut Vec::new(), namespace, &mut shown, &mut table);
            }
        }
        table
    }

    /// `lines`: for each level above, whether more follows there.
    fn below<'a>(
        &'a self,
        node: &str,
        lines: &mut Vec<bool>,
        namespace: &str,
        shown: &mut BTreeSet<&'a str>,
        table: &mut Table,
    ) {
        let calls: Vec<_> = self.edges.iter().filter(|((from, _), _)| from == node).collect();
        for (index, ((_, to), stats)) in calls.iter().enumerate() {
            let last = index + 1 == calls.len();
            let above: String = lines.iter().map(|more| if *more { "│  " } else { "   " }).collect();
            let first = shown.insert(to);
            let again = if first || !self.edges.keys().any(|(from, _)| from == to) { "" } else { " (above)" };
            let corner = if last { "└─ " } else { "├─ " };
            table.row(vec![
                format!("{above}{corner}{}{again}", short(to, namespace)).into(),
                rate(stats.requests, stats.rate),
                success(stats),
                quantile(stats, 0.5),
                quantile(stats, 0.99),
                rate(stats.opened, stats.opened_rate),
                mutual_tls(stats),
            ]);
            if first {
                lines.push(!last);
                self.below(to, lines, namespace, shown, table);
                lines.pop();
            }
        }
    }

    pub fn dot(&self, namespace: &str) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
        let mut text = "digraph mesh {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
        for node in self.nodes() {
            let _ = writeln!(text, "  {} [label={}];", quoted(node), quoted(&short(node, namespace)));
        }
        for ((from, to), stats) in &self.edges {
            let mut label = Vec::new();
            if stats.requests > 0 {
                label.push(format!("{:.1} req/s", stats.rate));
            }
            if stats.opened > 0 {
                label.push(format!("{:.1} conn/s", stats.opened_rate));
            }
            let failing = stats.success().is_some_and(|share| share < 1.0);
            if failing {
                label.push(format!("{} ok", success(stats).text));
            }
            let color = if failing { ", color=red" } else { "" };
            let style = if stats.mutual_tls().is_some_and(|share| share < 1.0) { ", style=dashed" } else { "" };
            let label = quoted(&label.join(", "));
            let _ = writeln!(text, "  {} -> {} [label={label}{color}{style}];", quoted(from), quoted(to));
        }
        text + "}\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(caller: &str, service: &str) -> Call {
        let [caller, service] = [caller, service].map(|name| format!("{name}.shop.svc.cluster.local"));
        let stats = Stats { requests: 20, failed: 5, rate: 2.0, ..Stats::default() };
        Call { caller, service, version: String::new(), route: String::new(), stats }
    }

    fn names(calls: &[Call]) -> Vec<String> {
        let text = Topology::of(calls).tree("shop").render(false, false, None);
        text.lines().skip(1).map(|line| line.trim_start().split("  ").next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn the_tree_begins_with_those_whom_nobody_calls() {
        let calls = [call("web", "reviews"), call("reviews", "ratings"), call("web", "stock"), call("web", "reviews")];
        let text = Topology::of(&calls).tree("shop").render(false, false, None);
        let lines: Vec<&str> = text.lines().map(|line| line.trim_end()).collect();
        assert!(lines[1].starts_with("web "), "{text}");
        assert!(
            lines[2].starts_with("├─ reviews ") && lines[2].contains(" 4.0 ") && lines[2].contains("75.0%"),
            "{text}"
        );
        assert!(lines[3].starts_with("│  └─ ratings "), "{text}");
        assert!(lines[4].starts_with("└─ stock "), "{text}");
        assert_eq!(lines.len(), 5, "{text}");
    }

    #[test]
    fn a_circle_is_shown_once() {
        assert_eq!(names(&[call("a", "b"), call("b", "a")]), ["a", "└─ b", "└─ a (above)"].map(String::from).to_vec());
        assert_eq!(names(&[call("a", "a")]), ["a", "└─ a (above)"]);
        // From below another one.
        let calls = [call("web", "b"), call("b", "c"), call("c", "b")];
        assert_eq!(names(&calls).last().map(String::as_str), Some("└─ b (above)"));
    }

    #[test]
    fn a_graph_quotes_names() {
        let mut odd = call("web", "x");
        odd.service = "a\"b\\".to_owned();
        let text = Topology::of(&[odd]).dot("shop");
        assert!(
            text.contains(r#""web.shop.svc.cluster.local" -> "a\"b\\" [label="2.0 req/s, 75.0% ok", color=red];"#),
            "{text}"
        );
    }
}
