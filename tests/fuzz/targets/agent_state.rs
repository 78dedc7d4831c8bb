//! What an agent stores: its head, and the records of its log.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_agent::stored::bytes::Writer;
use svid_agent::stored::codec::Record;
use svid_agent::stored::head::{DataKeys, Head};

fn write(records: &[Record]) -> Vec<u8> {
    let mut out = Writer::default();
    records.iter().for_each(|record| record.write(&mut out));
    out.into_bytes().to_vec()
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(records) = Record::read_all(bytes) {
        let text = write(&records);
        let again = Record::read_all(&text).expect("what we write we read");
        assert!(write(&again) == text);
    }
    if let Ok(head) = Head::decode(bytes) {
        let keys = DataKeys::derive(b"secret", &head);
        assert!(!Head::is_authentic(bytes, &keys), "nobody guesses a MAC");
        let text = head.encode(&keys);
        assert!(Head::is_authentic(&text, &keys));
        assert!(Head::decode(&text) == Ok(head));
    }
});

svid_fuzz::seeds!("agent_state": "head", "records");
