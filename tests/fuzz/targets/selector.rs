//! Selectors in text, and entries with their selectors from the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use svid_core::selector::Selector;
use svid_proto::convert::{EntryFields, selectors_from_wire, selectors_to_wire};
use svid_proto::spire::api::types;

fuzz_target!(|bytes: &[u8]| {
    if let Some(selector) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Selector>().ok()) {
        assert_eq!(selector.to_string().parse(), Ok(selector));
    }
    let Ok(entry) = types::Entry::decode(bytes) else { return };
    if let Ok(set) = selectors_from_wire(&entry.selectors) {
        assert_eq!(selectors_from_wire(&selectors_to_wire(&set)).as_ref(), Ok(&set));
    }
    let trust_domain = "example.org".parse().expect("a trust domain");
    let _ = EntryFields::spec_from_wire(&entry, &trust_domain);
    let _ = EntryFields::from_wire(&entry, None, &trust_domain);
});

svid_fuzz::seeds!("selector": "entry", "text");
