//! JWT-SVIDs. No key is known, so that none may ever be valid.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use svid_core::bundle::Bundle;
use svid_core::jwt::{ParsedJwt, validate};

fuzz_target!(|bytes: &[u8]| {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    if let Ok(jwt) = ParsedJwt::parse(token) {
        let _ = (jwt.unverified_life(), jwt.unverified_claims(), jwt.audience());
        assert!(jwt.unverified_id().as_str().starts_with("spiffe://"));
    }
    let keys = Bundle::empty("example.org".parse().expect("a trust domain"));
    let audience = ["test".to_owned()];
    let valid = validate(token, &keys, &audience, SystemTime::UNIX_EPOCH, Duration::ZERO);
    assert!(valid.is_err(), "valid without a key");
});

svid_fuzz::seeds!("jwt": "es256", "none");
