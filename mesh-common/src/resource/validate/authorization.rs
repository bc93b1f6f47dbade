use ipnet::IpNet;

use super::super::{
    AuthorizationAction, AuthorizationClaim, AuthorizationHeader, AuthorizationOperation, AuthorizationPolicySpec,
    AuthorizationSource,
};
use super::Errors;
use super::fields::{at_most, is_token, label, targets};
use crate::identity::{Identity, check_trust_domain};

mod provider;

const MAX_RULES: usize = 64;
const MAX_VALUES: usize = 64;
const MAX_TEXT: usize = 2048;
const MAX_CLAIMS: usize = 16;
const MAX_CLAIM_DEPTH: usize = 8;

pub(super) fn policy(spec: &AuthorizationPolicySpec, errors: &mut Errors) {
    targets(errors, &spec.target_refs, &["Service"]);
    for (i, target) in spec.target_refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{i}].sectionName");
        errors.add_if(target.section_name.is_some(), path, "name workload ports in `to[].ports` instead");
    }
    if spec.action == AuthorizationAction::Deny {
        errors.add_if(spec.rules.is_empty(), "spec.rules", "a DENY without a rule refuses nothing; `[{}]` refuses all");
        errors.add_if(spec.overrides, "spec.overrides", "a DENY always overrides; this is for `action: ALLOW`");
    }
    if spec.action == AuthorizationAction::Audit {
        errors.add_if(
            spec.rules.is_empty(),
            "spec.rules",
            "an AUDIT without a rule records nothing; `[{}]` records all",
        );
        errors.add_if(spec.overrides, "spec.overrides", "an AUDIT decides nothing; this is for `action: ALLOW`");
        errors.add_if(spec.dry_run, "spec.dryRun", "an AUDIT refuses nothing; this is for `ALLOW` and `DENY`");
    }
    match (&spec.provider, spec.action == AuthorizationAction::Custom) {
        (Some(it), true) => {
            errors.add_if(
                spec.rules.is_empty(),
                "spec.rules",
                "a CUSTOM without a rule asks about nothing; `[{}]` asks about all",
            );
            errors.add_if(
                spec.overrides,
                "spec.overrides",
                "what a CUSTOM refuses is refused; this is for `action: ALLOW`",
            );
            errors.add_if(spec.dry_run, "spec.dryRun", "nobody can be asked on trial; this is for `ALLOW` and `DENY`");
            provider::check(it, errors);
        }
        (None, true) => errors.add("spec.provider", "a CUSTOM needs somebody to ask"),
        (Some(_), false) => errors.add("spec.provider", "nobody else is asked; this is for `action: CUSTOM`"),
        (None, false) => (),
    }
    let idle = spec.overrides && spec.dry_run;
    errors.add_if(idle, "spec.overrides", "a dry run overrides nothing; set one of `overrides` and `dryRun`");
    at_most(errors, "spec.rules", spec.rules.len(), MAX_RULES);
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        at_most(errors, &format!("{path}.from"), rule.from.len(), MAX_VALUES);
        at_most(errors, &format!("{path}.to"), rule.to.len(), MAX_VALUES);
        rule.from.iter().enumerate().for_each(|(i, it)| source(errors, &format!("{path}.from[{i}]"), it));
        rule.to.iter().enumerate().for_each(|(i, it)| operation(errors, &format!("{path}.to[{i}]"), it));
    }
}

fn source(errors: &mut Errors, path: &str, source: &AuthorizationSource) {
    let empty = *source == AuthorizationSource::default();
    errors.add_if(empty, path, "a source without fields; leave `from` out for everybody");
    let AuthorizationSource { identities, not_identities, namespaces, not_namespaces, .. } = source;
    each(errors, path, "identities", identities, identity);
    each(errors, path, "notIdentities", not_identities, identity);
    each(errors, path, "namespaces", namespaces, label);
    each(errors, path, "notNamespaces", not_namespaces, label);
    each(errors, path, "serviceAccounts", &source.service_accounts, service_account);
    each(errors, path, "notServiceAccounts", &source.not_service_accounts, service_account);
    each(errors, path, "trustDomains", &source.trust_domains, trust_domain);
    each(errors, path, "notTrustDomains", &source.not_trust_domains, trust_domain);
    each(errors, path, "ipBlocks", &source.ip_blocks, ip_block);
    each(errors, path, "notIpBlocks", &source.not_ip_blocks, ip_block);
    each(errors, path, "requestPrincipals", &source.request_principals, request_principal);
    each(errors, path, "notRequestPrincipals", &source.not_request_principals, request_principal);
    at_most(errors, &format!("{path}.claims"), source.claims.len(), MAX_CLAIMS);
    source.claims.iter().enumerate().for_each(|(i, it)| claim(errors, &format!("{path}.claims[{i}]"), it));
}

fn request_principal(errors: &mut Errors, path: &str, text: &str) {
    let whole = pattern(errors, path, text) && !text.contains('*');
    let wrong = whole && !text.contains('/');
    errors.add_if(wrong, path, format!("{text:?} is not `issuer/subject`"));
}

fn claim(errors: &mut Errors, path: &str, claim: &AuthorizationClaim) {
    let steps = claim.path.len();
    let wrong = !(1..=MAX_CLAIM_DEPTH).contains(&steps) || claim.path.iter().any(|it| it.is_empty() || it.len() > 256);
    let text = format!("a claim's name of 1 to 256 bytes is needed, and of at most {MAX_CLAIM_DEPTH} levels");
    errors.add_if(wrong, format!("{path}.path"), text);
    let nothing = claim.values.is_empty() && claim.not_values.is_empty();
    errors.add_if(nothing, path, "`values` or `notValues` is needed; `*` stands for any value");
    each(errors, path, "values", &claim.values, |errors, path, text| _ = pattern(errors, path, text));
    each(errors, path, "notValues", &claim.not_values, |errors, path, text| _ = pattern(errors, path, text));
}

fn operation(errors: &mut Errors, path: &str, operation: &AuthorizationOperation) {
    let empty = *operation == AuthorizationOperation::default();
    errors.add_if(empty, path, "an operation without fields; leave `to` out for all");
    each(errors, path, "hosts", &operation.hosts, host);
    each(errors, path, "notHosts", &operation.not_hosts, host);
    for (field, ports) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        at_most(errors, &format!("{path}.{field}"), ports.len(), MAX_VALUES);
        let zero = ports.iter().position(|port| *port == 0);
        zero.into_iter().for_each(|i| errors.add(format!("{path}.{field}[{i}]"), "a port is from 1 to 65535"));
    }
    each(errors, path, "methods", &operation.methods, method);
    each(errors, path, "notMethods", &operation.not_methods, method);
    each(errors, path, "paths", &operation.paths, url_path);
    each(errors, path, "notPaths", &operation.not_paths, url_path);
    each(errors, path, "grpc", &operation.grpc, grpc);
    at_most(errors, &format!("{path}.headers"), operation.headers.len(), MAX_VALUES);
    operation.headers.iter().enumerate().for_each(|(i, it)| header(errors, &format!("{path}.headers[{i}]"), it));
}

fn each(errors: &mut Errors, path: &str, field: &str, values: &[String], check: fn(&mut Errors, &str, &str)) {
    at_most(errors, &format!("{path}.{field}"), values.len(), MAX_VALUES);
    for (i, value) in values.iter().enumerate() {
        let path = format!("{path}.{field}[{i}]");
        if value.is_empty() || value.len() > MAX_TEXT {
            errors.add(path, format!("a value of 1 to {MAX_TEXT} bytes is needed"));
        } else {
            check(errors, &path, value);
        }
    }
}

/// `*` may stand at one end.
fn pattern(errors: &mut Errors, path: &str, text: &str) -> bool {
    let bare = text.strip_suffix('*').or_else(|| text.strip_prefix('*')).unwrap_or(text);
    let fits = !bare.contains('*');
    errors.add_if(!fits, path, format!("in {text:?}, `*` can only be the first or the last character"));
    fits
}

fn identity(errors: &mut Errors, path: &str, text: &str) {
    if !pattern(errors, path, text) || text.contains('*') {
        return;
    }
    if let Err(error) = text.parse::<Identity>() {
        errors.add(path, error.to_string());
    }
}

fn service_account(errors: &mut Errors, path: &str, text: &str) {
    let (namespace, name) = text.split_once('/').map_or((None, text), |(namespace, name)| (Some(namespace), name));
    namespace.into_iter().chain([name]).for_each(|part| label(errors, path, part));
}

fn trust_domain(errors: &mut Errors, path: &str, text: &str) {
    if let Err(error) = check_trust_domain(text) {
        errors.add(path, error.to_string());
    }
}

fn ip_block(errors: &mut Errors, path: &str, text: &str) {
    let fits = text.parse::<IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok();
    errors.add_if(!fits, path, format!("{text:?} is neither an IP address nor a range such as 10.0.0.0/8"));
}

fn host(errors: &mut Errors, path: &str, text: &str) {
    if !pattern(errors, path, text) {
        return;
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._*:[]".contains(&b);
    let port = !text.starts_with('[') && text.contains(':');
    let fits = text.bytes().all(allowed) && !port;
    errors.add_if(!fits, path, format!("{text:?} is not a host in lower case, without a port"));
}

fn method(errors: &mut Errors, path: &str, text: &str) {
    let fits = is_token(text) && !text.bytes().any(|b| b.is_ascii_lowercase()) && !text.contains('*');
    errors.add_if(!fits, path, format!("{text:?} is not an HTTP method, such as GET"));
}

/// Only what a path can be after it was made canonical, else the pattern would never match and its author not know.
fn url_path(errors: &mut Errors, path: &str, text: &str) {
    let template = text.contains(['{', '}']);
    if template {
        let plain = text.replace("{**}", "").replace("{*}", "");
        let wrong = plain.contains(['{', '}', '*']);
        errors.add_if(wrong, path, format!("in {text:?}, a template has only `{{*}}` and `{{**}}`, and no other `*`"));
    } else if !pattern(errors, path, text) {
        return;
    }
    let rooted = text.starts_with('/') || (text.starts_with('*') && !template);
    errors.add_if(!rooted, path, format!("{text:?} does not begin with `/` (or with `*` for a suffix)"));
    let foreign = text.contains(['?', '#', '\\', ' ']) || text.bytes().any(|b| !(0x21..0x7f).contains(&b));
    errors.add_if(foreign, path, format!("{text:?} has a character that a path never has (no query, no fragment)"));
    let encoded = text.split('%').skip(1).any(|rest| !is_needed_encoding(rest.as_bytes()));
    errors.add_if(encoded, path, format!("{text:?} has an encoding that no path has: `%XX`, in upper case, of a character that may not be written as it is"));
    let dots = text.split('/').any(|segment| matches!(segment, "." | "..")) || text.contains("//");
    errors.add_if(dots, path, format!("{text:?} has a segment that is resolved before the match (`.`, `..` or `//`)"));
}

/// Whether `XX...` is how a path writes a byte that can't stand for itself.
fn is_needed_encoding(rest: &[u8]) -> bool {
    let &[high, low, ..] = rest else { return false };
    let digit = |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_lowercase());
    let (Some(high), Some(low)) = (digit(high), digit(low)) else { return false };
    let byte = u8::try_from(high * 16 + low).unwrap_or_default();
    let bare = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte);
    !bare && byte >= 0x20 && byte != 0x7f
}

fn grpc(errors: &mut Errors, path: &str, text: &str) {
    let name = |text: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
        !text.is_empty() && text.bytes().all(inner)
    };
    let fits = text.split_once('/').map_or_else(|| name(text), |(service, method)| name(service) && name(method));
    errors.add_if(!fits, path, format!("{text:?} is neither `package.Service` nor `package.Service/Method`"));
}

fn header(errors: &mut Errors, path: &str, header: &AuthorizationHeader) {
    let name = format!("{path}.name");
    errors.add_if(!is_token(&header.name), &name, format!("{:?} is not the name of an HTTP header", header.name));
    let host = header.name.eq_ignore_ascii_case("host");
    errors.add_if(host, &name, "the host is matched by `hosts`");
    let nothing = header.values.is_empty() && header.not_values.is_empty();
    errors.add_if(nothing, path, "`values` or `notValues` is needed; `*` stands for any value");
    each(errors, path, "values", &header.values, |errors, path, text| _ = pattern(errors, path, text));
    each(errors, path, "notValues", &header.not_values, |errors, path, text| _ = pattern(errors, path, text));
}
