//! Configuration files, and the durations and variables in them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_core::hcl::{Unknown, decode, duration, expand, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = duration::parse_go_nanos(text);
    if let Ok(length) = duration::parse_go(text) {
        assert_eq!(duration::parse_go(&duration::format_go(length)), Ok(length));
    }
    let _ = expand(text, |name| Some(name.to_owned()));
    let Ok(body) = parse(text) else { return };
    let _ = decode(&body, |file| {
        file.block("server", |server| {
            server.string("trust_domain");
            server.port("bind_port");
            server.duration("ca_ttl");
            server.strings("admin_ids");
            server.bool("audit_log_enabled");
            server.finish(Unknown::Warn);
        });
        file.block("plugins", |plugins| {
            plugins.blocks_labelled("KeyManager", |_, plugin| plugin.raw("plugin_data"));
            plugins.finish(Unknown::Refuse);
        });
        file.finish(Unknown::Refuse);
    });
});

svid_fuzz::seeds!("hcl": "duration", "heredoc", "server");
