//! What a run needs at the server: entries, join tokens and agents of its own, made through the public APIs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use svid_core::id::TrustDomain;
use svid_core::key::{KeyType, LocalKey, PrivateKeyDer};
use svid_core::x509::csr::make_csr;
use svid_daemon::net::unix_channel;
use svid_daemon::tls::{Identity, Roots, ServerTrust, SpiffeServerVerifier, TlsPolicy, client_config};
use svid_proto::spire::api::server::agent::v1 as agent;
use svid_proto::spire::api::server::bundle::v1::{GetBundleRequest, bundle_client::BundleClient};
use svid_proto::spire::api::server::entry::v1 as entry;
use svid_proto::spire::api::types;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use agent::agent_client::AgentClient;
use entry::entry_client::EntryClient;

use crate::cli::Common;
use crate::conn::{Http2, origin};
use crate::fleet::AgentSvid;
use crate::stats::Failure;

/// Entries a call.
pub const BATCH: usize = 500;
/// Begins every join token of ours, and with it the IDs of our agents.
const TOKEN_PREFIX: &str = "svid-load-";
/// What a server with a cache may take to know an entry.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A server, seen from its administrator's side.
#[derive(Clone)]
pub struct Site {
    channel: Channel,
    server: String,
    trust_domain: TrustDomain,
    bundle: types::Bundle,
    verifier: Arc<SpiffeServerVerifier>,
    /// Tells this run's entries from those of others.
    tag: String,
}

/// An agent of ours.
pub struct OwnAgent {
    /// As entries name it.
    pub id: types::Spiffeid,
    config: Arc<rustls::ClientConfig>,
    server: String,
}

impl OwnAgent {
    /// A new connection with this agent's certificate.
    /// # Errors
    /// [`Failure`] of connecting.
    pub async fn connect(&self) -> Result<Http2, Failure> {
        Http2::tls(&self.server, self.config.clone()).await
    }
}

/// A key and its CSR, as an agent makes them.
pub struct AgentKey {
    key: LocalKey,
    /// PKCS#10 DER.
    pub csr: Vec<u8>,
}

impl AgentKey {
    /// A new one.
    /// # Errors
    /// If the crypto library fails.
    pub fn generate() -> anyhow::Result<Self> {
        let key = LocalKey::generate(KeyType::EcP256)?;
        let csr = make_csr(&key, None, &[])?;
        Ok(Self { key, csr })
    }

    /// The key with the chain it was given.
    pub fn into_svid(self, chain: Vec<Vec<u8>>) -> AgentSvid {
        let key = PrivateKeyDer::from_pkcs8(self.key.private_key().secret_bytes().to_vec());
        AgentSvid::new(key, chain)
    }
}

fn random_hex(bytes: usize) -> anyhow::Result<String> {
    let mut random = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut random).ok().context("no randomness")?;
    Ok(hex::encode(random))
}

/// `type:value` as messages carry it.
pub fn selector(kind: &str, value: impl Into<String>) -> types::Selector {
    types::Selector { r#type: kind.to_owned(), value: value.into() }
}

/// What this process is for the unix attestor.
pub fn own_selector() -> types::Selector {
    selector("unix", format!("uid:{}", nix::unistd::geteuid()))
}

impl Site {
    /// Meets the server.
    /// # Errors
    /// If the admin socket does not answer with a bundle.
    pub async fn open(common: &Common) -> anyhow::Result<Self> {
        let socket = common.admin_socket();
        let channel = unix_channel(socket);
        let answer =
            BundleClient::new(channel.clone()).get_bundle(GetBundleRequest { output_mask: None }).await;
        let bundle = answer
            .map_err(Failure::from)
            .with_context(|| {
                format!(
                    "no bundle from {}; is the server up, and --admin-socket its socket?",
                    socket.display()
                )
            })?
            .into_inner();
        let trust_domain: TrustDomain = bundle.trust_domain.parse().context("the bundle's trust domain")?;
        let roots =
            Arc::new(Roots::from_ders(bundle.x509_authorities.iter().map(|root| root.asn1.as_slice()))?);
        let source = move |_: &TrustDomain| Some(roots.clone());
        let trust = ServerTrust::Bundle(Arc::new(source));
        let verifier = Arc::new(SpiffeServerVerifier::new(trust_domain.clone(), trust));
        let server = common.server().to_owned();
        Ok(Self { channel, server, trust_domain, bundle, verifier, tag: random_hex(4)? })
    }

    /// The same site with the IDs of an earlier run.
    pub fn tagged(&self, tag: &str) -> Self {
        Self { tag: tag.to_owned(), ..self.clone() }
    }

    /// The admin socket's channel.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// What tells this run's IDs from others.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The server's bundle.
    pub fn bundle(&self) -> &types::Bundle {
        &self.bundle
    }

    /// The TCP port's address.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A TLS client, which verifies the server; without an identity before attestation.
    /// # Errors
    /// If rustls refuses the identity.
    pub fn tls(&self, identity: Option<&Identity>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        Ok(client_config(identity, self.verifier.clone(), TlsPolicy::default())?)
    }

    /// An ID of this run, below `/load/<tag>`.
    pub fn id(&self, path: &str) -> types::Spiffeid {
        let path = format!("/load/{}{path}", self.tag);
        types::Spiffeid { trust_domain: self.trust_domain.to_string(), path }
    }

    /// The ID that a join token gives its agent.
    pub fn agent_of(&self, token: &str) -> types::Spiffeid {
        let path = format!("/spire/agent/join_token/{token}");
        types::Spiffeid { trust_domain: self.trust_domain.to_string(), path }
    }

    /// An entry of this run.
    pub fn entry(
        &self,
        path: &str,
        parent: &types::Spiffeid,
        selectors: Vec<types::Selector>,
    ) -> types::Entry {
        types::Entry {
            spiffe_id: Some(self.id(path)),
            parent_id: Some(parent.clone()),
            selectors,
            ..Default::default()
        }
    }

    /// Join tokens, good for an hour.
    /// # Errors
    /// The first refusal.
    pub async fn tokens(&self, count: usize) -> anyhow::Result<Vec<String>> {
        const AT_ONCE: usize = 16;
        let mut tasks = JoinSet::new();
        for share in 0..AT_ONCE {
            let count = count / AT_ONCE + usize::from(share < count % AT_ONCE);
            let mut client = AgentClient::new(self.channel.clone());
            tasks.spawn(async move {
                let mut tokens = Vec::with_capacity(count);
                for _ in 0..count {
                    let token = format!("{TOKEN_PREFIX}{}", random_hex(16)?);
                    let request = agent::CreateJoinTokenRequest { ttl: 3600, token, agent_id: None };
                    let made = client.create_join_token(request).await.map_err(Failure::from)?;
                    tokens.push(made.into_inner().value);
                }
                anyhow::Ok(tokens)
            });
        }
        let mut tokens = Vec::with_capacity(count);
        while let Some(part) = tasks.join_next().await {
            tokens.extend(part?.context("cannot create join tokens through the admin socket")?);
        }
        Ok(tokens)
    }

    /// Attests agents of our own.
    /// # Errors
    /// The first refusal.
    pub async fn agents(&self, count: usize) -> anyhow::Result<Vec<OwnAgent>> {
        let config = self.tls(None)?;
        let mut agents = Vec::with_capacity(count);
        for token in self.tokens(count).await? {
            let key = AgentKey::generate()?;
            let attested = async {
                let connection = Http2::tls(&self.server, config.clone()).await?;
                attest(connection, &token, key.csr.clone()).await
            };
            let svid = attested
                .await
                .with_context(|| format!("cannot attest at {}; is --server right?", self.server))?;
            let id = svid.id.context("an SVID without an ID")?;
            let identity = key.into_svid(svid.cert_chain).identity()?;
            agents.push(OwnAgent { id, config: self.tls(Some(&identity))?, server: self.server.clone() });
        }
        Ok(agents)
    }

    /// One agent of our own.
    /// # Errors
    /// As [`Site::agents`].
    pub async fn agent(&self) -> anyhow::Result<OwnAgent> {
        self.agents(1).await?.pop().context("no agent")
    }

    /// Creates entries and gives their IDs in order.
    /// # Errors
    /// The first refusal.
    pub async fn create(&self, entries: Vec<types::Entry>) -> anyhow::Result<Vec<String>> {
        let mut client = EntryClient::new(self.channel.clone());
        let mut ids = Vec::with_capacity(entries.len());
        for batch in entries.chunks(BATCH) {
            let request = create_request(batch.to_vec());
            let answer = client.batch_create_entry(request).await.map_err(Failure::from);
            for result in
                answer.context("cannot create entries through the admin socket")?.into_inner().results
            {
                if let Some(failure) = Failure::of_item(result.status.as_ref()) {
                    return Err(failure).context("the server refused an entry");
                }
                ids.push(result.entry.context("an answer without an entry")?.id);
            }
        }
        Ok(ids)
    }

    /// Deletes entries of this run. What is gone already stays gone.
    /// # Errors
    /// If the server does not answer.
    pub async fn delete(&self, ids: &[String]) -> anyhow::Result<()> {
        let mut client = EntryClient::new(self.channel.clone());
        for batch in ids.chunks(BATCH) {
            let request = entry::BatchDeleteEntryRequest { ids: batch.to_vec() };
            client
                .batch_delete_entry(request)
                .await
                .map_err(Failure::from)
                .context("cannot delete entries")?;
        }
        Ok(())
    }

    /// The agent that serves workloads here: the one given, or the only one that is not ours.
    /// # Errors
    /// In words, what to do.
    pub async fn real_agent(&self, common: &Common) -> anyhow::Result<types::Spiffeid> {
        if let Some(id) = &common.agent_id {
            let id: svid_core::id::SpiffeId = id.parse().context("--agent-id")?;
            return Ok(svid_proto::convert::id_to_wire(&id));
        }
        let mut client = AgentClient::new(self.channel.clone());
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = agent::ListAgentsRequest { page_size: 1000, page_token, ..Default::default() };
            let page =
                client.list_agents(request).await.map_err(Failure::from).context("cannot list agents")?;
            let page = page.into_inner();
            let ids = page.agents.into_iter().filter_map(|agent| agent.id);
            found.extend(ids.filter(|id| !id.path.contains(TOKEN_PREFIX)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        match found.len() {
            1 => found.pop().context("one agent"),
            0 => bail!(
                "the server knows no agent that could serve {}; start one",
                common.agent_socket.display()
            ),
            n => bail!("the server knows {n} agents; name the one behind the socket with --agent-id"),
        }
    }
}

/// A call that wants nothing back but IDs.
pub fn create_request(entries: Vec<types::Entry>) -> entry::BatchCreateEntryRequest {
    entry::BatchCreateEntryRequest { entries, output_mask: Some(types::EntryMask::default()) }
}

/// The whole dialogue of a join token.
/// # Errors
/// The server's refusal.
pub async fn attest(connection: Http2, token: &str, csr: Vec<u8>) -> Result<types::X509svid, Failure> {
    let data = types::AttestationData { r#type: "join_token".to_owned(), payload: token.as_bytes().to_vec() };
    let params = Some(agent::AgentX509svidParams { csr });
    let params = agent::attest_agent_request::Params { data: Some(data), params };
    let request = agent::AttestAgentRequest { step: Some(agent::attest_agent_request::Step::Params(params)) };
    let mut client = AgentClient::with_origin(connection, origin());
    let mut answers = client.attest_agent(tokio_stream::once(request)).await?.into_inner();
    let step = answers.message().await?.and_then(|answer| answer.step);
    match step {
        Some(agent::attest_agent_response::Step::Result(result)) => {
            result.svid.ok_or_else(|| Failure::new("BadAnswer", "a result without an SVID"))
        }
        _ => Err(Failure::new("BadAnswer", "the stream ended without a result")),
    }
}

/// Waits until the agent of `connection` is authorised for `count` entries.
/// # Errors
/// If that takes more than a minute.
pub async fn wait_until_authorised(connection: Http2, count: usize) -> anyhow::Result<()> {
    let mut client = EntryClient::with_origin(connection, origin()).max_decoding_message_size(64 << 20);
    let give_up = Instant::now() + PATIENCE;
    loop {
        let request = entry::GetAuthorizedEntriesRequest { output_mask: Some(types::EntryMask::default()) };
        let known = client.get_authorized_entries(request).await.map_err(Failure::from);
        let known = known.context("cannot ask for authorised entries")?.into_inner().entries.len();
        if known >= count {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(anyhow!("the server lets our agent have {known} of {count} entries after a minute"));
        }
        sleep(POLL).await;
    }
}
