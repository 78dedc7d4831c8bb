//! Relationships with other trust domains: where their bundles are fetched, and how the server there proves itself.
//! Source: SPIFFE Federation, section 5.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::id::{SpiffeId, TrustDomain};

/// Longest URL, in bytes.
const MAX_URL_BYTES: usize = 2048;
/// What is asked when the URL names no port.
const HTTPS_PORT: u16 = 443;

/// Why a text is no URL of a bundle endpoint. The texts are SPIRE's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    /// Not a URL at all.
    #[error("failed to parse bundle endpoint URL: {0}")]
    Malformed(&'static str),
    /// Another scheme, or none.
    #[error("bundle endpoint URL must use the https scheme")]
    Scheme,
    /// No host.
    #[error("bundle endpoint URL must specify the host")]
    Host,
    /// A user name or password.
    #[error("bundle endpoint URL must not contain user info")]
    UserInfo,
}

/// The URL of a bundle endpoint.
/// Invariant: https, with a host, without user info; printable ASCII, at most 2048 bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EndpointUrl {
    text: Arc<str>,
    /// Where the host stands in `text`, without the brackets of an IPv6 address.
    host: (usize, usize),
    port: u16,
    /// Where the path begins; what follows a `#` is not sent.
    path: (usize, usize),
}

impl EndpointUrl {
    /// The URL, its scheme in lower case.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Host name or address; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.text[self.host.0..self.host.1]
    }

    /// The port, 443 where none is named.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a request's first line asks for: path and query, `/` where there is none.
    pub fn path_and_query(&self) -> String {
        match &self.text[self.path.0..self.path.1] {
            "" => "/".into(),
            query if query.starts_with('?') => format!("/{query}"),
            path => path.into(),
        }
    }

    /// Host and port as the `Host` header wants them.
    pub fn authority(&self) -> String {
        let host = self.host();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        if self.port == HTTPS_PORT { host } else { format!("{host}:{}", self.port) }
    }
}

impl FromStr for EndpointUrl {
    type Err = EndpointUrlError;

    fn from_str(text: &str) -> Result<Self, EndpointUrlError> {
        use EndpointUrlError::Malformed;
        if text.len() > MAX_URL_BYTES {
            return Err(Malformed("it is longer than 2048 bytes"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Malformed("it holds spaces, control characters or characters that are not ASCII"));
        }
        let (scheme, rest) = text.split_once("://").ok_or(EndpointUrlError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(EndpointUrlError::Scheme);
        }
        let text = format!("https://{rest}");
        let start = text.len() - rest.len();
        let end = start + rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let authority = &text[start..end];
        if authority.contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        let host_at = start + usize::from(authority.starts_with('['));
        check_host(host, authority.starts_with('['))?;
        let path_end = text[end..].find('#').map_or(text.len(), |at| end + at);
        let (host, path) = ((host_at, host_at + host.len()), (end, path_end));
        Ok(Self { host, port, path, text: text.into() })
    }
}

/// Host (without brackets) and port of `host:port`, `[address]:port`, or either without a port.
fn split_port(authority: &str) -> Result<(&str, u16), EndpointUrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            rest.split_once(']').ok_or(EndpointUrlError::Malformed("\"]\" is missing behind the address"))?
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => HTTPS_PORT,
        Some("") => HTTPS_PORT,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or(EndpointUrlError::Malformed("the port is out of range"))?,
        _ => return Err(EndpointUrlError::Malformed("the port is not a number")),
    };
    Ok((host, port))
}

fn check_host(host: &str, is_bracketed: bool) -> Result<(), EndpointUrlError> {
    if host.is_empty() {
        return Err(EndpointUrlError::Host);
    }
    if is_bracketed {
        let parsed = host.parse::<std::net::Ipv6Addr>();
        return parsed.map(drop).map_err(|_| EndpointUrlError::Malformed("the address is not IPv6"));
    }
    match host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        true => Ok(()),
        false => Err(EndpointUrlError::Malformed("the host name holds characters that no host name has")),
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// How the server of a bundle endpoint proves who it is. One profile never stands in for the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointProfile {
    /// With a certificate of a public CA that names the URL's host.
    Web,
    /// With an X509-SVID for exactly this ID, whatever the host is called.
    Spiffe(SpiffeId),
}

impl EndpointProfile {
    /// SPIRE's name: `https_web` or `https_spiffe`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Web => "https_web",
            Self::Spiffe(_) => "https_spiffe",
        }
    }

    /// The ID that the endpoint's server must show.
    pub fn endpoint_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Web => None,
            Self::Spiffe(id) => Some(id),
        }
    }
}

/// That another trust domain's bundle is fetched. Trust in its identities goes one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relationship {
    /// The other trust domain. Never concluded from the URL or from what is found there.
    pub trust_domain: TrustDomain,
    /// Where its bundle is.
    pub url: EndpointUrl,
    /// How the server there proves itself.
    pub profile: EndpointProfile,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use EndpointUrlError::*;

    /// Conformance: FED-24, FED-25, FED-26, FED-46, FED-47.
    #[test]
    fn urls_of_bundle_endpoints() {
        let check = |text: &str, want: Result<(&str, u16, &str, &str), EndpointUrlError>| {
            let got = text.parse::<EndpointUrl>();
            let parts = got.map(|url| {
                (url.host().to_owned(), url.port(), url.path_and_query(), url.authority(), url.to_string())
            });
            let want = want.map(|(host, port, path, authority)| {
                let text = text.replacen("HTTPS", "https", 1);
                (host.to_owned(), port, path.to_owned(), authority.to_owned(), text)
            });
            assert_eq!(parts, want, "{text}");
        };
        check("https://a.test", Ok(("a.test", 443, "/", "a.test")));
        check("https://a.test/", Ok(("a.test", 443, "/", "a.test")));
        check("https://a.test/b/c.json", Ok(("a.test", 443, "/b/c.json", "a.test")));
        check("https://a.test:8443/b", Ok(("a.test", 8443, "/b", "a.test:8443")));
        check("https://a.test:443", Ok(("a.test", 443, "/", "a.test")));
        check("https://127.0.0.1:8443", Ok(("127.0.0.1", 8443, "/", "127.0.0.1:8443")));
        check("https://[::1]:8443/x", Ok(("::1", 8443, "/x", "[::1]:8443")));
        check("https://[::1]", Ok(("::1", 443, "/", "[::1]")));
        check("https://a.test?x=1", Ok(("a.test", 443, "/?x=1", "a.test")));
        check("https://a.test/p?x=1#top", Ok(("a.test", 443, "/p?x=1", "a.test")));
        check("https://a.test#u@b", Ok(("a.test", 443, "/", "a.test")));
        check("HTTPS://a.test", Ok(("a.test", 443, "/", "a.test")));
        check("http://a.test", Err(Scheme));
        check("ftp://a.test", Err(Scheme));
        check("https:a.test", Err(Scheme));
        check("a.test/path", Err(Scheme));
        check("//a.test", Err(Scheme));
        check("", Err(Scheme));
        check("spiffe://a.test", Err(Scheme));
        check("https://u@a.test", Err(UserInfo));
        check("https://u:p@a.test", Err(UserInfo));
        check("https://@a.test", Err(UserInfo));
        check("https:///path", Err(Host));
        check("https://:8443", Err(Host));
        check("https://a.test:0", Err(Malformed("the port is out of range")));
        check("https://a.test:70000", Err(Malformed("the port is out of range")));
        check("https://a.test:8a", Err(Malformed("the port is not a number")));
        check("https://[::1", Err(Malformed("\"]\" is missing behind the address")));
        check("https://[a.test]", Err(Malformed("the address is not IPv6")));
        let odd = Malformed("it holds spaces, control characters or characters that are not ASCII");
        check("https://a.test/\r\nHost: b", Err(odd.clone()));
        check("https://a.test/\u{e9}", Err(odd));
        check("https://a%41.test", Err(Malformed("the host name holds characters that no host name has")));
        let long = format!("https://a.test/{}", "x".repeat(2048));
        check(&long, Err(Malformed("it is longer than 2048 bytes")));
    }
}
