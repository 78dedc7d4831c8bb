//! Environment variables in a configuration text.

/// Replaces `$NAME` and `${NAME}` in `text` by the process environment; an unset name becomes nothing and `$$`
/// becomes `$`. The whole text is treated, comments included.
/// Source: SPIRE's `-expandEnv`, which follows Go's `os.Expand`.
pub fn expand_env(text: &str) -> String {
    expand(text, |name| std::env::var(name).ok())
}

/// [`expand_env`] with a look-up of the caller's.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if after.is_empty() {
            rest = &rest[at..];
            break;
        }
        let (name, taken) = name_after_dollar(after);
        match name {
            // A dollar with no name behind it stays; broken braces are swallowed, as in Go.
            "" if taken == 0 => out.push('$'),
            "" => {}
            "$" => out.push('$'),
            name => out.push_str(&lookup(name).unwrap_or_default()),
        }
        rest = &after[taken..];
    }
    out.push_str(rest);
    out
}

/// The name at the start of `text` and how many bytes it takes there.
fn name_after_dollar(text: &str) -> (&str, usize) {
    if let Some(inner) = text.strip_prefix('{') {
        return match inner.find('}') {
            Some(end) => (&inner[..end], end + 2),
            None => ("", 1),
        };
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || "*#$@!?-".contains(c)) {
        return (&text[..1], 1);
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (&text[..end], end)
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn go_rules() {
        let lookup = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        for (text, want) in [
            ("a $HOME/b", "a /root/b"),
            ("${HOME}x", "/rootx"),
            ("$NOPE|", "|"),
            ("cost $$5", "cost $5"),
            ("$${HOME}", "${HOME}"),
            ("end $", "end $"),
            ("$ x", "$ x"),
            ("${}x", "x"),
            ("${HOME", "HOME"),
            ("é$HOMEé", "é/rooté"),
            ("", ""),
        ] {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }
}
