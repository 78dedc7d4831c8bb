//! Selectors: `type:value` facts about a node or workload, and sets of them.

use std::fmt;

/// One fact about a node or a workload, such as `unix:uid:1000`.
/// Invariant: the type is not empty and has no colon; the value is not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Selector {
    #[serde(rename = "type")]
    kind: Box<str>,
    value: Box<str>,
}

/// Why a selector was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The type part is empty.
    #[error("missing selector type")]
    TypeMissing,
    /// The type part holds a colon, which would make `type:value` ambiguous.
    #[error("selector type contains ':'")]
    TypeColon,
    /// The value part is empty.
    #[error("missing selector value")]
    ValueMissing,
    /// A text has no colon.
    #[error("selector {0:?} must be formatted as type:value")]
    NoColon(String),
    /// A set holds no selector.
    #[error("missing selector list")]
    Empty,
}

impl Selector {
    /// Builds a selector from its parts.
    /// # Errors
    /// [`SelectorError`] names the part and the rule.
    pub fn new(kind: &str, value: &str) -> Result<Self, SelectorError> {
        if kind.is_empty() {
            return Err(SelectorError::TypeMissing);
        }
        if kind.contains(':') {
            return Err(SelectorError::TypeColon);
        }
        if value.is_empty() {
            return Err(SelectorError::ValueMissing);
        }
        Ok(Self { kind: kind.into(), value: value.into() })
    }

    /// The part before the first colon.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The part after the first colon.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or_else(|| SelectorError::NoColon(text.to_owned()))?;
        Self::new(kind, value)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

/// A sorted set of selectors without duplicates. May be empty (a process without a matching fact).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct SelectorSet(Box<[Selector]>);

impl SelectorSet {
    /// The selectors in order.
    pub fn as_slice(&self) -> &[Selector] {
        &self.0
    }

    /// Iterates in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Selector> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if this set holds `selector`.
    pub fn contains(&self, selector: &Selector) -> bool {
        self.0.binary_search(selector).is_ok()
    }

    /// True if every selector of this set is in `other`: an entry with this set applies to a workload with `other`.
    pub fn is_subset_of(&self, other: &Self) -> bool {
        let mut rest = other.iter();
        self.iter().all(|want| rest.by_ref().find(|have| *have >= want) == Some(want))
    }

    /// True if the two sets share a selector.
    pub fn intersects(&self, other: &Self) -> bool {
        self.iter().any(|selector| other.contains(selector))
    }
}

impl FromIterator<Selector> for SelectorSet {
    fn from_iter<I: IntoIterator<Item = Selector>>(selectors: I) -> Self {
        let mut all: Vec<Selector> = selectors.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into_boxed_slice())
    }
}

impl<'a> IntoIterator for &'a SelectorSet {
    type Item = &'a Selector;
    type IntoIter = std::slice::Iter<'a, Selector>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// How a filter's set must relate to an entry's or agent's own set. Numbers are SPIRE's wire values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMatch {
    /// Both sets are the same.
    Exact,
    /// The stored set is a subset of the filter's.
    Subset,
    /// The stored set is a superset of the filter's.
    Superset,
    /// The two sets share a member.
    Any,
}

impl SetMatch {
    /// True if `stored` matches `filter` in this way.
    pub fn matches(self, stored: &SelectorSet, filter: &SelectorSet) -> bool {
        match self {
            Self::Exact => stored == filter,
            Self::Subset => stored.is_subset_of(filter),
            Self::Superset => filter.is_subset_of(stored),
            Self::Any => stored.intersects(filter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> SelectorSet {
        texts.iter().map(|text| text.parse::<Selector>().expect("valid")).collect()
    }

    #[test]
    fn parts() {
        let selector: Selector = "unix:user:web".parse().expect("valid");
        assert_eq!((selector.kind(), selector.value()), ("unix", "user:web"));
        assert_eq!(selector.to_string(), "unix:user:web");
        assert_eq!(Selector::new("", "x"), Err(SelectorError::TypeMissing));
        assert_eq!(Selector::new("a:b", "x"), Err(SelectorError::TypeColon));
        assert_eq!(Selector::new("a", ""), Err(SelectorError::ValueMissing));
        assert!(matches!("abc".parse::<Selector>(), Err(SelectorError::NoColon(_))));
    }

    #[test]
    fn sets() {
        let (one, two, other) = (set(&["a:1"]), set(&["a:1", "b:2", "a:1"]), set(&["c:3"]));
        assert_eq!(two.len(), 2);
        assert!(one.is_subset_of(&two) && !two.is_subset_of(&one));
        assert!(set(&[]).is_subset_of(&one));
        assert!(set(&["a:1", "c:3"]).intersects(&two) && !other.intersects(&two));
        assert!(SetMatch::Superset.matches(&two, &one) && SetMatch::Subset.matches(&one, &two));
        assert!(SetMatch::Exact.matches(&two, &set(&["b:2", "a:1"])));
        assert!(!SetMatch::Any.matches(&two, &other));
    }
}
