//! Policies of access, as Envoy's RBAC filters: one for each gate that a request or a connection has to pass.
//!
//! What `AUDIT`s match is only recorded. About what a `CUSTOM` matches somebody else is asked, and a byte stream, about which
//! nobody can be, is refused. A request is refused by any `DENY` that matches. Then it has to match one of the `ALLOW`s: first of those that override,
//! for each reach, and then of all others. A gate that has no policy is not there.

use std::borrow::Cow;
use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, permission, permission::Rule, principal, principal::Authenticated,
    principal::Identifier,
};
use envoy_types::pb::envoy::config::route::v3::HeaderMatcher;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher};
use envoy_types::pb::google::protobuf::Any;
use ipnet::IpNet;
use mesh_common::names::FILTER_RBAC;
use mesh_common::resource::{
    AuthorizationAction, AuthorizationHeader, AuthorizationOperation, AuthorizationRule, AuthorizationSource,
};
use prost::Message;

use super::build::{exact, uint32};
use super::ext_authz::Asks;
use super::{Scope, ext_authz, http, jwt, tokens};
use crate::model::{Authorization, Model, Reach};

const NETWORK_FILTER: &str = "envoy.filters.network.rbac";

/// What stands before a workload's HTTP connection managers' routers, and before its TCP proxies.
pub(super) struct Filters {
    /// Finds out what the gates ask for.
    pub jwt: Option<HttpFilter>,
    pub http: Vec<HttpFilter>,
    pub network: Vec<Filter>,
    /// One of them may refuse something, or is on trial for that.
    pub decides: bool,
}

pub(super) fn filters(model: &Model, scope: &Scope) -> Filters {
    let policies = model.authorizations(&scope.namespace, &scope.workload, &scope.service, &scope.version);
    let gates = gates(&policies, scope);
    let tokens = model.jwt_rules(&scope.namespace, &scope.workload, &scope.service, &scope.version);
    let issuers: Vec<&str> = tokens.iter().map(|rule| rule.issuer.as_str()).collect();
    let of = Of { trust_domain: model.trust_domain(), issuers: &issuers };
    let rules = |gate: &Gate, layer| gate.rules(&of, layer);
    let http = |gate: &Gate| {
        let rbac = http::filter(FILTER_RBAC, gate.config("http", rules(gate, Layer::Requests)));
        [rbac].into_iter().chain(gate.asks.as_ref().map(ext_authz::filter)).collect::<Vec<_>>()
    };
    let network = |gate: &Gate| http::network(NETWORK_FILTER, gate.config("network", rules(gate, Layer::Streams)));
    let jwt = jwt::filter(model, &tokens);
    let decides = gates.iter().any(|gate| gate.action != Action::Log);
    Filters { jwt, http: gates.iter().flat_map(http).collect(), network: gates.iter().map(network).collect(), decides }
}

/// Whose identities and tokens count.
struct Of<'a> {
    trust_domain: &'a str,
    issuers: &'a [&'a str],
}

/// What a policy can be about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Requests,
    /// Nothing of HTTP is known.
    Streams,
}

struct Gate<'a> {
    action: Action,
    /// It only counts.
    dry_run: bool,
    /// Of requests, it only finds out whether somebody is to be asked, who then decides.
    asks: Option<Asks<'a>>,
    policies: Vec<&'a Authorization>,
}

fn gates<'a>(policies: &[&'a Authorization], scope: &Scope) -> Vec<Gate<'a>> {
    use AuthorizationAction::{Allow, Audit, Deny};
    let gate = |action, dry_run, wanted: &dyn Fn(&Authorization) -> bool| Gate {
        action,
        dry_run,
        asks: None,
        policies: policies.iter().copied().filter(|policy| wanted(policy)).collect(),
    };
    let is = |policy: &Authorization, action| policy.spec.action == action && !policy.spec.dry_run;
    let overriding = [Reach::Mesh, Reach::Namespace, Reach::Service]
        .map(|reach| gate(Action::Allow, false, &|it| is(it, Allow) && it.spec.overrides && it.reach == reach));
    // First, so that it also sees what is refused.
    let mut gates = vec![gate(Action::Log, false, &|it| scope.audits && is(it, Audit))];
    gates.extend(asking(policies, scope));
    gates.push(gate(Action::Deny, false, &|it| is(it, Deny)));
    gates.extend(overriding);
    gates.push(gate(Action::Allow, false, &|it| is(it, Allow) && !it.spec.overrides));
    gates.push(gate(Action::Deny, true, &|it| it.spec.action == Deny && it.spec.dry_run));
    // What is allowed already would still be allowed.
    if policies.iter().any(|it| it.spec.action == Allow && it.spec.dry_run) {
        gates.push(gate(Action::Allow, true, &|it| it.spec.action == Allow && !it.spec.overrides));
    }
    gates.retain(|gate| !gate.policies.is_empty());
    gates
}

/// One gate for each that asks somebody. A proxy that can't ask refuses.
fn asking<'a>(policies: &[&'a Authorization], scope: &Scope) -> Vec<Gate<'a>> {
    let asking = policies.iter().copied().filter(|it| it.spec.action == AuthorizationAction::Custom);
    let gate = |(index, policy): (usize, &'a Authorization)| Gate {
        action: Action::Deny,
        dry_run: false,
        asks: Asks::new(policy, index).filter(|_| scope.asks),
        policies: vec![policy],
    };
    asking.enumerate().map(gate).collect()
}

/// `envoy.config.rbac.v3.RBAC` with the entries of its map as the list that they are on the wire: the map itself has no
/// stable encoding.
#[derive(Clone, PartialEq, Message)]
struct Rules {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(message, repeated, tag = "2")]
    policies: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Policy>,
}

/// What `envoy.extensions.filters.http.rbac.v3.RBAC` and that of `network` have in common.
#[derive(Clone, PartialEq, Message)]
struct Config {
    #[prost(message, optional, tag = "1")]
    rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    shadow_rules: Option<Rules>,
    /// Of the shadow rules for HTTP, of all for streams.
    #[prost(string, tag = "3")]
    stat_prefix: String,
}

impl Gate<'_> {
    fn config(&self, kind: &str, rules: Rules) -> Any {
        let asks = self.asks.as_ref().filter(|_| kind == "http");
        let shadow = self.dry_run || asks.is_some();
        let (rules, shadow_rules) = if shadow { (None, Some(rules)) } else { (Some(rules), None) };
        let stat_prefix = match asks {
            Some(asks) => asks.prefix(),
            None if shadow || kind == "network" => "authorization.".to_owned(),
            None => String::new(),
        };
        let config = Config { rules, shadow_rules, stat_prefix };
        Any {
            type_url: format!("type.googleapis.com/envoy.extensions.filters.{kind}.rbac.v3.RBAC"),
            value: config.encode_to_vec(),
        }
    }

    fn rules(&self, of: &Of<'_>, layer: Layer) -> Rules {
        let mut entries = Vec::new();
        for policy in &self.policies {
            for (i, rule) in policy.spec.rules.iter().enumerate() {
                let Some(permissions) = self.permissions(rule, layer) else { continue };
                let Some(sources) = self.sources(rule, layer) else { continue };
                let sources = sources.iter().map(|it| self.principal(it, of, &policy.name.namespace)).collect();
                let value = Policy { permissions, principals: any_principal(sources), ..Policy::default() };
                entries.push(Entry { key: format!("{}[{i}]", policy.name), value: Some(value) });
            }
        }
        Rules { action: self.action as i32, policies: entries }
    }

    /// Somebody without an identity is not in a namespace, but whoever allows all others does not mean them.
    fn principal(&self, source: &AuthorizationSource, of: &Of<'_>, own_namespace: &str) -> Principal {
        let mut ids = vec![principal(source, of, own_namespace)];
        if self.action == Action::Allow && excludes_identities(source) {
            ids.insert(0, authenticated(None));
        }
        if self.action == Action::Allow && tokens::excludes(source) {
            ids.insert(0, tokens::any());
        }
        being(Identifier::AndIds(principal::Set { ids }))
    }

    /// Of tokens, nothing is known of a byte stream, as below.
    fn sources<'r>(&self, rule: &'r AuthorizationRule, layer: Layer) -> Option<Vec<Cow<'r, AuthorizationSource>>> {
        let known = |it: &'r AuthorizationSource| match (layer, tokens::are_asked_for(it), self.action) {
            (Layer::Requests, ..) | (_, false, _) => Some(Cow::Borrowed(it)),
            (Layer::Streams, true, Action::Allow) => None,
            (Layer::Streams, true, _) => Some(Cow::Owned(tokens::left_out(it))),
        };
        let sources: Vec<_> = rule.from.iter().filter_map(known).collect();
        (!sources.is_empty() || rule.from.is_empty()).then_some(sources)
    }

    /// Of what is only known of HTTP, nothing is known of a byte stream: an `ALLOW` of it allows no stream, and a `DENY` of it
    /// refuses them all, so that nobody goes round a policy by speaking something else. An `AUDIT` of it records them all.
    fn permissions(&self, rule: &AuthorizationRule, layer: Layer) -> Option<Vec<Permission>> {
        let streams = layer == Layer::Streams;
        let never = |it: &AuthorizationOperation| streams && self.action == Action::Allow && is_of_http(it);
        let operations: Vec<_> = rule.to.iter().filter(|it| !never(it)).collect();
        if operations.is_empty() && !rule.to.is_empty() {
            return None;
        }
        let permissions = operations.into_iter().map(|it| permission(it, layer)).collect();
        Some(if rule.to.is_empty() { vec![allowing(Rule::Any(true))] } else { permissions })
    }
}

fn is_of_http(operation: &AuthorizationOperation) -> bool {
    let AuthorizationOperation { ports, not_ports, .. } = operation;
    let of_ports = AuthorizationOperation { ports: ports.clone(), not_ports: not_ports.clone(), ..Default::default() };
    *operation != of_ports
}

fn permission(operation: &AuthorizationOperation, layer: Layer) -> Permission {
    let AuthorizationOperation { hosts, not_hosts, ports, not_ports, methods, not_methods, paths, not_paths, .. } =
        operation;
    let of_port = |port: &u16| Rule::DestinationPort(u32::from(*port));
    let mut all = Vec::new();
    one_of(&mut all, ports, not_ports, of_port);
    if layer == Layer::Requests {
        one_of(&mut all, hosts, not_hosts, |host| header(":authority", host_pattern(host)));
        one_of(&mut all, methods, not_methods, |method| header(":method", exact(method)));
        one_of(&mut all, paths, not_paths, |text| path(path_pattern(text)));
        one_of(&mut all, &operation.grpc, &[], |method| path(grpc_pattern(method)));
        for AuthorizationHeader { name, values, not_values } in &operation.headers {
            let name = name.to_ascii_lowercase();
            one_of(&mut all, values, not_values, |value| match value.as_str() {
                "*" => present(&name),
                value => header(&name, pattern(value)),
            });
        }
    }
    if all.is_empty() {
        return allowing(Rule::Any(true));
    }
    allowing(Rule::AndRules(permission::Set { rules: all }))
}

/// One of the values has to match, if there are any, and none of `nots`.
fn one_of<T>(all: &mut Vec<Permission>, values: &[T], nots: &[T], rule: impl Fn(&T) -> Rule) {
    let any = |values: &[T]| {
        let rules = values.iter().map(|value| allowing(rule(value))).collect();
        allowing(Rule::OrRules(permission::Set { rules }))
    };
    if !values.is_empty() {
        all.push(any(values));
    }
    if !nots.is_empty() {
        all.push(allowing(Rule::NotRule(Box::new(any(nots)))));
    }
}

/// Whether it is about what the caller's identity is not, though the caller may have one.
fn excludes_identities(source: &AuthorizationSource) -> bool {
    let AuthorizationSource { not_identities, not_namespaces, not_service_accounts, not_trust_domains, .. } = source;
    let of_none = not_identities.iter().any(|it| it == "*");
    !of_none
        && [not_identities, not_namespaces, not_service_accounts, not_trust_domains].iter().any(|it| !it.is_empty())
}

fn principal(source: &AuthorizationSource, of: &Of<'_>, own_namespace: &str) -> Principal {
    let own = [of.trust_domain.to_owned()];
    let domains = if source.trust_domains.is_empty() { &own } else { source.trust_domains.as_slice() };
    let in_domains = |path: &dyn Fn(&str) -> StringMatcher| {
        anyone(domains.iter().map(|domain| authenticated(Some(path(domain)))).collect())
    };
    let namespace = |name: &String| in_domains(&|domain| prefix(format!("spiffe://{domain}/ns/{name}/")));
    let account = |name: &String| {
        let (namespace, name) = name.split_once('/').unwrap_or((own_namespace, name));
        in_domains(&|domain| exact(&format!("spiffe://{domain}/ns/{namespace}/sa/{name}")))
    };
    let identity = |text: &String| authenticated((text != "*").then(|| pattern(text)));
    let domain = |domain: &String| authenticated(Some(prefix(format!("spiffe://{domain}/"))));
    let mut all = Vec::new();
    from_one_of(&mut all, &source.identities, &source.not_identities, &identity);
    from_one_of(&mut all, &source.namespaces, &source.not_namespaces, &namespace);
    from_one_of(&mut all, &source.service_accounts, &source.not_service_accounts, &account);
    from_one_of(&mut all, &source.trust_domains, &source.not_trust_domains, &domain);
    from_one_of(&mut all, &source.ip_blocks, &source.not_ip_blocks, &|text| address(text));
    let principal = |text: &String| tokens::principal(text, of.issuers);
    from_one_of(&mut all, &source.request_principals, &source.not_request_principals, &principal);
    for claim in &source.claims {
        from_one_of(&mut all, &claim.values, &claim.not_values, &|text| tokens::claim(&claim.path, text));
    }
    if all.is_empty() {
        return being(Identifier::Any(true));
    }
    being(Identifier::AndIds(principal::Set { ids: all }))
}

fn from_one_of(all: &mut Vec<Principal>, values: &[String], nots: &[String], principal: &dyn Fn(&String) -> Principal) {
    if !values.is_empty() {
        all.push(anyone(values.iter().map(principal).collect()));
    }
    if !nots.is_empty() {
        all.push(being(Identifier::NotId(Box::new(anyone(nots.iter().map(principal).collect())))));
    }
}

fn any_principal(sources: Vec<Principal>) -> Vec<Principal> {
    if sources.is_empty() { vec![being(Identifier::Any(true))] } else { sources }
}

pub(super) fn anyone(ids: Vec<Principal>) -> Principal {
    being(Identifier::OrIds(principal::Set { ids }))
}

fn authenticated(principal_name: Option<StringMatcher>) -> Principal {
    being(Identifier::Authenticated(Authenticated { principal_name }))
}

/// Of who connects, not of whom a header names.
fn address(text: &str) -> Principal {
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    match text.parse::<IpNet>().ok().or_else(single) {
        Some(range) => being(Identifier::DirectRemoteIp(CidrRange {
            address_prefix: range.network().to_string(),
            prefix_len: uint32(u32::from(range.prefix_len())),
        })),
        // Validation lets none through; one that came all the same stands for nobody.
        None => nobody(),
    }
}

pub(super) fn nobody() -> Principal {
    being(Identifier::NotId(Box::new(being(Identifier::Any(true)))))
}

fn allowing(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

pub(super) fn being(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn header(name: &str, matcher: StringMatcher) -> Rule {
    Rule::Header(HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    })
}

fn present(name: &str) -> Rule {
    let header_match_specifier = Some(HeaderMatchSpecifier::PresentMatch(true));
    Rule::Header(HeaderMatcher { name: name.to_owned(), header_match_specifier, ..HeaderMatcher::default() })
}

fn path(matcher: StringMatcher) -> Rule {
    Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(matcher)) })
}

pub(super) fn matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

pub(super) fn prefix(text: String) -> StringMatcher {
    matcher(MatchPattern::Prefix(text))
}

/// `exact`, `prefix*` or `*suffix`.
pub(super) fn pattern(text: &str) -> StringMatcher {
    match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(before), _) => prefix(before.to_owned()),
        (None, Some(after)) => matcher(MatchPattern::Suffix(after.to_owned())),
        (None, None) => exact(text),
    }
}

/// The host in any case, with any port or none, and with the dot of a full name or without.
fn host_pattern(text: &str) -> StringMatcher {
    let host = regex::escape(text).replace(r"\*", ".*");
    matcher(MatchPattern::SafeRegex(super::build::regex(&format!(r"(?i){host}\.?(:[0-9]+)?"))))
}

fn path_pattern(text: &str) -> StringMatcher {
    if !text.contains('{') {
        return pattern(text);
    }
    let escaped = regex::escape(text);
    let expression = escaped.replace(r"\{\*\*\}", ".*").replace(r"\{\*\}", "[^/]+");
    matcher(MatchPattern::SafeRegex(super::build::regex(&expression)))
}

/// `package.Service/Method`, or all methods of `package.Service`.
fn grpc_pattern(text: &str) -> StringMatcher {
    if text.contains('/') { exact(&format!("/{text}")) } else { prefix(format!("/{text}/")) }
}
