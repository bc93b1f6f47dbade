use serde::{Deserialize, Serialize};

use super::{Duration, TargetRef};

/// Who may do what. Without `targetRefs` it holds for its namespace; in the mesh's own namespace, for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub action: AuthorizationAction,
    /// It decides nothing, and the proxies count what it would have refused.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dry_run: bool,
    /// Of an `ALLOW`: what it does not allow is refused whatever other policies allow.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overrides: bool,
    /// Of a `CUSTOM`: who is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<AuthorizationProvider>,
    /// None: it matches nothing. One without fields matches everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AuthorizationRule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AuthorizationAction {
    #[default]
    Allow,
    Deny,
    /// Decides nothing: what it matches is written to the audit log.
    Audit,
    /// Who else decides is asked about what it matches.
    Custom,
}

/// A port of a Service that decides about requests, by Envoy's protocols for that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationProvider {
    pub backend: AuthorizationBackend,
    #[serde(default)]
    pub protocol: AuthorizationProtocol,
    /// For the whole answer. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Where there is no answer, the request is let in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fail_open: bool,
    /// Of the response where there is no answer. Default: 403.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_on_error: Option<u16>,
    /// Of `protocol: Http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<AuthorizationHttp>,
    /// The request's body is told, too. None: it is not read before there is an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_body: Option<AuthorizationBody>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationBackend {
    pub name: String,
    /// Default: that of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum AuthorizationProtocol {
    /// `envoy.service.auth.v3.Authorization`.
    #[default]
    Grpc,
    /// The request's head is sent on, and the status of the response decides: 200 lets it in.
    Http,
}

/// Names of headers: `exact`, `prefix*` or `*suffix`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationHttp {
    /// Before the request's path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    /// Of the request, that are told beside `authorization`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include_headers: Vec<String>,
    /// Of an answer that lets the request in, that the application gets instead of what the client has sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers_to_upstream: Vec<String>,
    /// Of one that does not, that the client gets. None: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationBody {
    pub max_bytes: u32,
    /// Of a body that is longer, the beginning is told; else the request is refused.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow_partial: bool,
    /// Over gRPC in `raw_body`, which takes any bytes, instead of `body`, which is text.
    #[serde(default, skip_serializing_if = "is_default")]
    pub as_bytes: bool,
}

/// Matches what comes from one of `from` and is one of `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationRule {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<AuthorizationSource>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<AuthorizationOperation>,
}

/// All fields that are set have to match, each by one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationSource {
    /// SPIFFE IDs; `*` at the beginning or the end stands for anything, and alone for any identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_identities: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// `name` for one of the policy's own namespace, `namespace/name` for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_trust_domains: Vec<String>,
    /// Addresses or ranges of who connects, such as `10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    /// Whose token the request has: `issuer/subject`; `*` at the beginning or the end stands for anything, and alone for any
    /// good token. For HTTP and gRPC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_principals: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_request_principals: Vec<String>,
    /// What the token says. For HTTP and gRPC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<AuthorizationClaim>,
}

/// All fields that are set have to match, each by one of its values. All but the ports are for HTTP and gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationOperation {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// Of the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// `/exact`, `/prefix*`, `*suffix`, or a template: `{*}` is one segment, `{**}` any number of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
    /// gRPC methods: `package.Service/Method`, or `package.Service` for all of its methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<AuthorizationHeader>,
}

/// One of the values has to match, and none of `notValues` may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationHeader {
    pub name: String,
    /// `exact`, `prefix*`, `*suffix`, or `*` for a header that is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

/// One of the values has to match, and none of `notValues` may. Of a list, one of its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationClaim {
    /// The claim's name, and those of members in it.
    pub path: Vec<String>,
    /// `exact`, `prefix*`, `*suffix`, or `*` for a claim that is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
