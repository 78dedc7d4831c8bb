//! Bundle documents, and bundles from the wire and from JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use svid_core::bundle::document::BundleDocument;
use svid_core::jwt::jwks_json;
use svid_proto::convert::{bundle_from_wire, bundle_to_wire};
use svid_proto::json::from_json;
use svid_proto::spire::api::types;

fuzz_target!(|bytes: &[u8]| {
    let trust_domain = "example.org".parse().expect("a trust domain");
    if let Ok(document) = BundleDocument::parse(&trust_domain, bytes) {
        let text = document.bundle.to_document();
        let again = BundleDocument::parse(&trust_domain, text.as_bytes()).expect("what we write we read");
        // A root whose key JWK cannot say is left out by readers.
        assert!(again.skipped > 0 || again.bundle.to_document() == text);
    }
    let wire = types::Bundle::decode(bytes).ok().into_iter();
    let json = std::str::from_utf8(bytes).ok();
    let json = json.and_then(|text| from_json::<types::Bundle>("spire.api.types.Bundle", text).ok());
    for wire in wire.chain(json) {
        if let Ok(bundle) = bundle_from_wire(&wire) {
            let _ = jwks_json(&bundle);
            assert!(bundle_from_wire(&bundle_to_wire(&bundle)).is_ok());
        }
    }
});

svid_fuzz::seeds!("bundle": "document", "json", "wire");
