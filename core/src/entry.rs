//! Registration entries: which SPIFFE ID a workload with which selectors gets, under which parent.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::selector::{SelectorError, SelectorSet};

/// Longest entry ID in bytes.
pub const MAX_ENTRY_ID_BYTES: usize = 255;
/// Longest hint in bytes.
pub const MAX_HINT_BYTES: usize = 1024;

/// An entry's ID. Invariant: 1 to 255 bytes of `- . _ 0-9 A-Z a-z`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct EntryId(Arc<str>);

impl EntryId {
    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EntryId {
    type Err = EntryError;
    fn from_str(text: &str) -> Result<Self, EntryError> {
        if text.is_empty() {
            return Err(EntryError::IdMissing);
        }
        if text.len() > MAX_ENTRY_ID_BYTES {
            return Err(EntryError::IdLength);
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
            return Err(EntryError::IdByte);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Which field of an entry breaks which rule. The texts are SPIRE's, since scripts read them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The entry ID is empty.
    #[error("missing entry ID")]
    IdMissing,
    /// The entry ID is longer than 255 bytes.
    #[error("invalid registration entry: entry ID too long")]
    IdLength,
    /// The entry ID has a byte outside its alphabet.
    #[error("invalid registration entry: entry ID contains invalid characters")]
    IdByte,
    /// The parent ID is not a member of the trust domain, or has no path.
    #[error("invalid parent ID: {0}")]
    ParentId(IdError),
    /// The SPIFFE ID is not a workload of the trust domain.
    #[error("invalid spiffe ID: {0}")]
    SpiffeId(IdError),
    /// A selector is malformed, or there is none.
    #[error("{0}")]
    Selectors(SelectorError),
    /// A DNS name is malformed.
    #[error("invalid DNS name: {0}")]
    DnsName(DnsNameError),
    /// The X.509-SVID TTL is negative.
    #[error("invalid X509-SVID TTL")]
    X509Ttl,
    /// The JWT-SVID TTL is negative.
    #[error("invalid JWT-SVID TTL")]
    JwtTtl,
    /// The expiry is negative.
    #[error("invalid expiration")]
    ExpiresAt,
    /// A trust domain to federate with is malformed.
    #[error("invalid federated trust domain: {0}")]
    FederatesWith(IdError),
    /// The hint is longer than 1024 bytes.
    #[error("hint is too long, max length is 1024 characters")]
    HintLength,
    /// An entry for an SVID store has selectors of more than one type.
    #[error("invalid registration entry: selector types must be the same when store SVID is enabled")]
    StoreSelectorTypes,
    /// An entry for an SVID store cannot switch prefetching off.
    #[error("specifying cache behaviour is incompatible with storable SVIDs")]
    StoreWithoutPrefetch,
}

impl EntryError {
    /// True for the rules that SPIRE's datastore checks, and reports with words of its own in front.
    pub fn is_of_datastore(&self) -> bool {
        matches!(self, Self::IdLength | Self::IdByte | Self::StoreSelectorTypes | Self::StoreWithoutPrefetch)
    }
}

/// What a caller states about an entry. Checked by [`EntrySpec::check`]; the server adds revision and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySpec {
    /// The identity workloads get: a workload ID of the trust domain.
    pub spiffe_id: SpiffeId,
    /// Agent, server (node alias) or another workload.
    pub parent_id: SpiffeId,
    /// Facts that a workload must have, all of them. Never empty.
    pub selectors: SelectorSet,
    /// Lifetime of X509-SVIDs in seconds, 0 for the server's default.
    pub x509_svid_ttl: i32,
    /// Lifetime of JWT-SVIDs in seconds, 0 for the server's default.
    pub jwt_svid_ttl: i32,
    /// Foreign trust domains whose bundles the workload gets.
    pub federates_with: Vec<TrustDomain>,
    /// The holder may call admin APIs.
    pub admin: bool,
    /// The holder may obtain an intermediate CA.
    pub downstream: bool,
    /// Unix seconds after which the entry is void, 0 for never.
    pub expires_at: i64,
    /// DNS SANs of X509-SVIDs, in order.
    pub dns_names: Vec<String>,
    /// The SVID goes to an SVID store and not to the Workload API.
    pub store_svid: bool,
    /// Free text for the workload.
    pub hint: String,
    /// Agents fetch the X509-SVID only when asked for it.
    pub disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs carry a `jti` claim.
    pub jwt_svid_include_jti: bool,
}

impl EntrySpec {
    /// Checks every rule that needs no database, in SPIRE's order.
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        self.parent_id.require_member(trust_domain).map_err(EntryError::ParentId)?;
        if self.parent_id.path().is_empty() {
            return Err(EntryError::ParentId(IdError::PathMissing { kind: "parent" }));
        }
        self.spiffe_id.require_workload(trust_domain).map_err(EntryError::SpiffeId)?;
        if self.x509_svid_ttl < 0 {
            return Err(EntryError::X509Ttl);
        }
        if self.jwt_svid_ttl < 0 {
            return Err(EntryError::JwtTtl);
        }
        for name in &self.dns_names {
            check_dns_name(name).map_err(EntryError::DnsName)?;
        }
        if self.selectors.is_empty() {
            return Err(EntryError::Selectors(SelectorError::Empty));
        }
        if self.expires_at < 0 {
            return Err(EntryError::ExpiresAt);
        }
        if self.hint.len() > MAX_HINT_BYTES {
            return Err(EntryError::HintLength);
        }
        self.check_store_svid()
    }

    fn check_store_svid(&self) -> Result<(), EntryError> {
        if !self.store_svid {
            return Ok(());
        }
        if self.disable_x509_svid_prefetch {
            return Err(EntryError::StoreWithoutPrefetch);
        }
        let all = self.selectors.as_slice();
        if all.iter().any(|selector| selector.kind() != all[0].kind()) {
            return Err(EntryError::StoreSelectorTypes);
        }
        Ok(())
    }

    /// True if another entry with the same SPIFFE ID, parent and selectors would be the same registration.
    pub fn is_similar_to(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.parent_id == other.parent_id
            && self.selectors == other.selectors
    }
}

/// A stored registration entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The entry's ID.
    pub id: EntryId,
    /// What was registered.
    pub spec: EntrySpec,
    /// 0 at creation, one more with each update.
    pub revision: i64,
    /// Unix seconds.
    pub created_at: i64,
}

impl Entry {
    /// True once the entry is void at `now` (Unix seconds).
    pub fn is_expired(&self, now: i64) -> bool {
        self.spec.expires_at != 0 && self.spec.expires_at <= now
    }
}

/// Which rule of DNS names a name breaks. The texts are SPIRE's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// A byte outside ASCII.
    #[error("name must be ascii")]
    NotAscii,
    /// More than one `*`.
    #[error("too many wildcards")]
    TooManyWildcards,
    /// A `*` that is not the whole first label.
    #[error("wildcard must be first label")]
    WildcardNotFirst,
    /// Nothing, or nothing behind the wildcard.
    #[error("empty or only whitespace")]
    Empty,
    /// A dot at the end.
    #[error("domain ends with dot")]
    TrailingDot,
    /// A label that is empty, too long, has a byte other than letters, digits, `-` and `_`, or hyphens where none may be.
    #[error("idna error\nidna: invalid label {0:?}")]
    Label(String),
    /// The whole name is longer than 253 bytes.
    #[error("idna error\nidna: invalid label {0:?}")]
    Length(String),
}

/// Checks one DNS name in SPIRE's order and words. Labels hold letters, digits, `-` and `_`: SPIRE lets other ASCII
/// through, which no resolver or TLS library would match.
/// # Errors
/// The first rule that is broken.
pub fn check_dns_name(name: &str) -> Result<(), DnsNameError> {
    if !name.is_ascii() {
        return Err(DnsNameError::NotAscii);
    }
    let labels = match name.matches('*').count() {
        0 => name,
        1 => name.strip_prefix("*.").ok_or(DnsNameError::WildcardNotFirst)?,
        _ => return Err(DnsNameError::TooManyWildcards),
    };
    if labels.trim().is_empty() {
        return Err(DnsNameError::Empty);
    }
    if labels.ends_with('.') {
        return Err(DnsNameError::TrailingDot);
    }
    if labels.len() > 253 {
        return Err(DnsNameError::Length(labels.to_owned()));
    }
    match labels.split('.').find(|label| !is_dns_label(label)) {
        Some("") => Err(DnsNameError::Label(labels.to_owned())),
        Some(label) => Err(DnsNameError::Label(label.to_owned())),
        None => Ok(()),
    }
}

fn is_dns_label(label: &str) -> bool {
    let reserved = label.get(2..4) == Some("--") && !label.to_ascii_lowercase().starts_with("xn--");
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
        && !reserved
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::Selector;

    fn spec() -> EntrySpec {
        EntrySpec {
            spiffe_id: "spiffe://example.org/web".parse().expect("valid"),
            parent_id: "spiffe://example.org/spire/agent/x509pop/a".parse().expect("valid"),
            selectors: [Selector::new("unix", "uid:1").expect("valid")].into_iter().collect(),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            expires_at: 0,
            dns_names: Vec::new(),
            store_svid: false,
            hint: String::new(),
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }

    fn check(change: impl FnOnce(&mut EntrySpec), want: Result<(), EntryError>) {
        let mut entry = spec();
        change(&mut entry);
        assert_eq!(entry.check(&"example.org".parse().expect("valid")), want);
    }

    #[test]
    fn rules() {
        check(|_| {}, Ok(()));
        check(|e| e.x509_svid_ttl = -1, Err(EntryError::X509Ttl));
        check(|e| e.jwt_svid_ttl = -1, Err(EntryError::JwtTtl));
        check(|e| e.expires_at = -1, Err(EntryError::ExpiresAt));
        check(|e| e.hint = "h".repeat(1025), Err(EntryError::HintLength));
        check(|e| e.selectors = SelectorSet::default(), Err(EntryError::Selectors(SelectorError::Empty)));
        check(|e| e.parent_id = "spiffe://example.org/spire/server".parse().expect("valid"), Ok(()));
        check(
            |e| (e.store_svid, e.disable_x509_svid_prefetch) = (true, true),
            Err(EntryError::StoreWithoutPrefetch),
        );
        check(
            |e| {
                e.store_svid = true;
                e.selectors = ["a:1", "b:1"].iter().map(|s| s.parse().expect("valid")).collect();
            },
            Err(EntryError::StoreSelectorTypes),
        );
    }

    #[test]
    fn dns_names() {
        for good in ["web", "web.example.org", "*.example.org", "a_b.example", "xn--bcher-kva.example"] {
            assert_eq!(check_dns_name(good), Ok(()), "{good}");
        }
        for bad in ["", "web.", ".web", "a..b", "*", "a.*.b", "*.*.b", "w b", "bücher.example", "-a", "a-"] {
            assert!(check_dns_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn entry_ids() {
        assert!("a-b.c_D9".parse::<EntryId>().is_ok());
        assert_eq!("".parse::<EntryId>(), Err(EntryError::IdMissing));
        assert_eq!("a/b".parse::<EntryId>(), Err(EntryError::IdByte));
        assert_eq!("a".repeat(256).parse::<EntryId>(), Err(EntryError::IdLength));
    }

    #[test]
    fn expiry_is_inclusive() {
        let mut entry = Entry { id: "a".parse().expect("valid"), spec: spec(), revision: 0, created_at: 0 };
        assert!(!entry.is_expired(i64::MAX));
        entry.spec.expires_at = 10;
        assert!(!entry.is_expired(9) && entry.is_expired(10));
    }
}
