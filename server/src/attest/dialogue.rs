//! The AttestAgent stream: one request, challenges while the attestor has any, one result.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use svid_plugin_api::node_attestor::MAX_PAYLOAD_BYTES;
use svid_plugin_api::{AttestContext, Challenger, PluginCode, PluginError};
use svid_proto::convert::x509_svid_to_wire;
use svid_proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step as Asked};
use svid_proto::spire::api::server::agent::v1::attest_agent_response::{Result as Done, Step};
use svid_proto::spire::api::server::agent::v1::{AttestAgentRequest, AttestAgentResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Attested, JOIN_TOKEN, admit};
use crate::api::Context;
use crate::api::agent::join_token_id;
use crate::api::caller::{Call, Peer};
use crate::api::status::invalid;

/// The whole dialogue: whoever needs longer is not attesting.
const DEADLINE: Duration = Duration::from_secs(60);
/// Longest name of an attestor in bytes. Anybody may send one, and refusals and log lines repeat it.
const MAX_TYPE_BYTES: usize = 255;
/// More challenges than any attestor needs.
const MAX_CHALLENGES: usize = 16;

type Answer = Result<AttestAgentResponse, Status>;

/// The stream of answers to the messages of `requests`.
pub fn serve(
    context: Arc<Context>,
    call: Arc<Call>,
    requests: Streaming<AttestAgentRequest>,
) -> impl Stream<Item = Answer> {
    let (answers, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let dialogue = dialogue(&context, &call, requests, &answers);
        let ended = tokio::time::timeout(DEADLINE, dialogue).await;
        let ended = ended.unwrap_or_else(|_| Err(Status::deadline_exceeded("attestation took too long")));
        if let Err(status) = &ended {
            log_failed(&call, status);
        }
        let (code, message) =
            ended.as_ref().err().map_or((Code::Ok, ""), |status| (status.code(), status.message()));
        call.audit_end(code, message);
        let _ = answers.send(ended).await; // the agent may be gone
    });
    ReceiverStream::new(stream)
}

fn log_failed(call: &Call, status: &Status) {
    tracing::error!(
        service = call.method.service,
        method = call.method.name,
        caller_addr = address(call),
        status_code = ?status.code(),
        error = status.message(),
        "Failed to attest agent"
    );
}

fn address(call: &Call) -> Option<tracing::field::DisplayValue<std::net::SocketAddr>> {
    match &call.peer {
        Peer::Local(_) => None,
        Peer::Tls { address, .. } => Some(tracing::field::display(*address)),
    }
}

struct Request {
    kind: String,
    payload: Vec<u8>,
    csr: Vec<u8>,
}

/// SPIRE's checks of the first message, in its order.
fn check(first: AttestAgentRequest) -> Result<Request, Status> {
    let malformed = |what: &str| invalid("malformed param", what);
    let Some(Asked::Params(Params { data, params })) = first.step else {
        return Err(malformed("missing params"));
    };
    let data = data.ok_or_else(|| malformed("missing attestation data"))?;
    let params = params.ok_or_else(|| malformed("missing X509-SVID parameters"))?;
    match () {
        () if params.csr.is_empty() => Err(malformed("missing CSR")),
        () if data.r#type.is_empty() => Err(malformed("missing attestation data type")),
        () if data.r#type.len() > MAX_TYPE_BYTES => Err(malformed("attestation data type is too long")),
        () if data.payload.is_empty() => Err(malformed("missing attestation data payload")),
        () if data.payload.len() > MAX_PAYLOAD_BYTES => {
            Err(malformed("attestation data payload is too large"))
        }
        () => Ok(Request { kind: data.r#type, payload: data.payload, csr: params.csr }),
    }
}

async fn dialogue(
    context: &Context,
    call: &Call,
    mut requests: Streaming<AttestAgentRequest>,
    answers: &mpsc::Sender<Answer>,
) -> Answer {
    const RECEIVE: &str = "failed to receive request from stream";
    let first = requests.message().await.map_err(|status| invalid(RECEIVE, status.message()))?;
    let request = check(first.ok_or_else(|| invalid(RECEIVE, "EOF"))?)?;
    call.audit.add(|fields| fields.node_attestor_type = Some(request.kind.clone()));
    let attested = if request.kind == JOIN_TOKEN {
        join_token(context, &request.payload)?
    } else {
        by_plugin(context, call, &request, requests, answers).await?
    };
    call.audit.add(|fields| fields.agent_id = Some(attested.id.to_string()));
    let svid = admit(context, &attested, &request.csr).await?;
    tracing::info!(
        agent_id = %attested.id,
        node_attestor_type = %attested.kind,
        address = address(call),
        "Agent attestation request completed"
    );
    let done = Done { svid: Some(x509_svid_to_wire(&svid)), reattestable: attested.can_reattest };
    Ok(AttestAgentResponse { step: Some(Step::Result(done)) })
}

fn join_token(context: &Context, payload: &[u8]) -> Result<Attested, Status> {
    let unknown =
        || Status::invalid_argument("failed to attest: join token does not exist or has already been used");
    let token = std::str::from_utf8(payload).map_err(|_| unknown())?;
    // A text that cannot be part of an ID was never handed out.
    let id = join_token_id(&context.trust_domain, token).map_err(|_| unknown())?;
    Ok(Attested {
        kind: JOIN_TOKEN.to_owned(),
        id,
        selector_values: Vec::new(),
        can_reattest: false,
        join_token: Some(token.to_owned()),
    })
}

async fn by_plugin(
    context: &Context,
    call: &Call,
    request: &Request,
    requests: Streaming<AttestAgentRequest>,
    answers: &mpsc::Sender<Answer>,
) -> Result<Attested, Status> {
    let Some(attestor) = context.attestors.named(&request.kind) else {
        return Err(Status::failed_precondition(format!(
            "error getting node attestor: could not find node attestor type {:?}",
            request.kind
        )));
    };
    let about = AttestContext { trust_domain: context.trust_domain.clone(), client_ip: call.peer.ip() };
    let mut wire = Wire { requests, answers, left: MAX_CHALLENGES };
    let attested = attestor.attest(&about, &request.payload, &mut wire).await;
    let attested = attested.map_err(|error| refused(attestor.name(), &error))?;
    Ok(Attested {
        kind: attestor.name().to_owned(),
        id: attested.agent_id,
        selector_values: attested.selector_values,
        can_reattest: attested.can_reattest,
        join_token: None,
    })
}

fn refused(name: &str, error: &PluginError) -> Status {
    let code = match error.code {
        PluginCode::InvalidArgument => Code::InvalidArgument,
        PluginCode::PermissionDenied => Code::PermissionDenied,
        PluginCode::FailedPrecondition => Code::FailedPrecondition,
        PluginCode::Unavailable => Code::Unavailable,
        PluginCode::Unimplemented => Code::Unimplemented,
        PluginCode::Unauthenticated => Code::Unauthenticated,
        PluginCode::ResourceExhausted => Code::ResourceExhausted,
        PluginCode::DeadlineExceeded => Code::DeadlineExceeded,
        PluginCode::Internal => Code::Internal,
    };
    Status::new(code, format!("nodeattestor({name}): {}", error.message))
}

/// The stream as an attestor sees it.
struct Wire<'a> {
    requests: Streaming<AttestAgentRequest>,
    answers: &'a mpsc::Sender<Answer>,
    left: usize,
}

#[async_trait]
impl Challenger for Wire<'_> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| PluginError::internal("too many challenges"))?;
        let step = AttestAgentResponse { step: Some(Step::Challenge(challenge)) };
        let sent = self.answers.send(Ok(step)).await;
        sent.map_err(|_| PluginError::internal("failed to send challenge to agent"))?;
        let failed =
            |why: &str| PluginError::internal(format!("failed to receive challenge from agent: {why}"));
        let request = self.requests.message().await.map_err(|status| failed(status.message()))?;
        match request.ok_or_else(|| failed("EOF"))?.step {
            Some(Asked::ChallengeResponse(answer)) if answer.len() <= MAX_PAYLOAD_BYTES => Ok(answer),
            Some(Asked::ChallengeResponse(_)) => Err(PluginError::invalid("challenge response is too large")),
            _ => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_proto::spire::api::server::agent::v1::AgentX509svidParams;
    use svid_proto::spire::api::types::AttestationData;

    use super::*;

    #[test]
    fn what_anybody_sends_is_bounded() {
        let refusal = |kind: usize, payload: usize| {
            let data = AttestationData { r#type: "k".repeat(kind), payload: vec![1; payload] };
            let params = AgentX509svidParams { csr: vec![1] };
            let params = Params { data: Some(data), params: Some(params) };
            let checked = check(AttestAgentRequest { step: Some(Asked::Params(params)) });
            checked.err().map(|status| status.message().to_owned()).unwrap_or_default()
        };
        assert_eq!(refusal(MAX_TYPE_BYTES, MAX_PAYLOAD_BYTES), "");
        assert_eq!(refusal(MAX_TYPE_BYTES + 1, 1), "malformed param: attestation data type is too long");
        assert_eq!(
            refusal(1, MAX_PAYLOAD_BYTES + 1),
            "malformed param: attestation data payload is too large"
        );
    }
}
