//! Which requests a rule is for: from flags to Gateway API's matches, and from matches to a line for people.

use mesh_common::resource::{
    GrpcMethodMatch, GrpcRouteMatch, HttpMethod, HttpPathMatch, HttpRouteMatch, MatchType, NamedMatch, PathMatchType,
};

/// Flags that say which requests are meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "conditions", multiple = true)]
#[command(next_help_heading = "Which requests (all that are given must hold)")]
pub struct Conditions {
    /// Requests with this header
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub header: Vec<(String, String)>,
    /// Requests with a header that matches this regular expression as a whole
    #[arg(long, value_name = "NAME=REGEX", value_parser = name_and_value)]
    pub header_regex: Vec<(String, String)>,
    /// Requests with this cookie
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub cookie: Vec<(String, String)>,
    /// Requests with this query parameter
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub query: Vec<(String, String)>,
    /// Requests whose path is this or below it
    #[arg(long, value_name = "PREFIX")]
    pub path: Option<String>,
    /// Requests with this HTTP method; for gRPC: SERVICE/METHOD
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
}

impl Conditions {
    pub fn is_empty(&self) -> bool {
        let lists = [&self.header, &self.header_regex, &self.cookie, &self.query];
        lists.iter().all(|list| list.is_empty()) && self.path.is_none() && self.method.is_none()
    }

    /// The headers, with cookies as what they are on the wire.
    pub fn headers(&self) -> Vec<NamedMatch> {
        let exact = self.header.iter().map(|(name, value)| named(MatchType::Exact, name, value));
        let regex = self.header_regex.iter().map(|(name, value)| named(MatchType::RegularExpression, name, value));
        let cookies = self
            .cookie
            .iter()
            .map(|(name, value)| named(MatchType::RegularExpression, "cookie", &cookie_expression(name, value)));
        exact.chain(regex).chain(cookies).collect()
    }

    pub fn http(&self) -> Result<HttpRouteMatch, String> {
        Ok(HttpRouteMatch {
            path: self
                .path
                .clone()
                .map(|value| HttpPathMatch { match_type: Some(PathMatchType::PathPrefix), value: Some(value) }),
            headers: self.headers(),
            query_params: self.query.iter().map(|(name, value)| named(MatchType::Exact, name, value)).collect(),
            method: self.method.as_deref().map(http_method).transpose()?,
        })
    }

    pub fn grpc(&self) -> Result<GrpcRouteMatch, String> {
        if !self.query.is_empty() || self.path.is_some() {
            return Err(
                "gRPC requests have no query and their path is the method: use --method SERVICE/METHOD".to_owned()
            );
        }
        let method = self.method.as_deref().map(|text| {
            let (service, method) = text.trim_start_matches('/').split_once('/').unwrap_or((text, ""));
            let filled = |part: &str| (!part.is_empty()).then(|| part.to_owned());
            GrpcMethodMatch { match_type: Some(MatchType::Exact), service: filled(service), method: filled(method) }
        });
        Ok(GrpcRouteMatch { method, headers: self.headers() })
    }
}

fn named(match_type: MatchType, name: &str, value: &str) -> NamedMatch {
    NamedMatch { match_type: Some(match_type), name: name.to_owned(), value: value.to_owned() }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` must be NAME=VALUE")),
    }
}

fn http_method(text: &str) -> Result<HttpMethod, String> {
    let quoted = format!("\"{}\"", text.to_ascii_uppercase());
    serde_json::from_str(&quoted).map_err(|_| format!("`{text}` is not an HTTP method that routes know"))
}

const COOKIE_BEFORE: &str = "(.*;\\s*)?";
const COOKIE_AFTER: &str = "(\\s*;.*)?";

/// A `Cookie` header that holds just this pair among others (RFC 6265, section 4.2.1).
fn cookie_expression(name: &str, value: &str) -> String {
    format!("{COOKIE_BEFORE}{}={}{COOKIE_AFTER}", escape(name), escape(value))
}

/// The pair in an expression of [`cookie_expression`]'s form.
fn cookie_pair(expression: &str) -> Option<String> {
    let pair = expression.strip_prefix(COOKIE_BEFORE)?.strip_suffix(COOKIE_AFTER)?;
    Some(unescape(pair))
}

const SPECIAL: &str = "\\.+*?()|[]{}^$#&-~/";

fn escape(text: &str) -> String {
    text.chars().flat_map(|c| SPECIAL.contains(c).then_some('\\').into_iter().chain([c])).collect()
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

/// A line for people: `path /api/*, header end-user=jason`; "" when every request matches.
pub fn describe_http(matched: &HttpRouteMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(matched.method.map(|m| m.as_str().to_owned()));
    if let Some(path) = &matched.path {
        let value = path.value.as_deref().unwrap_or("/");
        match path.match_type.unwrap_or_default() {
            PathMatchType::PathPrefix if value == "/" => {}
            PathMatchType::PathPrefix => parts.push(format!("path {}/*", value.trim_end_matches('/'))),
            PathMatchType::Exact => parts.push(format!("path {value}")),
            PathMatchType::RegularExpression => parts.push(format!("path ~{value}")),
        }
    }
    parts.extend(matched.headers.iter().map(describe_header));
    parts.extend(matched.query_params.iter().map(|q| format!("query {}", pair(q))));
    parts.join(", ")
}

pub fn describe_grpc(matched: &GrpcRouteMatch) -> String {
    let method = matched.method.as_ref().map(|m| {
        let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "*".to_owned());
        format!("method {}/{}", part(&m.service), part(&m.method))
    });
    method.into_iter().chain(matched.headers.iter().map(describe_header)).collect::<Vec<_>>().join(", ")
}

pub fn describe_header(header: &NamedMatch) -> String {
    match cookie_pair(&header.value) {
        Some(pair) if header.name.eq_ignore_ascii_case("cookie") => format!("cookie {pair}"),
        _ => format!("header {}", pair(header)),
    }
}

fn pair(matched: &NamedMatch) -> String {
    match matched.match_type.unwrap_or_default() {
        MatchType::Exact => format!("{}={}", matched.name, matched.value),
        MatchType::RegularExpression => format!("{}~{}", matched.name, matched.value),
    }
}

/// With every default written out, so that equal conditions are equal values.
pub fn normal_http(matched: &HttpRouteMatch) -> HttpRouteMatch {
    let path = matched.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".to_owned());
    HttpRouteMatch {
        path: Some(HttpPathMatch { match_type: Some(path.match_type.unwrap_or_default()), value: Some(value) }),
        headers: normal_named(&matched.headers, true),
        query_params: normal_named(&matched.query_params, false),
        method: matched.method,
    }
}

pub fn normal_grpc(matched: &GrpcRouteMatch) -> GrpcRouteMatch {
    let method = matched
        .method
        .clone()
        .filter(|m| m.service.is_some() || m.method.is_some())
        .map(|m| GrpcMethodMatch { match_type: Some(m.match_type.unwrap_or_default()), ..m });
    GrpcRouteMatch { method, headers: normal_named(&matched.headers, true) }
}

/// Header names have no case; the order of the conditions says nothing.
fn normal_named(list: &[NamedMatch], lower_case: bool) -> Vec<NamedMatch> {
    let normal = |m: &NamedMatch| NamedMatch {
        match_type: Some(m.match_type.unwrap_or_default()),
        name: if lower_case { m.name.to_ascii_lowercase() } else { m.name.clone() },
        value: m.value.clone(),
    };
    let mut list: Vec<NamedMatch> = list.iter().map(normal).collect();
    list.sort_by(|a, b| (&a.name, &a.value).cmp(&(&b.name, &b.value)));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_a_header_that_holds_the_pair() {
        let conditions = Conditions { cookie: vec![("user".into(), "ja.son".into())], ..Conditions::default() };
        let matched = conditions.http().unwrap();
        assert_eq!(matched.headers[0].name, "cookie");
        assert_eq!(matched.headers[0].value, "(.*;\\s*)?user=ja\\.son(\\s*;.*)?");
        assert_eq!(describe_http(&matched), "cookie user=ja.son");
    }

    #[test]
    fn matches_are_described_in_a_line() {
        let conditions = Conditions {
            header: vec![("end-user".into(), "jason".into())],
            query: vec![("beta".into(), "1".into())],
            path: Some("/api".into()),
            method: Some("post".into()),
            ..Conditions::default()
        };
        assert_eq!(
            describe_http(&conditions.http().unwrap()),
            "POST, path /api/*, header end-user=jason, query beta=1"
        );
        assert_eq!(describe_http(&HttpRouteMatch::default()), "");
    }

    #[test]
    fn a_grpc_method_is_service_and_method() {
        let conditions = Conditions { method: Some("shop.Ratings/Get".into()), ..Conditions::default() };
        assert_eq!(describe_grpc(&conditions.grpc().unwrap()), "method shop.Ratings/Get");
        assert!(Conditions { path: Some("/".into()), ..Conditions::default() }.grpc().is_err());
    }

    #[test]
    fn defaults_and_order_do_not_make_a_difference() {
        let one = HttpRouteMatch {
            headers: vec![named(MatchType::Exact, "B", "2"), named(MatchType::Exact, "a", "1")],
            ..HttpRouteMatch::default()
        };
        let mut other = one.clone();
        other.headers.reverse();
        other.headers[1].match_type = None;
        other.headers[1].name = "b".into();
        other.path = Some(HttpPathMatch { match_type: None, value: Some("/".into()) });
        assert_eq!(normal_http(&one), normal_http(&other));
    }
}
