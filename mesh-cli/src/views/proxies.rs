//! Connected proxies, and what each has acknowledged of what it was sent.

use jiff::Timestamp;
use mesh_common::proto::control::{Proxy, ProxyType};
use serde::Serialize;

use crate::output::time::age;
use crate::output::{Cell, Table};

/// The order in which types are sent, and shown.
const TYPES: [&str; 6] = ["CDS", "EDS", "SDS", "LDS", "RDS", "NAME"];

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    pub id: String,
    pub namespace: String,
    pub service: String,
    pub version: String,
    pub identity: String,
    pub user_agent: String,
    /// `delta` or `sotw`.
    pub protocol: String,
    pub address: String,
    pub connected_at: Option<String>,
    /// The newest revision that is in force at it.
    pub synced_revision: u64,
    /// It has all that concerns it of the newest revision.
    pub synced: bool,
    pub types: Vec<TypeView>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeView {
    #[serde(rename = "type")]
    pub name: String,
    pub subscribed: u32,
    pub sent: u32,
    pub acked: u32,
    pub synced: bool,
    /// Why the proxy rejected what it was sent last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected_at: Option<String>,
}

pub fn view(proxy: &Proxy) -> View {
    let mut types: Vec<TypeView> = proxy.types.iter().map(type_view).collect();
    types.sort_by_key(|t| TYPES.iter().position(|name| *name == t.name).unwrap_or(TYPES.len()));
    View {
        id: proxy.id.clone(),
        namespace: proxy.namespace.clone(),
        service: proxy.service.clone(),
        version: proxy.version.clone(),
        identity: proxy.identity.clone(),
        user_agent: proxy.user_agent.clone(),
        protocol: proxy.protocol.clone(),
        address: proxy.address.clone(),
        connected_at: time(proxy.connected_unix_ms),
        synced_revision: proxy.synced_revision,
        synced: types.iter().all(|t| t.synced && t.rejected.is_none()),
        types,
    }
}

fn type_view(of: &ProxyType) -> TypeView {
    TypeView {
        name: of.r#type.clone(),
        subscribed: of.subscribed,
        sent: of.sent,
        acked: of.acked,
        synced: of.synced,
        rejected: (!of.nack.is_empty()).then(|| of.nack.clone()),
        rejected_at: (!of.nack.is_empty()).then(|| time(of.nack_unix_ms)).flatten(),
    }
}

fn time(unix_ms: i64) -> Option<String> {
    (unix_ms > 0).then(|| Timestamp::from_millisecond(unix_ms).ok()).flatten().map(|t| t.to_string())
}

/// One row for each proxy.
pub fn table(views: &[View], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "PROXY",
        "SERVICE",
        "VERSION",
        "CDS",
        "EDS",
        "SDS",
        "LDS",
        "RDS",
        "NAME",
        "CONNECTED",
        "CLIENT",
        "+PROTOCOL",
        "+REVISION",
        "+IDENTITY",
        "+ADDRESS",
    ]);
    for view in views {
        let mut cells: Vec<Cell> =
            vec![view.id.clone().into(), view.service.clone().into(), view.version.clone().into()];
        cells.extend(TYPES.iter().map(|name| state(view.types.iter().find(|t| t.name == *name))));
        let connected = view.connected_at.as_deref().and_then(|t| t.parse().ok()).map(|t| age(t, now));
        cells.push(connected.unwrap_or_default().into());
        cells.push(view.user_agent.clone().into());
        cells.push(view.protocol.clone().into());
        cells.push(view.synced_revision.to_string().into());
        cells.push(view.identity.clone().into());
        cells.push(view.address.clone().into());
        table.row(cells);
    }
    table
}

fn state(of: Option<&TypeView>) -> Cell {
    match of {
        None => Cell::dim("-"),
        Some(TypeView { rejected: Some(_), .. }) => Cell::bad("REJECTED"),
        Some(TypeView { synced: true, .. }) => Cell::good("synced"),
        Some(_) => Cell::warn("waiting"),
    }
}

/// All about one proxy.
pub fn details(view: &View, now: Timestamp) -> (Vec<String>, Table) {
    let since = view.connected_at.as_deref().and_then(|t| t.parse().ok()).map(|t| age(t, now)).unwrap_or_default();
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let service = match view.version.is_empty() {
        true => or_none(&view.service),
        false => format!("{} {}", view.service, view.version),
    };
    let lines = vec![
        format!("Proxy      {}", view.id),
        format!("Service    {service}"),
        format!("Identity   {}", or_none(&view.identity)),
        format!("Client     {}", view.user_agent),
        format!("Connected  {since} ago from {}, {} xDS", or_none(&view.address), view.protocol),
        format!("Revision   {}", view.synced_revision),
    ];
    let mut table = Table::new(&["TYPE", "STATE", "SUBSCRIBED", "SENT", "ACKNOWLEDGED"]);
    for of in &view.types {
        let numbers = [of.subscribed, of.sent, of.acked].map(|n| Cell::from(n.to_string()));
        let mut cells = vec![of.name.clone().into(), state(Some(of))];
        cells.extend(numbers);
        table.row(cells);
    }
    (lines, table)
}

/// What the proxy rejected, in its own words.
pub fn rejections(view: &View) -> Vec<String> {
    let rejected = view.types.iter().filter_map(|t| Some((t, t.rejected.as_ref()?)));
    rejected
        .map(|(t, reason)| format!("{} rejected {}: {reason}", t.name, t.rejected_at.clone().unwrap_or_default()))
        .collect()
}

/// The proxy that a name means: the whole id, the workload's name, or a beginning that only one of the namespace has, or only
/// one of the mesh where none of the namespace has it.
pub fn find<'a>(proxies: &'a [Proxy], name: &str, namespace: &str) -> Result<&'a Proxy, Vec<&'a str>> {
    find_by(proxies, |proxy| (proxy.id.as_str(), proxy.namespace.as_str()), name, namespace)
}

/// The same of whatever has a proxy's id and namespace. Where none or several are meant, the ids of these.
pub fn find_by<'a, T>(
    all: &'a [T],
    parts: impl Fn(&'a T) -> (&'a str, &'a str),
    name: &str,
    namespace: &str,
) -> Result<&'a T, Vec<&'a str>> {
    let qualified = format!("{name}.{namespace}");
    let exactly = |id: &str| all.iter().find(|it| parts(it).0 == id);
    if let Some(found) = exactly(name).or_else(|| exactly(&qualified)) {
        return Ok(found);
    }
    let begins: Vec<&T> = all.iter().filter(|it| parts(it).0.starts_with(name)).collect();
    let near: Vec<&T> = begins.iter().copied().filter(|it| parts(it).1 == namespace).collect();
    let candidates = if near.is_empty() { begins } else { near };
    match candidates.as_slice() {
        [only] => Ok(only),
        several => Err(several.iter().map(|it| parts(it).0).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(id: &str) -> Proxy {
        let of = |name: &str, synced: bool, nack: &str| ProxyType {
            r#type: name.into(),
            subscribed: 2,
            sent: 2,
            acked: 1,
            synced,
            nack: nack.into(),
            nack_unix_ms: 1_767_268_800_000,
        };
        Proxy {
            id: id.into(),
            service: "web".into(),
            types: vec![of("RDS", false, "bad weight"), of("CDS", true, ""), of("EDS", false, "")],
            connected_unix_ms: 1_767_268_800_000,
            user_agent: "mesh-proxy/0.1.0".into(),
            ..Proxy::default()
        }
    }

    fn now() -> Timestamp {
        "2026-01-01T12:01:00Z".parse().unwrap()
    }

    #[test]
    fn a_row_shows_the_state_of_each_type() {
        let text = table(&[view(&proxy("web-1.default"))], now()).render(false, false, None);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected =
            ["web-1.default", "web", "-", "synced", "waiting", "-", "-", "REJECTED", "-", "60s", "mesh-proxy/0.1.0"];
        assert_eq!(row, expected);
    }

    #[test]
    fn the_details_hold_the_proxys_own_words() {
        let view = view(&proxy("web-1.default"));
        assert!(!view.synced);
        assert_eq!(rejections(&view), ["RDS rejected 2026-01-01T12:00:00Z: bad weight"]);
        let (lines, table) = details(&view, now());
        assert!(lines[1].ends_with("web"), "{lines:?}");
        assert_eq!(table.rows.len(), 3);
    }

    #[test]
    fn a_proxy_is_found_by_what_is_unique() {
        let proxies = [proxy("web-1.default"), proxy("web-12.default"), proxy("api-1.shop")];
        assert_eq!(find(&proxies, "web-1", "default").unwrap().id, "web-1.default");
        assert_eq!(find(&proxies, "api", "default").unwrap().id, "api-1.shop");
        assert_eq!(find(&proxies, "web", "default").unwrap_err().len(), 2);
        assert!(find(&proxies, "none", "default").unwrap_err().is_empty());
    }

    #[test]
    fn what_begins_so_in_the_namespace_goes_before_the_others() {
        let at = |id: &str, namespace: &str| Proxy { namespace: namespace.into(), ..proxy(id) };
        let proxies = [at("web-1.default", "default"), at("web-2.shop", "shop"), at("web-3.shop", "shop")];
        assert_eq!(find(&proxies, "web", "default").unwrap().id, "web-1.default");
        assert_eq!(find(&proxies, "web", "shop").unwrap_err(), ["web-2.shop", "web-3.shop"]);
        assert_eq!(find(&proxies, "web", "other").unwrap_err().len(), 3);
        assert_eq!(find(&proxies, "web-1", "shop").unwrap().id, "web-1.default");
    }
}
