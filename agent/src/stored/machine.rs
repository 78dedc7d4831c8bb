//! What tells this machine from a copy of its disk, whichever way it was started.

use std::path::Path;

use aws_lc_rs::digest;

const MACHINE_ID: &str = "/etc/machine-id";
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";
/// Longest fact in bytes; both are under 40.
const MAX_FACT: usize = 256;

/// One fact, as it is written down: a salted digest, since a machine's id is nobody else's business (machine-id(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactDigest {
    /// `machine-id` or `product_uuid`.
    pub name: String,
    /// SHA-256 over the salt and the fact.
    pub digest: [u8; 32],
}

/// The facts that can be read. A copied disk brings `machine-id` along; the firmware's `product_uuid` (readable by
/// root only) stays behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine(Vec<(String, String)>);

impl Machine {
    /// Reads them; `machine_id_path` stands for `/etc/machine-id`.
    pub fn read(machine_id_path: Option<&Path>) -> Self {
        let paths = [
            ("machine-id", machine_id_path.unwrap_or(Path::new(MACHINE_ID))),
            ("product_uuid", Path::new(PRODUCT_UUID)),
        ];
        Self(paths.into_iter().filter_map(|(name, path)| Some((name.to_owned(), fact(path)?))).collect())
    }

    /// No fact at all: nothing can be bound to this machine.
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// The facts as they are written down.
    pub fn digests(&self, salt: &[u8]) -> Vec<FactDigest> {
        self.0
            .iter()
            .map(|(name, fact)| FactDigest { name: name.clone(), digest: hash(salt, fact) })
            .collect()
    }

    /// The first written fact that does not hold here, if there is one. A fact that cannot be read any more does not
    /// hold: what must not be guessed is whether this is the same machine.
    pub fn mismatch<'a>(&self, salt: &[u8], written: &'a [FactDigest]) -> Option<&'a str> {
        let differs = |fact: &&FactDigest| {
            let here = self.0.iter().find(|(name, _)| *name == fact.name);
            here.is_none_or(|(_, here)| hash(salt, here) != fact.digest)
        };
        match written {
            [] => Some("machine-id"),
            _ => written.iter().find(differs).map(|fact| fact.name.as_str()),
        }
    }
}

fn fact(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim();
    // systemd writes "uninitialized" into images that are yet to become a machine.
    (!text.is_empty() && text.len() <= MAX_FACT && text != "uninitialized").then(|| text.to_ascii_lowercase())
}

fn hash(salt: &[u8], fact: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(salt.len() as u64).to_be_bytes());
    context.update(salt);
    context.update(fact.as_bytes());
    context.finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn machine(facts: &[(&str, &str)]) -> Machine {
        Machine(facts.iter().map(|(name, fact)| ((*name).to_owned(), (*fact).to_owned())).collect())
    }

    #[test]
    fn the_same_machine_or_not() {
        let both = [("machine-id", "a"), ("product_uuid", "u")];
        let written = machine(&both).digests(b"salt");
        let check = |facts: &[(&str, &str)], want: Option<&str>| {
            assert_eq!(machine(facts).mismatch(b"salt", &written), want, "{facts:?}");
        };
        check(&both, None);
        // A cloned disk: the id came along, the firmware did not.
        check(&[("machine-id", "a"), ("product_uuid", "v")], Some("product_uuid"));
        check(&[("machine-id", "b"), ("product_uuid", "u")], Some("machine-id"));
        check(&[("machine-id", "a")], Some("product_uuid"));
        check(&[], Some("machine-id"));
        let less = machine(&both[..1]).digests(b"salt");
        assert_eq!(
            machine(&both).mismatch(b"salt", &less),
            None,
            "what could not be read then may be read now"
        );
        assert_eq!(machine(&both).mismatch(b"pepper", &less), Some("machine-id"));
        assert_eq!(machine(&both).mismatch(b"salt", &[]), Some("machine-id"));
    }

    #[test]
    fn facts_are_read_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        for (text, known) in [("0123ABCD\n", true), ("", false), ("uninitialized\n", false)] {
            std::fs::write(&path, text).unwrap();
            let names: Vec<_> = Machine::read(Some(&path)).0.into_iter().map(|(name, _)| name).collect();
            assert_eq!(names.contains(&"machine-id".to_owned()), known, "{text:?}");
        }
    }
}
