//! X.509 authorities change with many agents connected: until every workload has the next one in its bundle, and until
//! every SVID of a tainted one is replaced.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use svid_core::x509::ParsedCert;
use svid_core::x509::cert::split_der_chain;
use svid_proto::spire::api::server::localauthority::v1 as local;
use svid_proto::workload::X509svidResponse;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use local::local_authority_client::LocalAuthorityClient;

use crate::cli::Common;
use crate::ground::{Ground, Program};
use crate::process::{Meter, own_cpu_seconds, round};
use crate::report::Report;
use crate::site::{Site, own_selector};
use crate::stats::{Failure, Latency, Outcome};

const AGENTS: usize = 200;
/// Entries of each agent.
const ENTRIES: usize = 5;
/// Agents that start at the same time.
const AT_ONCE: usize = 16;
/// Longer than this nothing may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// An agent that still has an SVID of the revoked authority could not go on. Stock agents look every five seconds.
const BEFORE_REVOKE: Duration = Duration::from_secs(6);

/// A server's X.509 authorities, moved on step by step.
pub(super) struct Authorities(LocalAuthorityClient<Channel>);

impl Authorities {
    pub(super) fn of(site: &Site) -> Self {
        Self(LocalAuthorityClient::new(site.channel()))
    }

    pub(super) async fn prepare(&mut self) -> Result<String, Failure> {
        let answer = self.0.prepare_x509_authority(local::PrepareX509AuthorityRequest {}).await?;
        Ok(answer.into_inner().prepared_authority.map(|one| one.authority_id).unwrap_or_default())
    }

    /// The authority `id` signs from now on; the one before is told.
    pub(super) async fn activate(&mut self, id: &str) -> Result<String, Failure> {
        let states = self.0.get_x509_authority_state(local::GetX509AuthorityStateRequest {}).await?;
        let old = states.into_inner().active.map(|one| one.authority_id).unwrap_or_default();
        let request = local::ActivateX509AuthorityRequest { authority_id: id.to_owned() };
        self.0.activate_x509_authority(request).await?;
        Ok(old)
    }

    pub(super) async fn taint(&mut self, id: &str) -> Result<(), Failure> {
        let request = local::TaintX509AuthorityRequest { authority_id: id.to_owned() };
        self.0.taint_x509_authority(request).await?;
        Ok(())
    }

    pub(super) async fn revoke(&mut self, id: &str) -> Result<(), Failure> {
        let request = local::RevokeX509AuthorityRequest { authority_id: id.to_owned() };
        self.0.revoke_x509_authority(request).await?;
        Ok(())
    }
}

/// The subject key ids of a bundle's roots, in hex.
pub(super) fn roots(bundle: &[u8]) -> Vec<String> {
    let ders = split_der_chain(bundle).unwrap_or_default();
    ders.iter().filter_map(|der| ParsedCert::from_der(der).ok()?.subject_key_id_hex()).collect()
}

/// What a workload was told, and when.
struct Told {
    agent: usize,
    at: Instant,
    roots: Vec<String>,
    /// Who signed its SVIDs.
    signers: Vec<String>,
}

impl Told {
    fn of(agent: usize, answer: &X509svidResponse) -> Self {
        let at = Instant::now();
        let roots = answer.svids.first().map(|svid| roots(&svid.bundle)).unwrap_or_default();
        let signer = |chain: &[u8]| {
            let leaf = split_der_chain(chain).ok()?.into_iter().next()?;
            ParsedCert::from_der(&leaf).ok()?.authority_key_id_hex()
        };
        let signers = answer.svids.iter().map(|svid| signer(&svid.x509_svid).unwrap_or_default()).collect();
        Self { agent, at, roots, signers }
    }
}

/// Agents with a workload each.
struct Field {
    told: mpsc::UnboundedReceiver<Told>,
    /// The newest of each.
    last: HashMap<usize, Told>,
    pids: Vec<u32>,
    _streams: JoinSet<()>,
    _agents: Vec<Program>,
}

impl Field {
    async fn start(
        ground: &Ground,
        site: &Site,
        agent_bin: &Path,
        agents: usize,
        entries: usize,
    ) -> Result<Self> {
        let tokens = site.tokens(agents).await?;
        for (number, token) in tokens.iter().enumerate() {
            let parent = site.agent_of(token);
            let entry = |n| site.entry(&format!("/{number}/{n}"), &parent, vec![own_selector()]);
            site.create((0..entries).map(entry).collect()).await?;
        }
        let (send, told) = mpsc::unbounded_channel();
        let (mut programs, mut streams, mut last) = (Vec::new(), JoinSet::new(), HashMap::new());
        for (chunk, some) in tokens.chunks(AT_ONCE).enumerate() {
            let begin = chunk * AT_ONCE;
            let mut started = some
                .iter()
                .enumerate()
                .map(|(at, token)| ground.agent(agent_bin, &format!("agent-{}", begin + at), token))
                .collect::<Result<Vec<_>>>()?;
            for (at, program) in started.iter_mut().enumerate() {
                let agent = begin + at;
                let (mut stream, first) = ground.first_svid(program, &format!("agent-{agent}")).await?;
                last.insert(agent, Told::of(agent, &first));
                let send = send.clone();
                streams.spawn(async move {
                    while let Ok(answer) = stream.next().await {
                        if send.send(Told::of(agent, &answer)).is_err() {
                            return;
                        }
                    }
                });
            }
            programs.append(&mut started);
        }
        let pids = programs.iter().map(Program::pid).collect();
        let mut field = Self { told, last, pids, _streams: streams, _agents: programs };
        field.all(Instant::now(), |told| told.signers.len() == entries).await?;
        Ok(field)
    }

    /// Waits until all workloads are as wanted. How long after `from` each was.
    async fn all(&mut self, from: Instant, wanted: impl Fn(&Told) -> bool) -> Result<Vec<Duration>> {
        let mut met: HashMap<usize, Instant> =
            self.last.values().filter(|told| wanted(told)).map(|told| (told.agent, told.at)).collect();
        let end = from + PATIENCE;
        while met.len() < self.last.len() {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(Some(told)) = timeout(left, self.told.recv()).await else {
                bail!(
                    "{} of {} workloads are not there after {} s",
                    self.last.len() - met.len(),
                    self.last.len(),
                    PATIENCE.as_secs()
                );
            };
            if wanted(&told) {
                met.entry(told.agent).or_insert(told.at);
            }
            self.last.insert(told.agent, told);
        }
        Ok(met.into_values().map(|at| at.saturating_duration_since(from)).collect())
    }
}

pub(super) async fn run(
    common: &Common,
    server_bin: &Path,
    agent_bin: &Path,
    rounds: usize,
) -> Result<Report> {
    let (agents, entries) = (common.agents.unwrap_or(AGENTS), common.entries.unwrap_or(ENTRIES));
    let ground = Ground::new("example.org")?;
    let (server, site) = ground.server(server_bin, "", "").await?;
    let mut field = Field::start(&ground, &site, agent_bin, agents, entries).await?;
    let mut authorities = Authorities::of(&site);
    let meter = Meter::of_process(server.pid())?;
    let meters = field.pids.iter().map(|pid| Meter::of_process(*pid)).collect::<Result<Vec<_>>>()?;
    let (own, began) = (own_cpu_seconds(), Instant::now());
    let (mut public, mut replaced) = (Steps::default(), Steps::default());
    for _ in 0..rounds {
        let next = authorities.prepare().await.context("prepare")?;
        public.add(field.all(Instant::now(), |told| told.roots.contains(&next)).await.context("prepared")?);
        let old = authorities.activate(&next).await.context("activate")?;
        authorities.taint(&old).await.context("taint")?;
        let wanted = |told: &Told| told.signers.len() == entries && told.signers.iter().all(|id| *id == next);
        replaced.add(field.all(Instant::now(), wanted).await.context("tainted")?);
        sleep(BEFORE_REVOKE).await;
        authorities.revoke(&old).await.context("revoke")?;
        field.all(Instant::now(), |told| !told.roots.contains(&old)).await.context("revoked")?;
    }
    let mut outcome = Outcome { wall: began.elapsed(), ..Outcome::default() };
    replaced.each.iter().for_each(|took| outcome.add(*took, Ok(entries as u64)));
    let units = outcome.units;
    let mut report = Report::of("authorities", "SVIDs replaced", agents, outcome);
    report.client_cpu_seconds = round(own_cpu_seconds() - own, 100.0);
    report.process = Some(meter.finish(units)?);
    let cpu = meters.iter().map(|meter| meter.finish(units)).collect::<Result<Vec<_>>>()?;
    let cpu: f64 = cpu.iter().map(|usage| usage.cpu_seconds).sum();
    report.notes.push(format!("{agents} agents, {entries} entries and a workload each; {rounds} rounds"));
    report.notes.push(public.line("prepared: until it is in a workload's bundle"));
    report.notes.push(replaced.line("tainted: until all of a workload's SVIDs are of the next one"));
    report.notes.push(format!("CPU of all agents: {cpu:.2} s"));
    Ok(report)
}

/// How long one step took, by workload and by round.
#[derive(Default)]
struct Steps {
    each: Vec<Duration>,
    last: Vec<Duration>,
}

impl Steps {
    fn add(&mut self, took: Vec<Duration>) {
        self.last.extend(took.iter().max().copied());
        self.each.extend(took);
    }

    fn line(&self, what: &str) -> String {
        let text = |all: &[Duration]| {
            Latency::of(all.to_vec()).map_or("-".to_owned(), |Latency { p50, p99, max, .. }| {
                format!("p50 {p50}, p99 {p99}, max {max} ms")
            })
        };
        format!("{what}: {}; the last workload of a round: {}", text(&self.each), text(&self.last))
    }
}
