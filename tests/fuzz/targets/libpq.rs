//! PostgreSQL connection strings: what was read, written again with quotes, reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_core::libpq::{MAX_INPUT, Settings};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(settings) = Settings::parse(text) else { return };
    let writable = settings
        .rest()
        .all(|(key, _)| !key.is_empty() && !key.contains(|c: char| c == '=' || c.is_whitespace()));
    let quoted =
        |(key, value): (&str, &str)| format!("{key}='{}'", value.replace('\\', r"\\").replace('\'', r"\'"));
    let again: String = settings.rest().map(quoted).collect::<Vec<_>>().join(" ");
    // A key may look like a URL's beginning, which is another form then.
    if writable && again.len() <= MAX_INPUT && !again.starts_with("postgres") {
        assert_eq!(Settings::parse(&again).as_ref(), Ok(&settings), "{again}");
    }
});

svid_fuzz::seeds!("libpq": "words", "url");
