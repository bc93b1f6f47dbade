//! The form in which a request goes on: HTTP/1.1 or HTTP/2, whatever it came in.

use http::header::{CONNECTION, COOKIE, EXPECT, Entry, HOST, HeaderValue, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri};

use super::{DOWNSTREAM_PROTOCOL, Head};
use crate::config::UpstreamHttp;
use crate::error::{Error, Kind};
use crate::http::RequestBody;
use crate::upstream::{Target, Version};

impl Head {
    /// What to speak to an endpoint.
    pub(crate) fn version_for(&self, target: &Target) -> Version {
        let cluster = target.cluster();
        let in_clear = !target.is_secure();
        if self.upgrades || (self.expects && !(in_clear && cluster.http == UpstreamHttp::Http2)) {
            return Version::Http1;
        }
        let as_downstream = || {
            let http2 = || self.version == http::Version::HTTP_2 || self.grpc;
            self.declared.unwrap_or_else(|| if http2() { Version::Http2 } else { Version::Http1 })
        };
        match cluster.http {
            _ if target.is_proxy() => Version::Http2,
            UpstreamHttp::Http1 => Version::Http1,
            // A cluster of the mesh speaks HTTP/2 between proxies. Endpoints without a proxy are spoken to as the
            // client speaks.
            UpstreamHttp::Http2 if cluster.tls.is_none() || !in_clear => Version::Http2,
            UpstreamHttp::Http2 | UpstreamHttp::Downstream => as_downstream(),
        }
    }

    /// The request for one try. `keep`: another one may follow.
    pub(crate) fn request(
        &mut self,
        body: RequestBody,
        target: &Target,
        version: Version,
        keep: bool,
    ) -> Result<Request<RequestBody>, Error> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let mut headers = if keep { self.headers.clone() } else { std::mem::take(&mut self.headers) };
        if target.is_proxy() {
            let spoken = self.declared.unwrap_or(match self.version {
                http::Version::HTTP_2 => Version::Http2,
                _ => Version::Http1,
            });
            let spoken = if spoken == Version::Http2 { "h2" } else { "http/1.1" };
            headers.insert(DOWNSTREAM_PROTOCOL, HeaderValue::from_static(spoken));
        }
        match version {
            Version::Http1 => {
                *request.uri_mut() = self.for_http1(&mut headers, target);
                *request.version_mut() = http::Version::HTTP_11;
            }
            Version::Http2 => {
                *request.uri_mut() = self.for_http2(&mut headers, target)?;
                *request.version_mut() = http::Version::HTTP_2;
            }
        }
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn for_http1(&self, headers: &mut HeaderMap, target: &Target) -> Uri {
        if let Some(authority) = &self.authority {
            headers.insert(HOST, authority.clone());
        } else if let Some(authority) = self.uri.authority() {
            if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
                headers.insert(HOST, host);
            }
        } else if let Entry::Vacant(entry) = headers.entry(HOST)
            && let Ok(host) = HeaderValue::try_from(target.address().to_string())
        {
            // A client of HTTP/1.0 need not name one, but a server of HTTP/1.1 may insist.
            entry.insert(host);
        }
        if let Some(protocol) = &self.upgrade_to {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
        if self.expects {
            headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        if self.version == http::Version::HTTP_2 {
            join_cookies(headers);
        }
        if self.uri.authority().is_none() || self.method == Method::CONNECT {
            return self.uri.clone();
        }
        self.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
    }

    fn for_http2(&self, headers: &mut HeaderMap, target: &Target) -> Result<Uri, Error> {
        let host = headers.remove(HOST);
        let mut parts = self.uri.clone().into_parts();
        if let Some(authority) = self.authority.as_ref().or(host.as_ref().filter(|_| parts.authority.is_none())) {
            let authority = Authority::try_from(authority.as_bytes())
                .map_err(|e| Error::because(Kind::DownstreamProtocol, format_args!("the host: {e}")))?;
            parts.authority = Some(authority);
        } else if parts.authority.is_none() {
            parts.authority = Authority::try_from(target.address().to_string()).ok();
        }
        parts.scheme.get_or_insert(Scheme::HTTP);
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        Uri::from_parts(parts).map_err(|e| Error::because(Kind::DownstreamProtocol, e))
    }
}

/// HTTP/2 may split cookies into several fields; HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(b"; ".as_slice())) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
