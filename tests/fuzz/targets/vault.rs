//! What a Vault answers, as every answer that is read: logins, keys, signatures, CAs and the way to their root.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    svid_vault::answer::read_any(bytes);
});

svid_fuzz::seeds!("vault": "login", "lookup", "signed_ca", "transit_key", "signature", "errors");
