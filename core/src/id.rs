//! SPIFFE IDs and trust domains as types: one in hand proves that the rules were met.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// Longest SPIFFE ID in bytes. Source: SPIFFE-ID, section 2.3.
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain name in bytes. Source: SPIFFE-ID, section 2.1.
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// Why a text is no SPIFFE ID, trust domain, or not one of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("cannot be empty")]
    Empty,
    /// The text does not begin with `spiffe://`.
    #[error("scheme is missing or invalid")]
    Scheme,
    /// The trust domain has no bytes.
    #[error("trust domain is missing")]
    TrustDomainMissing,
    /// The trust domain is longer than 255 bytes.
    #[error("trust domain is too long: {0} bytes, 255 allowed")]
    TrustDomainLength(usize),
    /// A byte of the trust domain, at this offset in it, is not allowed.
    #[error(
        "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
    )]
    TrustDomainByte {
        /// Offset in the trust domain name.
        at: usize,
    },
    /// The whole ID is longer than 2048 bytes.
    #[error("SPIFFE ID is too long: {0} bytes, 2048 allowed")]
    Length(usize),
    /// A path does not begin with a slash.
    #[error("path must have a leading slash")]
    NoLeadingSlash,
    /// A path ends in a slash.
    #[error("path cannot have a trailing slash")]
    TrailingSlash,
    /// A path has two slashes in a row.
    #[error("path cannot contain empty segments")]
    EmptySegment,
    /// A path segment is `.` or `..`.
    #[error("path cannot contain dot segments")]
    DotSegment,
    /// A byte of the path, at this offset in it, is not allowed.
    #[error("path segment characters are limited to letters, numbers, dots, dashes, and underscores")]
    PathByte {
        /// Offset in the path.
        at: usize,
    },
    /// The ID belongs to another trust domain than the one asked for.
    #[error("{id:?} is not a member of trust domain {want:?}")]
    NotMember {
        /// The ID that was given.
        id: String,
        /// The trust domain that was wanted.
        want: String,
    },
    /// The ID has no path, so it names a trust domain and no workload.
    #[error("{kind} ID cannot be empty: path is empty")]
    PathMissing {
        /// Which kind of ID was wanted.
        kind: &'static str,
    },
    /// A workload ID lies in the namespace reserved for the control plane.
    #[error("{0:?} is not a workload in trust domain: path is in the reserved namespace")]
    Reserved(String),
    /// The ID is not below `/spire/agent/`.
    #[error("{0:?} is not an agent in trust domain: path is not in the agent namespace")]
    NotAgent(String),
}

/// A trust domain name. Invariant: 1 to 255 bytes of `a-z 0-9 . - _` (SPIFFE-ID, sections 2.1 and 2.3).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The bare name, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `spiffe://<name>`, the ID of the trust domain itself.
    pub fn id(&self) -> SpiffeId {
        SpiffeId::join(self, "")
    }

    /// Parses a name or any SPIFFE ID of the trust domain, as SPIRE's configuration and CLI accept both.
    /// # Errors
    /// [`IdError`] names the rule that was broken.
    pub fn from_name_or_id(text: &str) -> Result<Self, IdError> {
        if text.contains(":/") {
            return text.parse::<SpiffeId>().map(|id| id.trust_domain());
        }
        text.parse()
    }

    /// `spiffe://<td>/spire/server`: the one identity agents accept as server.
    pub fn server_id(&self) -> SpiffeId {
        SpiffeId::join(self, "/spire/server")
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;
    fn from_str(name: &str) -> Result<Self, IdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }
}

fn check_trust_domain(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::TrustDomainMissing);
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(IdError::TrustDomainLength(name.len()));
    }
    match name.bytes().position(|b| !is_trust_domain_byte(b)) {
        Some(at) => Err(IdError::TrustDomainByte { at }),
        None => Ok(()),
    }
}

fn is_trust_domain_byte(b: u8) -> bool {
    matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')
}

fn is_path_byte(b: u8) -> bool {
    matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_')
}

/// Checks a path: empty, or `/segment` one or more times.
/// # Errors
/// [`IdError`] names the rule (SPIFFE-ID, section 2.2).
pub fn check_path(path: &str) -> Result<(), IdError> {
    if path.is_empty() {
        return Ok(());
    }
    if !path.starts_with('/') {
        return Err(IdError::NoLeadingSlash);
    }
    let mut at = 1;
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "" if segments.peek().is_none() => return Err(IdError::TrailingSlash),
            "" => return Err(IdError::EmptySegment),
            "." | ".." => return Err(IdError::DotSegment),
            _ => {}
        }
        if let Some(bad) = segment.bytes().position(|b| !is_path_byte(b)) {
            return Err(IdError::PathByte { at: at + bad });
        }
        at += segment.len() + 1;
    }
    Ok(())
}

/// A SPIFFE ID. Invariant: at most 2048 bytes, a valid trust domain, and a path that is empty or valid.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Offset of the path in `text`: `spiffe://` and the trust domain.
    path_at: u16,
}

impl SpiffeId {
    /// Builds an ID from its parts, as they travel on the wire (`types.SPIFFEID`).
    /// # Errors
    /// [`IdError`] for either part, or for the whole being too long.
    pub fn from_parts(trust_domain: &str, path: &str) -> Result<Self, IdError> {
        check_trust_domain(trust_domain)?;
        check_path(path)?;
        let text = format!("{SCHEME}{trust_domain}{path}");
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::Length(text.len()));
        }
        Ok(Self::assemble(text, trust_domain.len()))
    }

    /// Joins a path that is known to be valid by construction.
    fn join(trust_domain: &TrustDomain, path: &'static str) -> Self {
        Self::assemble(format!("{SCHEME}{}{path}", trust_domain.as_str()), trust_domain.as_str().len())
    }

    fn assemble(text: String, trust_domain_len: usize) -> Self {
        let path_at = (SCHEME.len() + trust_domain_len) as u16; // at most 9 + 255
        Self { text: text.into(), path_at }
    }

    /// The whole ID as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name, without allocating.
    pub fn trust_domain_name(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path_at)]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_name().into())
    }

    /// The path: empty, or beginning with a slash.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path_at)..]
    }

    /// True if the ID lies in this trust domain.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.trust_domain_name() == trust_domain.as_str()
    }

    /// True for paths `/spire` and below: the control plane's namespace.
    pub fn is_reserved(&self) -> bool {
        self.path() == "/spire" || self.path().starts_with("/spire/")
    }

    /// True if the path lies below `/spire/agent/`.
    pub fn is_agent(&self) -> bool {
        self.path().starts_with("/spire/agent/")
    }

    /// This ID as a member of `trust_domain`.
    /// # Errors
    /// [`IdError::NotMember`].
    pub fn require_member(&self, trust_domain: &TrustDomain) -> Result<(), IdError> {
        if self.is_member_of(trust_domain) {
            return Ok(());
        }
        Err(IdError::NotMember { id: self.to_string(), want: trust_domain.to_string() })
    }

    /// Checks that this is a workload of `trust_domain`: a member with a path outside `/spire`.
    /// # Errors
    /// [`IdError`] names which of the three fails.
    pub fn require_workload(&self, trust_domain: &TrustDomain) -> Result<(), IdError> {
        self.require_member(trust_domain)?;
        if self.path().is_empty() {
            return Err(IdError::PathMissing { kind: "workload" });
        }
        if self.is_reserved() {
            return Err(IdError::Reserved(self.to_string()));
        }
        Ok(())
    }

    /// Checks that this is an agent of `trust_domain`.
    /// # Errors
    /// [`IdError`] names which rule fails.
    pub fn require_agent(&self, trust_domain: &TrustDomain) -> Result<(), IdError> {
        self.require_member(trust_domain)?;
        if self.path().is_empty() {
            return Err(IdError::PathMissing { kind: "agent" });
        }
        if !self.is_agent() {
            return Err(IdError::NotAgent(self.to_string()));
        }
        Ok(())
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::Length(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdError::Scheme)?;
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(name)?;
        check_path(path)?;
        Ok(Self::assemble(text.to_owned(), name.len()))
    }
}

macro_rules! text_type {
    ($type:ty, $field:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.$field)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.$field, f)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.$field)
            }
        }
    };
}
text_type!(SpiffeId, text);

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl serde::Serialize for TrustDomain {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Result<(&str, &str), IdError>) {
        let got = text.parse::<SpiffeId>();
        let parts = got.as_ref().map(|id| (id.trust_domain_name(), id.path()));
        assert_eq!(parts, want.as_ref().map(|parts| *parts), "{text}");
    }

    #[test]
    fn spiffe_id_rules() {
        check("spiffe://prod.example/web", Ok(("prod.example", "/web")));
        check("spiffe://prod.example", Ok(("prod.example", "")));
        check("", Err(IdError::Empty));
        check("http://prod.example/web", Err(IdError::Scheme));
        check("SPIFFE://prod.example/web", Err(IdError::Scheme));
        check("spiffe:///web", Err(IdError::TrustDomainMissing));
        check("spiffe://prod.example/", Err(IdError::TrailingSlash));
        check("spiffe://prod.example/web/", Err(IdError::TrailingSlash));
        check("spiffe://prod.example//web", Err(IdError::EmptySegment));
        check("spiffe://prod.example/a/../b", Err(IdError::DotSegment));
        check("spiffe://prod.example/a/./b", Err(IdError::DotSegment));
        check("spiffe://prod.example/a%20b", Err(IdError::PathByte { at: 2 }));
        check("spiffe://Prod.example/web", Err(IdError::TrustDomainByte { at: 0 }));
        check("spiffe://prod.example:80/web", Err(IdError::TrustDomainByte { at: 12 }));
        let long = format!("spiffe://{}/web", "a".repeat(256));
        check(&long, Err(IdError::TrustDomainLength(256)));
        let long = format!("spiffe://a/{}", "b".repeat(2048));
        check(&long, Err(IdError::Length(2059)));
    }

    #[test]
    fn kinds_of_id() {
        let td: TrustDomain = "example.org".parse().expect("valid");
        let id = |path: &str| SpiffeId::from_parts("example.org", path).expect("valid");
        assert_eq!(id("/web").require_workload(&td), Ok(()));
        assert!(id("/spire/x").require_workload(&td).is_err());
        assert!(id("/spire").require_workload(&td).is_err());
        assert_eq!(id("/spirex").require_workload(&td), Ok(()));
        assert!(id("").require_workload(&td).is_err());
        assert_eq!(id("/spire/agent/join_token/x").require_agent(&td), Ok(()));
        assert!(id("/spire/agent").require_agent(&td).is_err());
        assert!(SpiffeId::from_parts("other.org", "/web").expect("valid").require_workload(&td).is_err());
        assert_eq!(td.server_id().as_str(), "spiffe://example.org/spire/server");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "\\PC{0,64}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                proptest::prop_assert_eq!(id.as_str(), &text);
                let again = SpiffeId::from_parts(id.trust_domain_name(), id.path());
                proptest::prop_assert_eq!(again, Ok(id));
            }
        }
    }
}
