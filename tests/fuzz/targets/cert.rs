//! Certificates and chains, in DER and PEM.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_core::pem::parse_certs_pem;
use svid_core::x509::{CertChain, ParsedCert, X509Svid, split_der_chain};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(cert) = ParsedCert::from_der(bytes) {
        let _ = (cert.spiffe_id(), cert.serial_decimal(), cert.subject_key_id_hex(), cert.key_usage());
    }
    if let Ok(certs) = split_der_chain(bytes) {
        assert_eq!(certs.concat(), bytes, "a chain is the sum of its parts");
        if let Ok(chain) = CertChain::from_certs(certs) {
            let _ = X509Svid::parse(chain);
        }
    }
    let _ = parse_certs_pem(bytes);
});

svid_fuzz::seeds!("cert": "ca", "ca.pem", "chain", "leaf");
