//! What `svidctl ca show` shows: this server's authorities with their chains and keys, and what the bundle holds.

use svid_core::bundle::Bundle;
use svid_core::clock::unix_seconds;
use svid_core::x509::{Authority, ParsedCert};
use svid_proto::svid::status::v1 as wire;

use super::status_servers::servers;
use super::status_service::StatusApi;
use crate::ca::{AuthorityInfo, AuthorityKind, Status as SlotStatus};

/// Certificates of a chain that are looked at.
const MAX_CHAIN: usize = 16;

impl StatusApi {
    pub(super) async fn authorities(&self) -> wire::GetAuthoritiesResponse {
        let context = &self.0;
        let bundle = self.own_bundle();
        let snapshot = context.ca.snapshot();
        let (x509, jwt) = (self.infos(AuthorityKind::X509), self.infos(AuthorityKind::Jwt));
        let reachable = context.store.ping().await.is_ok();
        wire::GetAuthoritiesResponse {
            trust_domain: context.trust_domain.to_string(),
            server_id: context.server_id.clone(),
            key_manager: context.key_manager.to_owned(),
            upstream_authority: snapshot.upstream.as_deref().unwrap_or_default().to_owned(),
            x509_authorities: x509
                .iter()
                .map(|info| {
                    let held = [snapshot.x509.active(), snapshot.x509.prepared()].into_iter().flatten();
                    let mut held = held.filter(|held| held.info.authority_id == info.authority_id);
                    x509_held(info, held.next().and_then(|held| held.key.as_deref()), &bundle)
                })
                .collect(),
            jwt_authorities: jwt.iter().map(|info| jwt_held(info, &bundle)).collect(),
            x509_bundle: self.x509_authorities(&bundle).into_iter().filter(is_root).collect(),
            jwt_bundle: self.jwt_authorities(&bundle),
            servers: servers(context, reachable).await,
        }
    }
}

/// The list of `svidctl status` has authorities below an upstream as well.
fn is_root(authority: &wire::X509Authority) -> bool {
    authority.upstream_authority_subject_key_id.is_empty()
}

fn held(info: &AuthorityInfo, kind: AuthorityKind) -> wire::HeldAuthority {
    let state = match info.status {
        SlotStatus::Prepared => wire::AuthorityState::Prepared,
        SlotStatus::Active => wire::AuthorityState::Active,
        SlotStatus::Old => wire::AuthorityState::Old,
    };
    wire::HeldAuthority {
        authority_id: info.authority_id.clone(),
        state: state.into(),
        slot: info.slot.name().to_owned(),
        key_id: info.slot.key_id(kind).to_owned(),
        issued_at: unix_seconds(info.issued_at),
        not_after: unix_seconds(info.not_after),
        ..Default::default()
    }
}

fn jwt_held(info: &AuthorityInfo, bundle: &Bundle) -> wire::HeldAuthority {
    let known = bundle.jwt_authorities.iter().find(|key| key.key_id == info.authority_id);
    wire::HeldAuthority {
        tainted: known.is_some_and(|key| key.tainted),
        published: known.is_some(),
        ..held(info, AuthorityKind::Jwt)
    }
}

fn x509_held(info: &AuthorityInfo, authority: Option<&Authority>, bundle: &Bundle) -> wire::HeldAuthority {
    let own: Vec<&[u8]> = match authority {
        Some(authority) => std::iter::once(authority.cert_der())
            .chain(authority.chain().iter().map(Vec::as_slice).filter(|der| *der != authority.cert_der()))
            .collect(),
        None => Vec::new(),
    };
    let chain = walk(info, &own, bundle);
    let root = |id: &str| bundle.x509_authorities.iter().find(|root| has_id(&root.parsed(), id));
    let ids = chain.iter().filter_map(|der| ParsedCert::from_der(der).ok()?.subject_key_id_hex());
    let ids: Vec<String> =
        ids.chain([info.authority_id.clone(), info.upstream_authority_id.clone()]).collect();
    wire::HeldAuthority {
        tainted: ids.iter().filter_map(|id| root(id)).any(|root| root.tainted),
        published: ids.iter().any(|id| root(id).is_some()),
        chain,
        ..held(info, AuthorityKind::X509)
    }
}

fn has_id(cert: &ParsedCert, id: &str) -> bool {
    !id.is_empty() && cert.subject_key_id_hex().is_some_and(|own| own == id)
}

/// From the root of the bundle down to the authority, by the ids of the keys.
fn walk(info: &AuthorityInfo, own: &[&[u8]], bundle: &Bundle) -> Vec<Vec<u8>> {
    let roots = bundle.x509_authorities.iter().map(|root| root.der());
    let known: Vec<(&[u8], ParsedCert)> = own
        .iter()
        .copied()
        .chain(roots)
        .filter_map(|der| Some((der, ParsedCert::from_der(der).ok()?)))
        .collect();
    let mut wanted = info.authority_id.clone();
    let mut chain: Vec<Vec<u8>> = Vec::new();
    while chain.len() < MAX_CHAIN
        && let Some((der, cert)) = known.iter().find(|(_, cert)| has_id(cert, &wanted))
    {
        chain.push(der.to_vec());
        let issuer = cert.authority_key_id_hex().unwrap_or_default();
        if issuer.is_empty() || issuer == wanted {
            break;
        }
        wanted = issuer;
    }
    chain.reverse();
    chain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, SystemTime};

    use svid_core::bundle::X509Authority;
    use svid_core::id::TrustDomain;
    use svid_core::key::{KeyType, LocalKey};
    use svid_core::x509::{CaSubject, ca};

    use super::*;
    use crate::ca::SlotId;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn info(id: &str, upstream: &str) -> AuthorityInfo {
        AuthorityInfo {
            slot: SlotId::A,
            status: SlotStatus::Active,
            issued_at: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + DAY,
            authority_id: id.into(),
            upstream_authority_id: upstream.into(),
        }
    }

    #[test]
    fn a_self_signed_authority_is_its_own_chain_and_an_unknown_one_has_none() {
        let trust_domain: TrustDomain = "example.org".parse().unwrap();
        let signer = LocalKey::generate(KeyType::EcP256).unwrap().into_signer();
        let cert = ca::self_signed_ca(&trust_domain, &CaSubject::default(), DAY, &*signer, SystemTime::now())
            .unwrap();
        let authority = Authority::new(&cert, Vec::new(), signer).unwrap();
        let mut bundle = Bundle::empty(trust_domain);
        bundle.x509_authorities.push(X509Authority::from_der(&cert).unwrap());
        let shown = x509_held(&info(&authority.id_hex(), ""), Some(&authority), &bundle);
        assert_eq!((shown.chain.as_slice(), shown.published, shown.tainted), (&[cert][..], true, false));
        assert_eq!((shown.key_id.as_str(), shown.slot.as_str()), ("x509-CA-A", "A"));
        bundle.x509_authorities[0].tainted = true;
        assert!(x509_held(&info(&authority.id_hex(), ""), None, &bundle).tainted, "an old one has no key");
        assert!(x509_held(&info("ab", &authority.id_hex()), None, &bundle).tainted, "its root is tainted");
        let gone = x509_held(&info("ab", ""), None, &bundle);
        assert!(gone.chain.is_empty() && !gone.published && !gone.tainted);
    }
}
