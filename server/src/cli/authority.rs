//! `localauthority x509|jwt ...` and `upstreamauthority ...`.

use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::spire::api::server::localauthority::v1 as wire;
use wire::AuthorityState;
use wire::local_authority_client::LocalAuthorityClient;

use super::session::{Session, rpc_context, rpc_error, utc};
use super::{Handler, Outcome, command, flags};

pub fn commands() -> Vec<Command<Handler>> {
    let mut all = x509_commands();
    all.extend(jwt_commands());
    all.extend(upstream_commands());
    all
}

fn id_flags(name: &'static str, help: &'static str) -> FlagSet {
    flags(name).string("authorityID", "", help)
}

fn authority_id(flags: &Parsed) -> Result<String, CliError> {
    match flags.str("authorityID") {
        "" => Err(CliError::new("an authority ID is required")),
        id => Ok(id.into()),
    }
}

/// Which kind of authority a text is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    X509,
    Jwt,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::X509 => "X.509 authority",
            Self::Jwt => "JWT authority",
        }
    }
}

fn print_state(session: &mut Session<'_>, kind: Kind, state: &AuthorityState) -> Outcome {
    writeln!(session.out, "  Authority ID: {}", state.authority_id)?;
    writeln!(session.out, "  Expires at: {}", utc(state.expires_at))?;
    match (kind, state.upstream_authority_subject_key_id.as_str()) {
        (Kind::Jwt, _) => {}
        (Kind::X509, "") => writeln!(session.out, "  Upstream authority ID: No upstream authority")?,
        (Kind::X509, id) => writeln!(session.out, "  Upstream authority Subject Key ID: {id}")?,
    }
    Ok(())
}

fn print_states(session: &mut Session<'_>, kind: Kind, states: [Option<&AuthorityState>; 3]) -> Outcome {
    let labels = [("Active", "active"), ("Prepared", "prepared"), ("Old", "old")];
    for (number, ((label, word), state)) in labels.into_iter().zip(states).enumerate() {
        if number > 0 {
            writeln!(session.out)?;
        }
        writeln!(session.out, "{label} {}:", kind.words())?;
        match state {
            Some(state) => print_state(session, kind, state)?,
            None => writeln!(session.out, "  No {word} {} found", kind.words())?,
        }
    }
    Ok(())
}

fn print_changed(
    session: &mut Session<'_>,
    kind: Kind,
    verb: &str,
    state: Option<&AuthorityState>,
) -> Outcome {
    writeln!(session.out, "{verb} {}:", kind.words())?;
    match state {
        Some(state) => print_state(session, kind, state),
        None => Err(CliError::new(format!(
            "internal error: expected to have {} {} information",
            verb.to_lowercase(),
            kind.words()
        ))),
    }
}

/// A command that changes an authority: its RPC, request, answer, and the field of the answer that tells the state.
macro_rules! change {
    ($name:ident, $rpc:ident, $request:expr, $answer:literal, $field:ident, $kind:expr, $verb:literal, $context:literal) => {
        async fn $name(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
            let request = $request(flags)?;
            let mut client = LocalAuthorityClient::new(session.server().await?);
            let answer = client.$rpc(request).await.map_err(rpc_context($context))?.into_inner();
            let name = concat!("spire.api.server.localauthority.v1.", $answer);
            session.print(flags, name, &answer, |session| {
                print_changed(session, $kind, $verb, answer.$field.as_ref())
            })
        }
    };
}

/// A request that names an authority.
macro_rules! by_id {
    ($request:ident) => {
        |flags: &Parsed| authority_id(flags).map(|authority_id| wire::$request { authority_id })
    };
}

change!(
    x509_prepare,
    prepare_x509_authority,
    |_: &Parsed| Ok::<_, CliError>(wire::PrepareX509AuthorityRequest {}),
    "PrepareX509AuthorityResponse",
    prepared_authority,
    Kind::X509,
    "Prepared",
    "could not prepare X.509 authority"
);
change!(
    x509_activate,
    activate_x509_authority,
    by_id!(ActivateX509AuthorityRequest),
    "ActivateX509AuthorityResponse",
    activated_authority,
    Kind::X509,
    "Activated",
    "could not activate X.509 authority"
);
change!(
    x509_taint,
    taint_x509_authority,
    by_id!(TaintX509AuthorityRequest),
    "TaintX509AuthorityResponse",
    tainted_authority,
    Kind::X509,
    "Tainted",
    "could not taint X.509 authority"
);
change!(
    x509_revoke,
    revoke_x509_authority,
    by_id!(RevokeX509AuthorityRequest),
    "RevokeX509AuthorityResponse",
    revoked_authority,
    Kind::X509,
    "Revoked",
    "could not revoke X.509 authority"
);
change!(
    jwt_prepare,
    prepare_jwt_authority,
    |_: &Parsed| Ok::<_, CliError>(wire::PrepareJwtAuthorityRequest {}),
    "PrepareJWTAuthorityResponse",
    prepared_authority,
    Kind::Jwt,
    "Prepared",
    "could not prepare JWT authority"
);
change!(
    jwt_activate,
    activate_jwt_authority,
    by_id!(ActivateJwtAuthorityRequest),
    "ActivateJWTAuthorityResponse",
    activated_authority,
    Kind::Jwt,
    "Activated",
    "could not activate JWT authority"
);
change!(
    jwt_taint,
    taint_jwt_authority,
    by_id!(TaintJwtAuthorityRequest),
    "TaintJWTAuthorityResponse",
    tainted_authority,
    Kind::Jwt,
    "Tainted",
    "could not taint JWT authority"
);
change!(
    jwt_revoke,
    revoke_jwt_authority,
    by_id!(RevokeJwtAuthorityRequest),
    "RevokeJWTAuthorityResponse",
    revoked_authority,
    Kind::Jwt,
    "Revoked",
    "could not revoke JWT authority"
);

async fn x509_show(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = LocalAuthorityClient::new(session.server().await?);
    let answer = client.get_x509_authority_state(wire::GetX509AuthorityStateRequest {}).await;
    let answer = answer.map_err(rpc_context("could not get X.509 authorities"))?.into_inner();
    let name = "spire.api.server.localauthority.v1.GetX509AuthorityStateResponse";
    session.print(flags, name, &answer, |session| {
        let states = [answer.active.as_ref(), answer.prepared.as_ref(), answer.old.as_ref()];
        print_states(session, Kind::X509, states)
    })
}

async fn jwt_show(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = LocalAuthorityClient::new(session.server().await?);
    let answer = client.get_jwt_authority_state(wire::GetJwtAuthorityStateRequest {}).await;
    let answer = answer.map_err(rpc_error)?.into_inner();
    let name = "spire.api.server.localauthority.v1.GetJWTAuthorityStateResponse";
    session.print(flags, name, &answer, |session| {
        let states = [answer.active.as_ref(), answer.prepared.as_ref(), answer.old.as_ref()];
        print_states(session, Kind::Jwt, states)
    })
}

fn x509_commands() -> Vec<Command<Handler>> {
    vec![
        command(
            "localauthority x509 show",
            "Shows the local X.509 authorities",
            flags("localauthority x509 show"),
            |s, f| Box::pin(x509_show(s, f)),
        ),
        command(
            "localauthority x509 prepare",
            "Prepares a new X.509 authority for use by generating a new key and injecting the resulting CA certificate \
             into the bundle",
            flags("localauthority x509 prepare"),
            |s, f| Box::pin(x509_prepare(s, f)),
        ),
        command(
            "localauthority x509 activate",
            "Activates a prepared X.509 authority for use, which will cause it to be used for all X.509 signing \
             operations serviced by this server going forward",
            id_flags("localauthority x509 activate", "The authority ID of the X.509 authority to activate"),
            |s, f| Box::pin(x509_activate(s, f)),
        ),
        command(
            "localauthority x509 taint",
            "Marks the previously active X.509 authority as being tainted",
            id_flags("localauthority x509 taint", "The authority ID of the X.509 authority to taint"),
            |s, f| Box::pin(x509_taint(s, f)),
        ),
        command(
            "localauthority x509 revoke",
            "Revokes the previously active X.509 authority by removing it from the bundle and propagating this update \
             throughout the cluster",
            id_flags("localauthority x509 revoke", "The authority ID of the X.509 authority to revoke"),
            |s, f| Box::pin(x509_revoke(s, f)),
        ),
    ]
}

fn jwt_commands() -> Vec<Command<Handler>> {
    vec![
        command(
            "localauthority jwt show",
            "Shows the local JWT authorities",
            flags("localauthority jwt show"),
            |s, f| Box::pin(jwt_show(s, f)),
        ),
        command(
            "localauthority jwt prepare",
            "Prepares a new JWT authority for use by generating a new key and injecting it into the bundle",
            flags("localauthority jwt prepare"),
            |s, f| Box::pin(jwt_prepare(s, f)),
        ),
        command(
            "localauthority jwt activate",
            "Activates a prepared JWT authority for use, which will cause it to be used for all JWT signing operations \
             serviced by this server going forward",
            id_flags("localauthority jwt activate", "The authority ID of the JWT authority to activate"),
            |s, f| Box::pin(jwt_activate(s, f)),
        ),
        command(
            "localauthority jwt taint",
            "Marks the previously active JWT authority as being tainted",
            id_flags("localauthority jwt taint", "The authority ID of the JWT authority to taint"),
            |s, f| Box::pin(jwt_taint(s, f)),
        ),
        command(
            "localauthority jwt revoke",
            "Revokes the previously active JWT authority by removing it from the bundle and propagating this update \
             throughout the cluster",
            id_flags("localauthority jwt revoke", "The authority ID of the JWT authority to revoke"),
            |s, f| Box::pin(jwt_revoke(s, f)),
        ),
    ]
}

fn upstream_commands() -> Vec<Command<Handler>> {
    let with_key = |name, help| flags(name).string("subjectKeyID", "", help);
    vec![
        command(
            "upstreamauthority taint",
            "Marks the provided X.509 upstream authority as being tainted",
            with_key(
                "upstreamauthority taint",
                "The X.509 Subject Key Identifier (or SKID) of the authority's CA certificate of the upstream X.509 \
                 authority to taint",
            ),
            |s, f| Box::pin(upstream_taint(s, f)),
        ),
        command(
            "upstreamauthority revoke",
            "Revokes the previously active X.509 upstream authority by removing it from the bundle and propagating \
             this update throughout the cluster",
            with_key(
                "upstreamauthority revoke",
                "The X.509 Subject Key Identifier (or SKID) of the authority's CA certificate of the X.509 upstream \
                 authority to revoke",
            ),
            |s, f| Box::pin(upstream_revoke(s, f)),
        ),
    ]
}

fn subject_key_id(flags: &Parsed) -> Result<String, CliError> {
    match flags.str("subjectKeyID") {
        "" => Err(CliError::new("the Subject Key ID of the X.509 upstream authority is required")),
        id => Ok(id.into()),
    }
}

async fn upstream_taint(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = wire::TaintX509UpstreamAuthorityRequest { subject_key_id: subject_key_id(flags)? };
    let mut client = LocalAuthorityClient::new(session.server().await?);
    let answer = client.taint_x509_upstream_authority(request).await;
    let answer = answer.map_err(rpc_context("could not taint X.509 upstream authority"))?.into_inner();
    let name = "spire.api.server.localauthority.v1.TaintX509UpstreamAuthorityResponse";
    session.print(flags, name, &answer, |session| {
        writeln!(session.out, "Tainted X.509 upstream authority:")?;
        Ok(writeln!(session.out, "  Subject Key ID: {}", answer.upstream_authority_subject_key_id)?)
    })
}

async fn upstream_revoke(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = wire::RevokeX509UpstreamAuthorityRequest { subject_key_id: subject_key_id(flags)? };
    let mut client = LocalAuthorityClient::new(session.server().await?);
    let answer = client.revoke_x509_upstream_authority(request).await;
    let answer = answer.map_err(rpc_context("could not revoke X.509 upstream authority"))?.into_inner();
    let name = "spire.api.server.localauthority.v1.RevokeX509UpstreamAuthorityResponse";
    session.print(flags, name, &answer, |session| {
        writeln!(session.out, "Revoked X.509 upstream authority:")?;
        Ok(writeln!(session.out, "  Subject Key ID: {}", answer.upstream_authority_subject_key_id)?)
    })
}
