//! `meshctl authz`: who may do what, by the configuration that the proxies have and the code that they decide with.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_common::identity::Identity;
use mesh_common::names::{self, LISTENER_INBOUND};
use mesh_common::proto::control::{ListProxiesRequest, Proxy};
use mesh_proxy::authorization::{Subject, explain, possible};
use mesh_proxy::config::decode::decode;
use mesh_proxy::config::{Authorization, GateAction, HttpManager, Listener, NetworkFilter};
use mesh_proxy::detect::{self, Detected, Hello};
use mesh_proxy::jwt;
use mesh_proxy::path::canonical;
use mesh_proxy::route;
use mesh_proxy::snapshot::{Resource, Type};
use serde::Serialize;

use super::proxy::fetch;
use crate::client::Control;
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::{Cell, Format, Table};

/// Explain who may do what
///
/// The answers come from what the proxies of the service have in force, decided by the proxies' own code.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl authz list reviews
  meshctl authz check --from web --to reviews --method GET --path /reviews/1 --jwt token.txt")]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(List),
    Check(Check),
}

/// Show the rules that a service's proxies go by, in the order in which they are asked
#[derive(Debug, clap::Args)]
struct List {
    /// The service
    #[arg(value_name = "SERVICE")]
    service: String,
}

/// Ask whether a request would be let in, by which rule, and what the nearest one misses
///
/// The answer may differ among the proxies of a service while a change is on its way, or where versions have policies of their own; then all
/// answers are shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl authz check --from web --to reviews
  meshctl authz check --from shop/web --to reviews --method POST --path /reviews/1 --header 'x-team: a'
  meshctl authz check --from spiffe://mesh.local/ns/shop/sa/web --to ratings:9081 --tcp")]
struct Check {
    /// Who calls: a service account, with its namespace before a slash if that is another, or a SPIFFE ID. Without it: somebody who proves no identity
    #[arg(long, value_name = "ACCOUNT")]
    from: Option<String>,
    /// The service that is called
    #[arg(long, value_name = "SERVICE[:PORT]")]
    to: String,
    #[arg(long, default_value = "GET", conflicts_with = "tcp")]
    method: Method,
    #[arg(long, default_value = "/", conflicts_with = "tcp")]
    path: String,
    /// The host that the request names [default: the service]
    #[arg(long, conflicts_with = "tcp")]
    host: Option<String>,
    /// A header of the request, as `name: value`; may be given several times
    #[arg(long = "header", value_name = "NAME: VALUE", conflicts_with = "tcp")]
    headers: Vec<String>,
    /// A file with the token (JWT) that the request has, wherever the rules look for it. It is checked as the proxies do, and never shown
    #[arg(long, value_name = "FILE", conflicts_with = "tcp")]
    jwt: Option<PathBuf>,
    /// A byte stream instead of a request
    #[arg(long)]
    tcp: bool,
    /// The address that the call comes from
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    source: IpAddr,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Failure> {
    match args.command {
        Action::List(args) => list(context, &args).await,
        Action::Check(args) => check(context, &args).await,
    }
}

/// A proxy of the service, and what it takes.
struct Taker {
    id: String,
    identity: Option<Identity>,
    listener: Arc<Listener>,
}

async fn takers(context: &Context, service: &str) -> Result<Vec<Taker>, Failure> {
    let control = context.connect().await?;
    let listed = control.mesh().list_proxies(ListProxiesRequest {}).await?.into_inner();
    let namespace = context.namespace();
    let of_it: Vec<_> = listed.proxies.iter().filter(|p| p.namespace == namespace && p.service == service).collect();
    if of_it.is_empty() {
        let text = format!("No proxy of the service {service} in the namespace {namespace} is connected.");
        return Err(Failure::not_found(text).hint("`meshctl proxy status` shows those that are."));
    }
    let mut takers = Vec::new();
    let mut unreadable = Vec::new();
    for proxy in of_it {
        match taker(&control, proxy).await? {
            Ok(taker) => takers.push(taker),
            Err(why) => unreadable.push(format!("{}: {why}", proxy.id)),
        }
    }
    if takers.is_empty() {
        let text = format!("What the proxies of {service} have can't be explained: {}.", unreadable.join("; "));
        return Err(Failure::not_found(text).hint("`meshctl proxy config listeners PROXY -o yaml` shows it as it is."));
    }
    unreadable.iter().for_each(|why| context.out.note(&format!("Left out: {why}.")));
    Ok(takers)
}

/// Or why what it takes is not known.
async fn taker(control: &Control, proxy: &Proxy) -> Result<Result<Taker, String>, Failure> {
    let configs = fetch(control, &proxy.id).await?;
    let mut inbound = configs.iter().filter(|it| it.type_url == names::TYPE_LISTENER && it.name == LISTENER_INBOUND);
    let Some(any) = inbound.find_map(|config| config.xds_config.as_ref()) else {
        return Ok(Err("it has no inbound listener yet".to_owned()));
    };
    Ok(match decode(Type::Listener, &any.value) {
        Ok(Resource::Listener(listener)) => {
            Ok(Taker { id: proxy.id.clone(), identity: proxy.identity.parse().ok(), listener })
        }
        Ok(_) => Err("its listener is none".to_owned()),
        Err(refused) => Err(format!("{refused} (in mesh-proxy)")),
    })
}

async fn list(context: &Context, args: &List) -> Result<(), Failure> {
    let takers = takers(context, &args.service).await?;
    let mut rows: Vec<Row> = takers.iter().flat_map(|taker| rules(&taker.listener)).collect();
    // Proxies of one service have the same rules but for those of its versions.
    let mut seen = std::collections::HashSet::new();
    rows.retain(|row| seen.insert(row.clone()));
    rows.sort_by_key(|row| row.order);
    let out = &context.out;
    match out.format {
        Format::Json | Format::Yaml => out.data(&rows),
        Format::Name => rows.iter().try_for_each(|row| out.line(&row.rule)),
        _ if rows.is_empty() => {
            out.note(&format!("No policy holds for {}: everything is allowed.", args.service));
            Ok(())
        }
        _ => {
            let mut table = Table::new(&["ACTION", "RULE", "FROM", "TO"]);
            for row in &rows {
                let action = if row.dry_run { format!("{} (dry run)", row.action) } else { row.action.to_owned() };
                table.row(vec![action.into(), row.rule.clone().into(), row.from.clone().into(), row.to.clone().into()]);
            }
            out.table(&table)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(skip)]
    order: usize,
    action: &'static str,
    dry_run: bool,
    /// `namespace/policy[rule]`
    rule: String,
    from: String,
    to: String,
}

fn rules(listener: &Listener) -> Vec<Row> {
    let manager = listener.chains.iter().find_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => Some(manager),
        NetworkFilter::Tcp(_) => None,
    });
    let tcp = listener.chains.iter().find_map(|chain| match &chain.filter {
        NetworkFilter::Tcp(proxy) => Some(&proxy.authorization),
        NetworkFilter::Http(_) => None,
    });
    let Some(authorization) = manager.map(|it| &it.authorization).or(tcp) else { return Vec::new() };
    let mut rows = Vec::new();
    for authorizer in manager.iter().flat_map(|it| &it.authorizers) {
        for policy in &authorizer.policies {
            let (from, to) = explain::in_words(policy);
            let to = format!("{to}, asking {}", authorizer.cluster);
            rows.push(Row { order: 0, action: "CUSTOM", dry_run: false, rule: policy.name.clone(), from, to });
        }
    }
    for (order, gate) in (1..).zip(&authorization.gates) {
        let action = match gate.action {
            GateAction::Allow => "ALLOW",
            GateAction::Deny => "DENY",
            GateAction::Audit => "AUDIT",
        };
        if gate.policies.is_empty() {
            let (rule, nobody) = ("-".to_owned(), "nobody".to_owned());
            rows.push(Row { order, action, dry_run: gate.dry_run, rule, from: nobody, to: String::new() });
        }
        for policy in &gate.policies {
            let (from, to) = explain::in_words(policy);
            rows.push(Row { order, action, dry_run: gate.dry_run, rule: policy.name.clone(), from, to });
        }
    }
    rows
}

/// What one proxy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proxies: Vec<String>,
    allowed: bool,
    /// The rule that decided, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    reason: String,
    /// Of the rules that would have allowed it, the nearest, and what it asks for beyond.
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    needs: Vec<String>,
    /// What a policy on trial would say.
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<String>,
    /// Rules that have somebody else asked, and who that is. Only they know whether it is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asks: Vec<String>,
    /// Rules that have it written to the audit log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    audited_by: Vec<String>,
}

async fn check(context: &Context, args: &Check) -> Result<(), Failure> {
    let (service, port) = match args.to.rsplit_once(':') {
        Some((service, port)) => {
            let port = port.parse::<u16>().ok().filter(|port| *port > 0);
            (service, Some(port.ok_or_else(|| Failure::usage(format!("In {}, the port is not a number.", args.to)))?))
        }
        None => (args.to.as_str(), None),
    };
    let headers = headers(&args.headers)?;
    let token = args.jwt.as_deref().map(read_token).transpose()?;
    let mut answers: Vec<Answer> = Vec::new();
    for taker in takers(context, service).await? {
        let port = port.or_else(|| first_port(&taker.listener, args.tcp)).ok_or_else(|| no_port(service))?;
        let from = args.from.as_deref().map(|from| caller(from, context.namespace(), &taker)).transpose()?;
        let answer = answer(&taker, port, from.as_deref(), service, (&headers, token.as_deref()), args);
        // The same from several proxies is said once.
        match answers.iter_mut().find(|it| Answer { proxies: Vec::new(), ..(*it).clone() } == answer) {
            Some(known) => known.proxies.push(taker.id),
            None => answers.push(Answer { proxies: vec![taker.id], ..answer }),
        }
    }
    let out = &context.out;
    match out.format {
        Format::Json | Format::Yaml => out.data(&answers),
        _ => {
            let mut table = Table::new(&["VERDICT", "BY", "REASON", "AT"]);
            for answer in &answers {
                let verdict = match (answer.allowed, answer.asks.is_empty()) {
                    (true, _) => Cell::good("ALLOWED"),
                    (false, false) => Cell::bad("UNDECIDED"),
                    (false, true) => Cell::bad("DENIED"),
                };
                let at = answer.proxies.join(", ");
                let by = answer.rule.clone().unwrap_or_else(|| "-".to_owned());
                table.row(vec![verdict, by.into(), answer.reason.clone().into(), at.into()]);
            }
            out.table(&table)?;
            for answer in &answers {
                if let Some(nearest) = &answer.nearest {
                    out.line(&format!("\nThe nearest rule is {nearest}, which needs: {}.", answer.needs.join("; ")))?;
                }
                if let Some(trial) = &answer.dry_run {
                    out.line(&format!("\nOn trial (dryRun): {trial}."))?;
                }
                if !answer.audited_by.is_empty() {
                    out.line(&format!("\nIt goes to the audit log by {}.", answer.audited_by.join(", ")))?;
                }
            }
            Ok(())
        }
    }
}

fn answer(
    taker: &Taker,
    port: u16,
    from: Option<&str>,
    service: &str,
    (headers, token): (&HeaderMap, Option<&str>),
    args: &Check,
) -> Answer {
    let refused = |reason: String| Answer {
        proxies: Vec::new(),
        allowed: false,
        rule: None,
        reason,
        nearest: None,
        needs: Vec::new(),
        dry_run: None,
        asks: Vec::new(),
        audited_by: Vec::new(),
    };
    let detected = match from {
        Some(_) => {
            let alpn = if args.tcp { names::ALPN_TCP } else { names::ALPN_H2 };
            Detected::Tls(Hello { alpn: vec![alpn.to_vec()], server_name: None })
        }
        None if args.tcp => Detected::Raw,
        None => Detected::Http1,
    };
    let Some(chain) = detect::chain(&taker.listener, port, &detected) else {
        return refused(match from {
            Some(_) => format!("port {port} does not take this protocol"),
            None => format!("port {port} takes only mutual TLS (PeerAuthentication is STRICT)"),
        });
    };
    let (peer, destination) = (SocketAddr::new(args.source, 1), SocketAddr::new(args.source, port));
    let subject = |request| Subject { peer, destination, identity: from, request, claims: None };
    let host = args.host.clone().unwrap_or_else(|| format!("{service}:{port}"));
    match &chain.filter {
        NetworkFilter::Tcp(proxy) => explained(&proxy.authorization, &subject(None)),
        NetworkFilter::Http(manager) => {
            let (path, query) = args.path.split_once('?').map_or((&*args.path, None), |(path, q)| (path, Some(q)));
            let path = match canonical(path) {
                Ok(path) => path,
                Err(error) => return refused(format!("400: {error}")),
            };
            let request =
                route::Subject { method: &args.method, authority: &host, path: &path, query, headers, grpc: false };
            let verified = match (&manager.jwt, token) {
                (None, _) => Ok(None),
                (Some(authn), Some(token)) => jwt::verify(authn, token, now()).map(Some),
                (Some(authn), None) => jwt::check(authn, headers, query, now()),
            };
            match verified {
                Err(why) => refused(format!("401: {why}")),
                Ok(verified) => {
                    let claims = verified.as_deref().map(|it| &it.claims);
                    let subject = Subject { claims, ..subject(Some(request)) };
                    asking(manager, &subject, explained(&manager.authorization, &subject))
                }
            }
        }
    }
}

/// What nobody here can tell: what those say who are asked. It is neither allowed nor refused by what holds here, since the
/// policies behind them see the headers that they set.
fn asking(manager: &HttpManager, subject: &Subject<'_>, answer: Answer) -> Answer {
    let asks = manager.authorizers.iter().filter_map(|it| {
        let policy = possible(&it.policies, subject)?;
        Some(format!("{} asks {}", policy.name, it.cluster))
    });
    let asks: Vec<_> = asks.collect();
    if asks.is_empty() {
        return answer;
    }
    let local = if answer.allowed { "allowed" } else { "refused" };
    let reason =
        format!("others decide: {}; where they let it in as it is, it is {local}: {}", asks.join(", "), answer.reason);
    Answer { allowed: false, reason, asks, ..answer }
}

fn explained(authorization: &Authorization, subject: &Subject<'_>) -> Answer {
    let found = explain::explain(authorization, subject);
    let reason = match (found.allowed, &found.by) {
        (true, Some(_)) => "this rule allows it",
        (true, None) => "no policy refuses it",
        (false, Some(_)) if found.uncertain => "servers may read it as what this rule denies",
        (false, Some(_)) => "this rule denies it",
        (false, None) => "no rule allows it",
    };
    let trial = |policy: String| match policy.as_str() {
        "" => "no rule would allow it".to_owned(),
        policy => format!("{policy} would deny it"),
    };
    let (nearest, needs) = found.nearest.map(|it| (Some(it.policy), it.needs)).unwrap_or_default();
    Answer {
        proxies: Vec::new(),
        allowed: found.allowed,
        rule: found.by,
        reason: reason.to_owned(),
        nearest,
        needs,
        dry_run: found.would_refuse.map(trial),
        asks: Vec::new(),
        audited_by: found.audited_by,
    }
}

fn first_port(listener: &Listener, tcp: bool) -> Option<u16> {
    let fits = |filter: &NetworkFilter| tcp == matches!(filter, NetworkFilter::Tcp(_));
    let of_kind = listener.chains.iter().filter(|chain| fits(&chain.filter));
    of_kind.chain(&listener.chains).find_map(|chain| chain.matches.destination_port)
}

fn no_port(service: &str) -> Failure {
    Failure::usage(format!("The proxies of {service} know no port of it: name one, as in {service}:9080."))
}

/// The SPIFFE ID of whom `--from` names.
fn caller(text: &str, namespace: &str, taker: &Taker) -> Result<String, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("--from: {error}."));
    if text.starts_with("spiffe://") {
        return text.parse::<Identity>().map(|it| it.to_string()).map_err(|error| wrong(&error));
    }
    let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
    let domain = taker.identity.as_ref().map(|it| it.trust_domain.as_str());
    let domain = domain.ok_or_else(|| wrong(&format_args!("the trust domain of {} is not known", taker.id)))?;
    Identity::new(domain, namespace, account).map(|it| it.to_string()).map_err(|error| wrong(&error))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn read_token(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| Failure::usage(format!("--jwt: cannot read {}: {error}.", file.display())))?;
    Ok(text.trim().to_owned())
}

fn headers(texts: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for text in texts {
        let parts = text.split_once(':').and_then(|(name, value)| {
            let name = HeaderName::try_from(name.trim()).ok()?;
            Some((name, HeaderValue::try_from(value.trim()).ok()?))
        });
        let (name, value) = parts.ok_or_else(|| Failure::usage(format!("{text:?} is not a header: `name: value`.")))?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use mesh_proxy::config::{Authorizer, AuthorizerProtocol, Condition, Gate, Policy, RouteSource, StringMatch};

    use super::*;

    fn about(name: &str, prefix: &str) -> Policy {
        let permissions = vec![Condition::Path(StringMatch::Prefix(prefix.to_owned()))];
        Policy { name: name.to_owned(), permissions, principals: vec![Condition::Any] }
    }

    /// Somebody is asked about `/x`, and `/x/no` and `/no` are refused anyway.
    fn manager() -> HttpManager {
        let authorizer = Authorizer {
            policies: vec![about("default/ask[0]", "/x")],
            cluster: "auth".to_owned(),
            authority: "auth".parse().unwrap(),
            timeout: Duration::from_secs(1),
            protocol: AuthorizerProtocol::Grpc,
            headers: None,
            body: None,
            fail_open: false,
            marks_failure: false,
            status_on_error: StatusCode::FORBIDDEN,
        };
        let policies = vec![about("default/no[0]", "/no"), about("default/no[1]", "/x/no")];
        HttpManager {
            stat_prefix: String::new(),
            jwt: None,
            authorizers: vec![authorizer],
            authorization: Authorization { gates: vec![Gate { action: GateAction::Deny, dry_run: false, policies }] },
            routes: RouteSource::Rds(String::new()),
            idle_timeout: Duration::ZERO,
            stream_idle_timeout: Duration::ZERO,
            limit: None,
            limits: None,
            tracing: None,
        }
    }

    #[test]
    fn what_others_are_asked_about_is_not_decided() {
        let (manager, headers) = (manager(), HeaderMap::new());
        let answer = |path: &str| {
            let request = route::Subject {
                method: &Method::GET,
                authority: "reviews",
                path,
                query: None,
                headers: &headers,
                grpc: false,
            };
            let at = SocketAddr::from(([10, 0, 0, 1], 80));
            let subject = Subject { peer: at, destination: at, identity: None, request: Some(request), claims: None };
            asking(&manager, &subject, explained(&manager.authorization, &subject))
        };
        for (path, allowed) in [("/y", true), ("/no", false)] {
            assert_eq!((answer(path).allowed, answer(path).asks.len()), (allowed, 0), "{path}");
        }
        // What they set may be what another policy looks for.
        for (path, says) in
            [("/x", "it is allowed: no policy refuses it"), ("/x/no", "it is refused: this rule denies it")]
        {
            let answer = answer(path);
            assert_eq!((answer.allowed, answer.asks.as_slice()), (false, &["default/ask[0] asks auth".to_owned()][..]));
            assert!(answer.reason.ends_with(says), "{}", answer.reason);
        }
    }
}
