//! Names and labels as SPIRE's sinks spell them.

use super::Label;

/// Which keys and labels are exported. Source: the options of the metrics library that SPIRE uses.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Dotted key prefixes let through; matter only within a blocked one, since the rest is open anyway.
    pub allowed_prefixes: Vec<String>,
    /// Dotted key prefixes kept back; the longest matching prefix of both lists decides.
    pub blocked_prefixes: Vec<String>,
    /// Labels let through; all when empty.
    pub allowed_labels: Vec<String>,
    /// Labels kept back.
    pub blocked_labels: Vec<String>,
}

impl Filter {
    pub(super) fn allows_key(&self, parts: &[&str]) -> bool {
        if self.blocked_prefixes.is_empty() {
            return true;
        }
        let key = parts.join(".");
        let longest = |prefixes: &[String]| {
            prefixes.iter().filter(|prefix| key.starts_with(prefix.as_str())).map(String::len).max()
        };
        longest(&self.blocked_prefixes) <= longest(&self.allowed_prefixes)
    }

    fn allows_label(&self, name: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|known| known == name);
        (self.allowed_labels.is_empty() || named(&self.allowed_labels)) && !named(&self.blocked_labels)
    }
}

/// Parts joined with `_`; bytes that Prometheus does not allow in names become `_`.
pub(super) fn metric_name(parts: &[&str]) -> String {
    let name = parts.join("_");
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == ':' { c } else { '_' }).collect()
}

/// `{name="value",...}` sorted by name, or nothing. A name that occurs twice keeps its first value.
pub(super) fn render_labels<'a>(labels: impl Iterator<Item = Label<'a>>, filter: &Filter) -> String {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (name, value) in labels.filter(|(name, _)| filter.allows_label(name)) {
        // The host label alone is not made by SPIRE itself and keeps its dots.
        let value = if name == "host" { value.replace(['\\', '"', '\n'], "_") } else { sanitize(value) };
        let name = sanitize(name);
        if pairs.iter().all(|(known, _)| *known != name) {
            pairs.push((name, value));
        }
    }
    pairs.sort();
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    pairs.join(",")
}

/// Each run of bytes that are not letters, digits or `_`, with one `_` behind it, becomes one `_`.
fn sanitize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    while let Some(next) = chars.next() {
        if word(next) {
            out.push(next);
            continue;
        }
        while chars.next_if(|&c| !word(c)).is_some() {}
        chars.next_if_eq(&'_');
        out.push('_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitises_as_spire() {
        for (text, want) in
            [("example.org", "example_org"), ("a-._b", "a_b"), ("a_-b", "a__b"), ("é", "_"), ("", "")]
        {
            assert_eq!(sanitize(text), want);
        }
    }

    #[test]
    fn filters() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let filter = Filter {
            allowed_prefixes: list(&["spire_server.rpc.agent"]),
            blocked_prefixes: list(&["spire_server.rpc"]),
            allowed_labels: list(&["status", "host"]),
            blocked_labels: list(&["host"]),
        };
        for (key, want) in [("rpc.agent.x", true), ("rpc.entry", false), ("ca", true)] {
            assert_eq!(filter.allows_key(&["spire_server", key]), want, "{key}");
        }
        let labels = [("status", "OK"), ("host", "h"), ("other", "x")];
        assert_eq!(render_labels(labels.into_iter(), &filter), "status=\"OK\"");
    }
}
