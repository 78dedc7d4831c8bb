//! Text that must not be seen.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// A token, secret id or the like: wiped when its last holder drops it, and silent in `Debug`. Spaces and line ends
/// around it are not part of it: files that people write end in one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        let text = Zeroizing::new(text);
        if text.trim().len() == text.len() {
            return Self(Arc::new(text));
        }
        Self(Arc::new(Zeroizing::new(text.trim().to_owned())))
    }

    /// For the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_silent_and_trimmed() {
        let secret = Secret::new(" s.hush\n".into());
        assert_eq!(secret.expose(), "s.hush");
        assert_eq!(format!("{secret:?}"), "Secret { .. }");
        assert!(Secret::new("\n".into()).is_empty());
    }
}
