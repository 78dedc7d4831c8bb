use super::*;

/// Every RPC there is. `>` after the name: the client streams; `<`: the server does.
const EXPECTED: &[(&str, &[&str])] = &[
    (
        "SpiffeWorkloadAPI",
        &[
            "FetchX509SVID<",
            "FetchX509Bundles<",
            "FetchJWTSVID",
            "FetchJWTBundles<",
            "ValidateJWTSVID",
            "FetchWITSVID<",
            "FetchWITBundles<",
        ],
    ),
    (
        "spiffe.broker.API",
        &["SubscribeToX509SVID<", "SubscribeToX509Bundles<", "FetchJWTSVID", "SubscribeToJWTBundles<"],
    ),
    (
        "envoy.service.secret.v3.SecretDiscoveryService",
        &["DeltaSecrets><", "StreamSecrets><", "FetchSecrets"],
    ),
    ("grpc.health.v1.Health", &["Check", "List", "Watch<"]),
    ("spire.agent.debug.v1.Debug", &["GetInfo"]),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        &["SubscribeToX509SVIDs<", "SubscribeToX509Bundles<", "FetchJWTSVIDs", "SubscribeToJWTBundles<"],
    ),
    ("spire.api.agent.logger.v1.Logger", &["GetLogger", "SetLogLevel", "ResetLogLevel"]),
    (
        "spire.api.server.agent.v1.Agent",
        &[
            "CountAgents",
            "ListAgents",
            "GetAgent",
            "DeleteAgent",
            "BanAgent",
            "AttestAgent><",
            "RenewAgent",
            "CreateJoinToken",
            "PostStatus",
        ],
    ),
    (
        "spire.api.server.bundle.v1.Bundle",
        &[
            "CountBundles",
            "GetBundle",
            "AppendBundle",
            "PublishJWTAuthority",
            "PublishWITAuthority",
            "ListFederatedBundles",
            "GetFederatedBundle",
            "BatchCreateFederatedBundle",
            "BatchUpdateFederatedBundle",
            "BatchSetFederatedBundle",
            "BatchDeleteFederatedBundle",
        ],
    ),
    ("spire.api.server.debug.v1.Debug", &["GetInfo"]),
    (
        "spire.api.server.entry.v1.Entry",
        &[
            "CountEntries",
            "ListEntries",
            "GetEntry",
            "BatchCreateEntry",
            "BatchUpdateEntry",
            "BatchDeleteEntry",
            "GetAuthorizedEntries",
            "SyncAuthorizedEntries><",
        ],
    ),
    (
        "spire.api.server.localauthority.v1.LocalAuthority",
        &[
            "GetJWTAuthorityState",
            "PrepareJWTAuthority",
            "ActivateJWTAuthority",
            "TaintJWTAuthority",
            "RevokeJWTAuthority",
            "GetX509AuthorityState",
            "PrepareX509Authority",
            "ActivateX509Authority",
            "TaintX509Authority",
            "TaintX509UpstreamAuthority",
            "RevokeX509Authority",
            "RevokeX509UpstreamAuthority",
            "GetWITAuthorityState",
            "PrepareWITAuthority",
            "ActivateWITAuthority",
            "TaintWITAuthority",
            "RevokeWITAuthority",
        ],
    ),
    ("spire.api.server.logger.v1.Logger", &["GetLogger", "SetLogLevel", "ResetLogLevel"]),
    (
        "spire.api.server.svid.v1.SVID",
        &[
            "MintX509SVID",
            "MintJWTSVID",
            "MintWITSVID",
            "BatchNewX509SVID",
            "NewJWTSVID",
            "BatchNewWITSVID",
            "NewDownstreamX509CA",
        ],
    ),
    (
        "spire.api.server.trustdomain.v1.TrustDomain",
        &[
            "ListFederationRelationships",
            "GetFederationRelationship",
            "BatchCreateFederationRelationship",
            "BatchUpdateFederationRelationship",
            "BatchDeleteFederationRelationship",
            "RefreshBundle",
        ],
    ),
    ("svid.backup.v1.Backup", &["TakeBackup<"]),
    ("svid.federation.v1.Federation", &["ListRelationships", "RefreshBundle"]),
    ("svid.status.v1.AgentStatus", &["GetStatus"]),
    (
        "svid.status.v1.Status",
        &["GetStatus", "ListAuthorizedEntries", "ListSuspectedClones", "GetAuthorities"],
    ),
    ("svid.sync.v1.Sync", &["Watch<"]),
];

fn expected((service, methods): &(&str, &[&str])) -> Vec<Method> {
    methods
        .iter()
        .map(|spec| {
            let name = spec.trim_end_matches(['<', '>']);
            Method {
                service: (*service).to_owned(),
                name: name.to_owned(),
                full: format!("/{service}/{name}"),
                client_streaming: spec.contains('>'),
                server_streaming: spec.contains('<'),
            }
        })
        .collect()
}

#[test]
fn the_list_is_exactly_this() {
    let mut wanted: Vec<Method> = EXPECTED.iter().flat_map(expected).collect();
    wanted.sort_by(|a, b| a.full.cmp(&b.full));
    assert_eq!(all_methods(), wanted);
}

#[test]
fn servers_carry_the_same_names() {
    use crate::spire::api::server as spire;
    let names = [
        crate::workload::spiffe_workload_api_server::SERVICE_NAME,
        crate::workload::encoded_server::spiffe_workload_api_server::SERVICE_NAME,
        spire::agent::v1::agent_server::SERVICE_NAME,
        spire::svid::v1::svid_server::SERVICE_NAME,
        spire::entry::v1::entry_server::SERVICE_NAME,
        crate::svid::sync::v1::sync_server::SERVICE_NAME,
    ];
    for name in names {
        assert!(EXPECTED.iter().any(|(service, _)| *service == name), "{name}");
    }
}
