//! The lines themselves, as the log gets them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use svid_core::id::SpiffeId;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;
use crate::api::caller::{LocalPeer, PeerCert, Role};
use crate::api::table;

type Line = BTreeMap<&'static str, String>;

/// Keeps the fields of each event.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Line>>>);

struct Fill<'a>(&'a mut Line);

impl Visit for Fill<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line::new();
        event.record(&mut Fill(&mut line));
        self.0.lock().unwrap().push(line);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn call(peer: Peer, on: bool) -> Call {
    Call {
        method: table::method("/spire.api.server.agent.v1.Agent/BanAgent").unwrap(),
        peer,
        role: Role::Local,
        via: "transport",
        downstream: Vec::new(),
        audit: Audit::new(on),
    }
}

fn local() -> Peer {
    Peer::Local(LocalPeer { uid: 7, gid: 8, path: Some("/bin/x".into()), socket_pidfd: true })
}

fn lines(work: impl FnOnce()) -> Vec<Line> {
    let recorder = Recorder::default();
    tracing::subscriber::with_default(recorder.clone(), work);
    let lines = recorder.0.lock().unwrap();
    lines.clone()
}

fn check(line: &Line, want: &[(&str, &str)]) {
    for (name, value) in want {
        assert_eq!(line.get(name).map(String::as_str), Some(*value), "{name} in {line:?}");
    }
}

#[test]
fn a_call_makes_one_line() {
    let call = call(local(), true);
    call.audit.add(|fields| fields.agent_id = Some("spiffe://example.org/spire/agent/a".into()));
    let lines = lines(|| call.audit_call(Code::Ok, ""));
    assert_eq!(lines.len(), 1);
    check(
        &lines[0],
        &[
            ("message", "API accessed"),
            ("type", "audit"),
            ("status", "success"),
            ("service", "agent.v1.Agent"),
            ("method", "BanAgent"),
            ("authorized_as", "local"),
            ("authorized_via", "transport"),
            ("caller_uid", "7"),
            ("caller_gid", "8"),
            ("caller_path", "/bin/x"),
            ("agent_id", "spiffe://example.org/spire/agent/a"),
        ],
    );
    for absent in ["status_code", "status_message", "caller_addr", "caller_id", "spiffe_id"] {
        assert!(!lines[0].contains_key(absent), "{absent}");
    }
    assert_eq!(lines[0]["request_id"].len(), 36);
}

#[test]
fn a_failure_says_why_and_who() {
    let id: SpiffeId = "spiffe://example.org/ops".parse().unwrap();
    let cert = PeerCert { id, serial: "1".into(), not_before: 0, not_after: 0, connection: None };
    let call = call(Peer::Tls { address: ([192, 0, 2, 1], 5).into(), identity: Some(cert) }, true);
    let lines = lines(|| call.audit_call(Code::NotFound, "agent not found"));
    check(
        &lines[0],
        &[
            ("status", "error"),
            ("status_code", "NotFound"),
            ("status_message", "agent not found"),
            ("caller_addr", "192.0.2.1:5"),
            ("caller_id", "spiffe://example.org/ops"),
        ],
    );
}

#[test]
fn items_take_the_place_of_the_call() {
    let batch = call(local(), true);
    let written = lines(|| {
        batch.audit_item(Code::Ok, "", |fields| fields.entry_id = Some("a".into()));
        batch.audit_item(Code::InvalidArgument, "no", |fields| fields.entry_id = Some("b".into()));
        batch.audit_call(Code::Ok, "");
    });
    let ids: Vec<&str> = written.iter().map(|line| line["entry_id"].as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    // A stream's line comes with its end, not with the head of the answer.
    let stream = call(local(), true);
    let written = lines(|| {
        stream.audit_later();
        stream.audit_call(Code::Ok, "");
        stream.audit_end(Code::Cancelled, "gone");
    });
    assert_eq!(written.len(), 1);
    check(&written[0], &[("status", "error"), ("status_message", "gone")]);
}

#[test]
fn nothing_is_collected_or_written_when_off() {
    let call = call(local(), false);
    let lines = lines(|| {
        call.audit.add(|_| panic!("not asked for"));
        call.audit_item(Code::Ok, "", |_| panic!("not asked for"));
        call.audit_call(Code::Ok, "");
    });
    assert!(lines.is_empty());
}
