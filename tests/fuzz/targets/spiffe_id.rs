//! SPIFFE IDs and trust domains.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_core::id::{SpiffeId, TrustDomain};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.as_str(), text, "an ID is kept as it is");
        let again = SpiffeId::from_parts(id.trust_domain_name(), id.path());
        assert_eq!(again.as_ref(), Ok(&id), "the parts make the same ID");
        assert!(id.is_member_of(&id.trust_domain()));
    }
    if let Ok(trust_domain) = text.parse::<TrustDomain>() {
        assert_eq!(trust_domain.id().trust_domain(), trust_domain);
    }
    let _ = TrustDomain::from_name_or_id(text);
});

svid_fuzz::seeds!("spiffe_id": "dots", "name", "trust_domain", "workload");
