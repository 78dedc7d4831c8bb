//! `HOST:PORT` as people write it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// Longest DNS name in bytes. Source: RFC 1035, section 2.3.4.
const MAX_NAME_BYTES: usize = 253;

/// Why a text names no place to connect to or listen at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No colon, or nothing before it.
    #[error("is not HOST:PORT")]
    Shape,
    /// Not a number from 1 to 65535.
    #[error("has no port from 1 to 65535")]
    Port,
    /// Neither an address nor a DNS name.
    #[error("has a host that is neither an IP address ([...] around IPv6) nor a DNS name")]
    Host,
    /// A place to listen at needs an address.
    #[error("needs an IP address, not a name")]
    Name,
}

/// A host: an address, or a name for the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A DNS name, in lower case.
    Name(String),
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl Endpoint {
    /// The host as Envoy writes it: without brackets.
    pub fn host_text(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.clone(),
        }
    }

    /// True if what goes there does not leave this machine. The kernel takes the unspecified address for loopback.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.is_loopback() || ip.is_unspecified(),
            Host::Name(name) => name == "localhost",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError::Shape)?;
        if host.is_empty() {
            return Err(EndpointError::Shape);
        }
        let port = parse_port(port)?;
        let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match (inner, host.parse::<Ipv4Addr>()) {
            (Some(inner), _) => Host::Ip(IpAddr::V6(inner.parse().map_err(|_| EndpointError::Host)?)),
            (None, Ok(ip)) => Host::Ip(IpAddr::V4(ip)),
            (None, Err(_)) if is_dns_name(host) => Host::Name(host.to_ascii_lowercase()),
            (None, Err(_)) => return Err(EndpointError::Host),
        };
        Ok(Self { host, port })
    }
}

/// `PORT`, or `ADDRESS:PORT`; a bare port is that of every IPv4 address.
///
/// # Errors
/// [`EndpointError`].
pub fn parse_listen(text: &str) -> Result<SocketAddr, EndpointError> {
    if !text.contains(':') {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), parse_port(text)?));
    }
    let endpoint: Endpoint = text.parse()?;
    match endpoint.host {
        Host::Ip(ip) => Ok(SocketAddr::new(ip, endpoint.port)),
        Host::Name(_) => Err(EndpointError::Name),
    }
}

/// True if both cannot be listened at by one process group: the same port, and addresses that overlap.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn parse_port(text: &str) -> Result<u16, EndpointError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(EndpointError::Port),
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63 bytes; the last label is no number, or it would be a broken address.
fn is_dns_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= MAX_NAME_BYTES && name.split('.').all(label) && !numeric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_place() {
        for (text, want) in [
            ("127.0.0.1:80", Ok("127.0.0.1:80")),
            ("[::1]:80", Ok("[::1]:80")),
            ("API.example.org:8443", Ok("api.example.org:8443")),
            ("localhost:1", Ok("localhost:1")),
            ("8080", Err(EndpointError::Shape)),
            (":8080", Err(EndpointError::Shape)),
            ("a:0", Err(EndpointError::Port)),
            ("a:65536", Err(EndpointError::Port)),
            ("a:+80", Err(EndpointError::Port)),
            ("a:", Err(EndpointError::Port)),
            ("::1:80", Err(EndpointError::Host)),
            ("[::1:80", Err(EndpointError::Host)),
            ("1.2.3:80", Err(EndpointError::Host)),
            ("256.1.1.1:80", Err(EndpointError::Host)),
            ("-a.example:80", Err(EndpointError::Host)),
            ("a..b:80", Err(EndpointError::Host)),
            ("a b:80", Err(EndpointError::Host)),
        ] {
            let got = text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
            assert_eq!(got, want.map(str::to_owned), "{text}");
        }
        assert_eq!(parse_listen("80").map(|at| at.to_string()), Ok("0.0.0.0:80".into()));
        assert_eq!(parse_listen("host:80"), Err(EndpointError::Name));
    }

    #[test]
    fn when_two_listeners_collide() {
        for (a, b, want) in [
            ("80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("80", "81", false),
        ] {
            let (at, other) = (parse_listen(a), parse_listen(b));
            assert_eq!(at.and_then(|at| other.map(|other| overlap(at, other))), Ok(want), "{a} {b}");
        }
    }
}
