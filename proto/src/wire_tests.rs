//! Field numbers, by bytes written out by hand: what a peer of another make sends and expects.
#![allow(clippy::unwrap_used)]

use prost::Message;
use prost_types::Any;

use crate::spire::api::server::{agent::v1 as agent, entry::v1 as entry, svid::v1 as svid};
use crate::spire::api::types;
use crate::{envoy, google, spire, workload};

/// Encodes to exactly `bytes`, and decodes back to itself.
#[track_caller]
fn check<M: Message + Default + PartialEq + std::fmt::Debug>(message: M, bytes: &[u8]) {
    assert_eq!(message.encode_to_vec(), bytes);
    assert_eq!(M::decode(bytes).unwrap(), message);
}

fn spiffe_id() -> types::Spiffeid {
    types::Spiffeid { trust_domain: "td".into(), path: "/a".into() }
}

const SPIFFE_ID: &[u8] = b"\x0a\x02td\x12\x02/a";

#[test]
fn permission_denied_details() {
    let details = types::PermissionDeniedDetails {
        reason: types::permission_denied_details::Reason::AgentNotAttested.into(),
    };
    check(details, b"\x08\x02");
    let url = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";
    let any = Any { type_url: url.into(), value: details.encode_to_vec() };
    let mut bytes = b"\x08\x07\x12\x02no\x1a\x41\x0a\x3b".to_vec();
    bytes.extend_from_slice(url.as_bytes());
    bytes.extend_from_slice(b"\x12\x02\x08\x02");
    check(google::rpc::Status { code: 7, message: "no".into(), details: vec![any] }, &bytes);
}

#[test]
fn permission_denied_reasons() {
    use types::permission_denied_details::Reason;
    let reasons = [
        (Reason::Unknown, 0, "UNKNOWN"),
        (Reason::AgentExpired, 1, "AGENT_EXPIRED"),
        (Reason::AgentNotAttested, 2, "AGENT_NOT_ATTESTED"),
        (Reason::AgentNotActive, 3, "AGENT_NOT_ACTIVE"),
        (Reason::AgentBanned, 4, "AGENT_BANNED"),
        (Reason::AgentMustReattest, 5, "AGENT_MUST_REATTEST"),
    ];
    for (reason, number, name) in reasons {
        assert_eq!((reason as i32, reason.as_str_name()), (number, name));
    }
}

#[test]
fn an_entry() {
    check(
        types::Entry {
            id: "e".into(),
            spiffe_id: Some(spiffe_id()),
            parent_id: Some(spiffe_id()),
            selectors: vec![types::Selector { r#type: "t".into(), value: "v".into() }],
            x509_svid_ttl: 1,
            federates_with: vec!["f".into()],
            admin: true,
            downstream: true,
            expires_at: 2,
            dns_names: vec!["d".into()],
            revision_number: 3,
            store_svid: true,
            jwt_svid_ttl: 4,
            hint: "h".into(),
            created_at: 5,
            additional_attributes: Some(types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: true,
                jwt_svid_include_jti: true,
            }),
        },
        &[
            b"\x0a\x01e".as_slice(),
            b"\x12\x08",
            SPIFFE_ID,
            b"\x1a\x08",
            SPIFFE_ID,
            b"\x22\x06\x0a\x01t\x12\x01v",
            b"\x28\x01",
            b"\x32\x01f",
            b"\x38\x01\x40\x01\x48\x02",
            b"\x52\x01d",
            b"\x58\x03\x60\x01\x68\x04",
            b"\x72\x01h",
            b"\x78\x05",
            b"\x82\x01\x04\x08\x01\x10\x01",
        ]
        .concat(),
    );
}

#[test]
fn attestation() {
    use agent::attest_agent_request::{Params, Step};
    check(
        agent::AttestAgentRequest {
            step: Some(Step::Params(Params {
                data: Some(types::AttestationData { r#type: "j".into(), payload: b"p".to_vec() }),
                params: Some(agent::AgentX509svidParams { csr: b"c".to_vec() }),
            })),
        },
        b"\x0a\x0d\x0a\x06\x0a\x01j\x12\x01p\x12\x03\x0a\x01c",
    );
    check(
        agent::AttestAgentResponse {
            step: Some(agent::attest_agent_response::Step::Challenge(b"x".to_vec())),
        },
        b"\x12\x01x",
    );
}

#[test]
fn issuance_and_sync() {
    check(
        svid::BatchNewX509svidRequest {
            params: vec![svid::NewX509svidParams { entry_id: "e".into(), csr: b"c".to_vec() }],
        },
        b"\x0a\x06\x0a\x01e\x12\x01c",
    );
    check(
        entry::SyncAuthorizedEntriesResponse {
            entry_revisions: vec![entry::EntryRevision { id: "e".into(), revision_number: 1, created_at: 2 }],
            entries: vec![],
            more: true,
        },
        b"\x0a\x07\x0a\x01e\x10\x01\x18\x02\x18\x01",
    );
}

#[test]
fn workload_api() {
    check(
        workload::X509svidResponse {
            svids: vec![workload::X509svid {
                spiffe_id: "i".into(),
                x509_svid: b"s".to_vec(),
                x509_svid_key: b"k".to_vec(),
                bundle: b"b".to_vec(),
                hint: "h".into(),
            }],
            crl: vec![],
            federated_bundles: [("f".to_owned(), b"x".to_vec())].into(),
        },
        b"\x0a\x0f\x0a\x01i\x12\x01s\x1a\x01k\x22\x01b\x2a\x01h\x1a\x06\x0a\x01f\x12\x01x",
    );
    check(
        workload::JwtsvidRequest { audience: vec!["a".into()], spiffe_id: "i".into() },
        b"\x0a\x01a\x12\x01i",
    );
}

#[test]
fn sds() {
    use envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier};
    use envoy::extensions::transport_sockets::tls::v3 as tls;
    let inline = |bytes: &[u8]| {
        Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..Default::default() })
    };
    check(
        tls::Secret {
            name: "n".into(),
            r#type: Some(tls::secret::Type::TlsCertificate(tls::TlsCertificate {
                certificate_chain: inline(b"c"),
                private_key: inline(b"k"),
                ..Default::default()
            })),
        },
        b"\x0a\x01n\x12\x0a\x0a\x03\x12\x01c\x12\x03\x12\x01k",
    );
    check(
        tls::CertificateValidationContext {
            custom_validator_config: Some(TypedExtensionConfig { name: "v".into(), typed_config: None }),
            ..Default::default()
        },
        b"\x62\x03\x0a\x01v",
    );
    check(
        envoy::service::discovery::v3::DiscoveryRequest {
            resource_names: vec!["default".into()],
            type_url: "t".into(),
            response_nonce: "1".into(),
            ..Default::default()
        },
        b"\x1a\x07default\x22\x01t\x2a\x011",
    );
}

#[test]
fn journal() {
    use spire::private::server::journal;
    check(
        journal::Entries {
            x509_c_as: vec![journal::X509caEntry {
                slot_id: "A".into(),
                status: journal::Status::Active.into(),
                authority_id: "i".into(),
                not_after: 9,
                ..Default::default()
            }],
            ..Default::default()
        },
        b"\x0a\x0a\x0a\x01A\x28\x03\x32\x01i\x38\x09",
    );
}

#[test]
fn every_message_of_ours_decodes_from_nothing() {
    let pool = crate::descriptor_pool();
    assert!(pool.all_messages().count() > 200);
    for message in pool.all_messages() {
        assert!(
            prost_reflect::DynamicMessage::decode(message.clone(), &b""[..]).is_ok(),
            "{}",
            message.full_name()
        );
    }
}
