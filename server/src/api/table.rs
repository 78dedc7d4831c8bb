//! Who may call what: one row for each RPC. Source: `spire-server.md`, 1.4.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Which callers an RPC lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Callers(u8);

impl Callers {
    /// Anybody, even without a certificate.
    pub const ANY: Self = Self(1);
    /// Processes on the admin socket.
    pub const LOCAL: Self = Self(2);
    /// `admin_ids` and holders of admin entries.
    pub const ADMIN: Self = Self(4);
    /// Attested agents.
    pub const AGENT: Self = Self(8);
    /// Holders of downstream entries.
    pub const DOWNSTREAM: Self = Self(16);

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if `kind` is among them.
    pub const fn include(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }
}

/// Which limiter an RPC draws from. RPCs of one group share their buckets, as in SPIRE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitGroup {
    /// None.
    Unlimited,
    /// One a second for each address.
    Attest,
    /// 500 a second: certificates.
    Certificate,
    /// 500 a second: JWT-SVIDs.
    Jwt,
    /// 500 a second: WIT-SVIDs.
    Wit,
    /// 500 a second: keys pushed by downstream servers.
    PushKey,
    /// 10 a second.
    PostStatus,
}

/// The row of one RPC.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// HTTP/2 path.
    pub path: &'static str,
    /// As SPIRE's logs name the service: `agent.v1.Agent`.
    pub service: &'static str,
    /// As SPIRE's logs name the method.
    pub name: &'static str,
    /// Who may call.
    pub callers: Callers,
    /// What limits it.
    pub limit: LimitGroup,
    /// Index in [`METHODS`].
    pub index: usize,
}

impl Method {
    /// SPIRE's metric key without the leading `rpc`: `agent.v1.agent.attest_agent`.
    pub fn metric_key(&self) -> String {
        let mut key = String::new();
        // SPIRE shortens the name of this one service.
        let service = self.service.strip_prefix("logger.v1.").unwrap_or(self.service);
        for part in service.split('.').chain([self.name]) {
            if !key.is_empty() {
                key.push('.');
            }
            snake_case(part, &mut key);
        }
        key
    }
}

/// PascalCase to snake_case as SPIRE does it: a word begins at an upper-case letter with a lower-case one before or
/// behind it.
fn snake_case(name: &str, out: &mut String) {
    let chars: Vec<char> = name.chars().collect();
    for (at, char) in chars.iter().enumerate() {
        let after_lower = at > 0 && chars[at - 1].is_lowercase();
        let before_lower = at > 0 && chars.get(at + 1).is_some_and(|next| next.is_lowercase());
        if char.is_uppercase() && (after_lower || before_lower) {
            out.push('_');
        }
        out.extend(char.to_lowercase());
    }
}

const A: Callers = Callers::ANY;
const L: Callers = Callers::LOCAL;
const DL: Callers = Callers::ADMIN.or(Callers::LOCAL);
const G: Callers = Callers::AGENT;
const GDL: Callers = DL.or(G);
const W: Callers = Callers::DOWNSTREAM;
const FREE: LimitGroup = LimitGroup::Unlimited;

macro_rules! methods {
    ($($package:literal $short:literal { $($name:literal $callers:ident $limit:expr;)* })*) => {
        /// Every RPC that is served here.
        pub const METHODS: &[Method] = &index([$($(
            Method {
                path: concat!("/", $package, $short, "/", $name),
                service: $short,
                name: $name,
                callers: $callers,
                limit: $limit,
                index: 0,
            },
        )*)*]);
    };
}

const fn index<const N: usize>(mut methods: [Method; N]) -> [Method; N] {
    let mut at = 0;
    while at < N {
        methods[at].index = at;
        at += 1;
    }
    methods
}

methods! {
    "spire.api.server." "agent.v1.Agent" {
        "CountAgents" DL FREE;
        "ListAgents" DL FREE;
        "GetAgent" DL FREE;
        "DeleteAgent" DL FREE;
        "BanAgent" DL FREE;
        "CreateJoinToken" DL FREE;
        "AttestAgent" A LimitGroup::Attest;
        "RenewAgent" G LimitGroup::Certificate;
        "PostStatus" G LimitGroup::PostStatus;
    }
    "spire.api.server." "bundle.v1.Bundle" {
        "GetBundle" A FREE;
        "GetFederatedBundle" GDL FREE;
        "AppendBundle" DL FREE;
        "CountBundles" DL FREE;
        "ListFederatedBundles" DL FREE;
        "BatchCreateFederatedBundle" DL FREE;
        "BatchUpdateFederatedBundle" DL FREE;
        "BatchSetFederatedBundle" DL FREE;
        "BatchDeleteFederatedBundle" DL FREE;
        "PublishJWTAuthority" W LimitGroup::PushKey;
        "PublishWITAuthority" W LimitGroup::PushKey;
    }
    "spire.api.server." "entry.v1.Entry" {
        "CountEntries" DL FREE;
        "ListEntries" DL FREE;
        "GetEntry" DL FREE;
        "BatchCreateEntry" DL FREE;
        "BatchUpdateEntry" DL FREE;
        "BatchDeleteEntry" DL FREE;
        "GetAuthorizedEntries" G FREE;
        "SyncAuthorizedEntries" G FREE;
    }
    "spire.api.server." "svid.v1.SVID" {
        "MintX509SVID" DL FREE;
        "MintJWTSVID" DL FREE;
        "MintWITSVID" DL FREE;
        "BatchNewX509SVID" G LimitGroup::Certificate;
        "NewJWTSVID" G LimitGroup::Jwt;
        "BatchNewWITSVID" G LimitGroup::Wit;
        "NewDownstreamX509CA" W LimitGroup::Certificate;
    }
    "spire.api.server." "trustdomain.v1.TrustDomain" {
        "ListFederationRelationships" DL FREE;
        "GetFederationRelationship" DL FREE;
        "BatchCreateFederationRelationship" DL FREE;
        "BatchUpdateFederationRelationship" DL FREE;
        "BatchDeleteFederationRelationship" DL FREE;
        "RefreshBundle" DL FREE;
    }
    "spire.api.server." "localauthority.v1.LocalAuthority" {
        "GetJWTAuthorityState" DL FREE;
        "PrepareJWTAuthority" DL FREE;
        "ActivateJWTAuthority" DL FREE;
        "TaintJWTAuthority" DL FREE;
        "RevokeJWTAuthority" DL FREE;
        "GetX509AuthorityState" DL FREE;
        "PrepareX509Authority" DL FREE;
        "ActivateX509Authority" DL FREE;
        "TaintX509Authority" DL FREE;
        "TaintX509UpstreamAuthority" DL FREE;
        "RevokeX509Authority" DL FREE;
        "RevokeX509UpstreamAuthority" DL FREE;
        "GetWITAuthorityState" DL FREE;
        "PrepareWITAuthority" DL FREE;
        "ActivateWITAuthority" DL FREE;
        "TaintWITAuthority" DL FREE;
        "RevokeWITAuthority" DL FREE;
    }
    "spire.api.server." "logger.v1.Logger" {
        "GetLogger" L FREE;
        "SetLogLevel" L FREE;
        "ResetLogLevel" L FREE;
    }
    "spire.api.server." "debug.v1.Debug" {
        "GetInfo" L FREE;
    }
    "grpc.health.v1." "Health" {
        "Check" L FREE;
        "List" L FREE;
        "Watch" L FREE;
    }
    "svid." "sync.v1.Sync" {
        "Watch" G FREE;
    }
    "svid." "backup.v1.Backup" {
        "TakeBackup" L FREE;
    }
    "svid." "federation.v1.Federation" {
        "ListRelationships" L FREE;
        "RefreshBundle" L FREE;
    }
    "svid." "status.v1.Status" {
        "GetStatus" L FREE;
        "ListAuthorizedEntries" L FREE;
        "ListSuspectedClones" L FREE;
        "GetAuthorities" L FREE;
    }
}

static BY_PATH: LazyLock<HashMap<&'static str, &'static Method>> =
    LazyLock::new(|| METHODS.iter().map(|method| (method.path, method)).collect());

/// The row of the RPC at this HTTP/2 path.
pub fn method(path: &str) -> Option<&'static Method> {
    BY_PATH.get(path).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Services of the descriptor set that this server serves.
    const SERVED: &[&str] = &[
        "spire.api.server.",
        "grpc.health.v1.",
        "svid.sync.v1.",
        "svid.status.v1.Status",
        "svid.backup.v1.",
        "svid.federation.v1.",
    ];

    #[test]
    fn every_served_rpc_has_a_row_and_every_row_an_rpc() {
        let all = svid_proto::rpc::all_methods();
        let served = |service: &str| SERVED.iter().any(|prefix| service.starts_with(prefix));
        for rpc in all.iter().filter(|rpc| served(&rpc.service)) {
            assert!(method(&rpc.full).is_some(), "{} has no row", rpc.full);
        }
        for row in METHODS {
            assert!(all.iter().any(|rpc| rpc.full == row.path), "{} is no RPC", row.path);
        }
    }

    #[test]
    fn rows_of_note() {
        let callers = |path: &str| method(path).expect(path).callers;
        let attest = callers("/spire.api.server.agent.v1.Agent/AttestAgent");
        assert!(attest.include(Callers::ANY));
        let ban = callers("/spire.api.server.agent.v1.Agent/BanAgent");
        assert!(ban.include(Callers::ADMIN) && ban.include(Callers::LOCAL));
        assert!(
            !ban.include(Callers::AGENT) && !ban.include(Callers::ANY) && !ban.include(Callers::DOWNSTREAM)
        );
        let logger = callers("/spire.api.server.logger.v1.Logger/SetLogLevel");
        assert!(!logger.include(Callers::ADMIN));
        assert!(method("/x/y").is_none());
    }

    #[test]
    fn metric_keys() {
        let key = |path: &str| method(path).expect(path).metric_key();
        assert_eq!(key("/spire.api.server.agent.v1.Agent/AttestAgent"), "agent.v1.agent.attest_agent");
        assert_eq!(key("/spire.api.server.svid.v1.SVID/BatchNewX509SVID"), "svid.v1.svid.batch_new_x509svid");
        assert_eq!(key("/grpc.health.v1.Health/Check"), "health.check");
        assert_eq!(key("/spire.api.server.logger.v1.Logger/GetLogger"), "logger.get_logger");
        assert_eq!(
            key("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority"),
            "localauthority.v1.local_authority.taint_x509_authority"
        );
    }
}
