//! Certificate signing requests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_core::x509::{PublicKey, UnverifiedCsr, VerifiedCsr};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(csr) = VerifiedCsr::from_der(bytes) {
        let unverified = UnverifiedCsr::from_der(bytes).expect("what verifies also reads");
        assert_eq!(unverified.public_key(), csr.public_key());
        let _ = (csr.spiffe_id(), csr.subject());
    } else if let Ok(csr) = UnverifiedCsr::from_der(bytes) {
        let again = PublicKey::from_spki(csr.public_key().spki());
        assert_eq!(again.as_ref(), Ok(csr.public_key()));
    }
});

svid_fuzz::seeds!("csr": "bare", "p256", "p384", "rsa");
