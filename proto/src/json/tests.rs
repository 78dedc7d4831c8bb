#![allow(clippy::unwrap_used)]

use super::*;
use crate::spire::api::server::agent::v1::CountAgentsResponse;
use crate::spire::api::server::localauthority::v1::GetX509AuthorityStateResponse;
use crate::spire::api::types;
use crate::spire::common::RegistrationEntries;
use crate::workload::{ValidateJwtsvidResponse, X509svidResponse};

#[track_caller]
fn check<M: prost::Message>(full_name: &str, msg: &M, expected: &str) {
    let value = to_json(full_name, msg).unwrap();
    assert_eq!(print(&[value]), format!("{expected}\n"));
}

fn spiffe_id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() })
}

#[test]
fn messages_print_as_spire_does() {
    check(
        "spire.api.server.agent.v1.CountAgentsResponse",
        &CountAgentsResponse { count: 42 },
        r#"{"count":42}"#,
    );
    check(
        "spire.api.types.JoinToken",
        &types::JoinToken { value: "a<b>&c".into(), expires_at: 1_700_000_000 },
        r#"{"expires_at":"1700000000","value":"a\u003cb\u003e\u0026c"}"#,
    );
    check(
        "spire.api.types.Bundle",
        &types::Bundle {
            trust_domain: "example.org".into(),
            x509_authorities: vec![types::X509Certificate { asn1: vec![0xfb, 0xff], tainted: false }],
            ..Default::default()
        },
        concat!(
            r#"{"jwt_authorities":[],"refresh_hint":"0","sequence_number":"0","trust_domain":"example.org","#,
            r#""wit_authorities":[],"x509_authorities":[{"asn1":"+/8=","tainted":false}]}"#
        ),
    );
    check(
        "spire.api.types.Logger",
        &types::Logger {
            current_level: types::LogLevel::Debug.into(),
            launch_level: types::LogLevel::Info.into(),
        },
        r#"{"current_level":"DEBUG","launch_level":"INFO"}"#,
    );
}

#[test]
fn an_entry_prints_all_fields_but_the_absent_optional_one() {
    let entry = types::Entry {
        id: "e1".into(),
        spiffe_id: spiffe_id("/web"),
        parent_id: spiffe_id("/node"),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1000".into() }],
        ..Default::default()
    };
    check(
        "spire.api.types.Entry",
        &entry,
        concat!(
            r#"{"admin":false,"created_at":"0","dns_names":[],"downstream":false,"expires_at":"0","#,
            r#""federates_with":[],"hint":"","id":"e1","jwt_svid_ttl":0,"#,
            r#""parent_id":{"path":"/node","trust_domain":"example.org"},"revision_number":"0","#,
            r#""selectors":[{"type":"unix","value":"uid:1000"}],"#,
            r#""spiffe_id":{"path":"/web","trust_domain":"example.org"},"#,
            r#""store_svid":false,"x509_svid_ttl":0}"#
        ),
    );
}

#[test]
fn absent_messages_and_oneofs_are_left_out() {
    check(
        "spire.api.server.localauthority.v1.GetX509AuthorityStateResponse",
        &GetX509AuthorityStateResponse::default(),
        "{}",
    );
    check(
        "spire.api.types.FederationRelationship",
        &types::FederationRelationship {
            trust_domain: "td".into(),
            bundle_endpoint_profile: Some(types::federation_relationship::BundleEndpointProfile::HttpsWeb(
                types::HttpsWebProfile {},
            )),
            ..Default::default()
        },
        r#"{"bundle_endpoint_url":"","https_web":{},"trust_domain":"td"}"#,
    );
    check(
        "X509SVIDResponse",
        &X509svidResponse::default(),
        r#"{"crl":[],"federated_bundles":{},"svids":[]}"#,
    );
}

#[test]
fn claims_print_as_plain_json() {
    use prost_types::value::Kind;
    let number = |n| prost_types::Value { kind: Some(Kind::NumberValue(n)) };
    let null = prost_types::Value { kind: Some(Kind::NullValue(0)) };
    let claims = prost_types::Struct {
        fields: [
            ("exp".to_owned(), number(1_700_000_000.0)),
            ("half".to_owned(), number(0.5)),
            ("less".to_owned(), number(-3.0)),
            ("none".to_owned(), null),
        ]
        .into(),
    };
    check(
        "ValidateJWTSVIDResponse",
        &ValidateJwtsvidResponse { spiffe_id: "spiffe://example.org/web".into(), claims: Some(claims) },
        r#"{"claims":{"exp":1700000000,"half":0.5,"less":-3},"spiffe_id":"spiffe://example.org/web"}"#,
    );
}

#[test]
fn none_one_and_many() {
    let one = Value::from(1);
    assert_eq!(print(&[]), "");
    assert_eq!(print(std::slice::from_ref(&one)), "1\n");
    assert_eq!(print(&[one.clone(), one]), "[1,1]\n");
}

#[test]
fn unknown_names_are_an_error() {
    let result = to_json("spire.api.types.Nothing", &CountAgentsResponse { count: 1 });
    assert!(matches!(result, Err(JsonError::UnknownMessage(_))));
}

#[test]
fn batch_files_are_read() {
    let entries: RegistrationEntries = from_json(
        "spire.common.RegistrationEntries",
        r#"{"entries":[{"selectors":[{"type":"unix","value":"uid:1111"}],"spiffe_id":"spiffe://example.org/a",
            "parent_id":"spiffe://example.org/b","x509_svid_ttl":200,"entryExpiry":1552410266,"admin":true,
            "additional_attributes":{"disable_x509_svid_prefetch":true},"comment":"ignored"}]}"#,
    )
    .unwrap();
    let entry = &entries.entries[0];
    assert_eq!(entry.entry_expiry, 1_552_410_266);
    assert_eq!(entry.x509_svid_ttl, 200);
    assert!(entry.admin);
    let attributes = entry.additional_attributes.unwrap();
    assert!(attributes.disable_x509_svid_prefetch);
    assert_eq!(entry.selectors[0].value, "uid:1111");
}

#[test]
fn broken_json_is_an_error() {
    for text in ["", "[]", "{", r#"{"entries":1}"#, "{} {}"] {
        let result: Result<RegistrationEntries, _> = from_json("spire.common.RegistrationEntries", text);
        assert!(result.is_err(), "{text}");
    }
}
