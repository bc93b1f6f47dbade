use std::net::IpAddr;

const MAX_BYTES: usize = 2048;

/// What keys may be fetched from: whoever can change them on the way can make tokens, so it is HTTPS, or what never leaves the
/// machine. The error says what is wrong with it.
pub fn check_uri(uri: &str) -> Result<(), String> {
    if uri.len() > MAX_BYTES || !uri.bytes().all(|b| (0x21..0x7f).contains(&b)) || uri.contains(['#', '@', '\\']) {
        return Err(format!("a URL of at most {MAX_BYTES} visible characters is needed, with no user and no fragment"));
    }
    let (scheme, rest) = uri.split_once("://").ok_or_else(|| format!("{uri:?} is not a URL"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err(format!("{uri:?} has no host, or a port that is none"));
    }
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        "http" => Err("keys are fetched with https (http only from a loopback address)".to_owned()),
        _ => Err(format!("{uri:?} does not begin with https://")),
    }
}
