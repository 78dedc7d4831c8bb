//! `Debug` for generated messages that carry secrets: only fields that are safe to log are shown.
//! `build.rs` lists the same messages so that prost derives nothing for them.

use std::fmt;

use crate::{envoy, spiffe, spire, workload};

macro_rules! show_only {
    ($($message:path { $($field:ident),* })*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message).rsplit("::").next().unwrap_or_default())
                    $(.field(stringify!($field), &self.$field))*
                    .finish_non_exhaustive()
            }
        }
    )*};
}

show_only! {
    workload::X509svid { spiffe_id, hint }
    workload::Jwtsvid { spiffe_id, hint }
    workload::Witsvid { spiffe_id, hint }
    workload::ValidateJwtsvidRequest { audience }
    spiffe::broker::X509svid { spiffe_id, hint }
    spiffe::broker::Jwtsvid { spiffe_id, hint }
    spire::api::types::Jwtsvid { id, issued_at, expires_at, hint }
    spire::api::types::Witsvid { id, issued_at, expires_at, hint }
    spire::api::types::JoinToken { expires_at }
    spire::api::types::AttestationData { r#type }
    spire::api::server::agent::v1::CreateJoinTokenRequest { ttl, agent_id }
    spire::api::agent::delegatedidentity::v1::X509svidWithKey { x509_svid }
    envoy::config::core::v3::DataSource { watched_directory }
    envoy::service::discovery::v3::DiscoveryResponse { version_info, type_url, nonce }
    envoy::service::discovery::v3::Resource { name, version }
    envoy::service::discovery::v3::resource::CacheControl { do_not_cache }
}

impl fmt::Debug for envoy::config::core::v3::data_source::Specifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Specifier").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let key = || b"top-secret".to_vec();
        let shown = [
            format!(
                "{:?}",
                workload::X509svid {
                    x509_svid_key: key(),
                    spiffe_id: "spiffe://example.org/a".into(),
                    ..Default::default()
                }
            ),
            format!("{:?}", spire::api::types::JoinToken { value: "top-secret".into(), expires_at: 1 }),
            format!(
                "{:?}",
                spire::api::types::AttestationData { r#type: "join_token".into(), payload: key() }
            ),
            format!("{:?}", envoy::config::core::v3::data_source::Specifier::InlineBytes(key())),
            format!(
                "{:?}",
                envoy::service::discovery::v3::DiscoveryResponse {
                    resources: vec![prost_types::Any { value: key(), ..Default::default() }],
                    ..Default::default()
                }
            ),
        ];
        for text in shown {
            assert!(!text.contains("top-secret"), "{text}");
            assert!(!text.contains("116, 111, 112"), "{text}");
        }
    }

    #[test]
    fn names_and_safe_fields_are_shown() {
        let token = spire::api::types::JoinToken { value: "x".into(), expires_at: 7 };
        assert_eq!(format!("{token:?}"), "JoinToken { expires_at: 7, .. }");
    }
}
