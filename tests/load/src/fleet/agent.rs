//! One simulated agent: a task, a key, a connection. It does what agents do: connects, synchronises, renews itself and
//! its workloads' SVIDs, and turns to another server when one fails.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use svid_proto::spire::api::server::agent::v1 as wire;
use svid_proto::svid::sync::v1::sync_client::SyncClient;
use svid_proto::svid::sync::v1::{Position, WatchRequest};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use wire::agent_client::AgentClient;

use super::World;
use super::calls::{self, Held};
use super::step::Step;
use super::store::AgentSvid;
use crate::cli::Protocol;
use crate::conn::{Http2, origin};
use crate::site::AgentKey;
use crate::stats::Failure;

/// Longest time for one operation, as in stock agents.
const OPERATION: Duration = Duration::from_secs(30);
/// Pauses after all servers failed: the first, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How often an agent that watches asks for the whole list all the same, as svid-agent does.
const RECONCILE: Duration = Duration::from_secs(60);

/// A simulated agent.
pub struct SimAgent {
    world: Arc<World>,
    number: usize,
    svid: AgentSvid,
    tls: Arc<rustls::ClientConfig>,
    renew_at: SystemTime,
    /// One CSR for all its workloads: what a server does with it is the same.
    csr: Vec<u8>,
    held: Held,
    position: Option<Position>,
    server: usize,
    /// This connection was of use.
    served: bool,
    said_version: bool,
    random: u64,
}

/// Why an agent needs another connection.
enum End {
    /// It has a new certificate.
    Renewed,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A source address for each agent where the server is on this machine: servers limit what comes from one address,
/// and real agents have one each.
fn source(server: IpAddr, number: usize) -> Option<IpAddr> {
    let number = u32::try_from(number).ok()?;
    let is_v4_loopback = server.is_ipv4() && server.is_loopback();
    is_v4_loopback.then(|| Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + number).into())
}

/// `work`, which may not take longer than an operation of an agent.
async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Err(Failure::new("NoAnswer", format!("no answer within {} s", OPERATION.as_secs())));
    timeout(OPERATION, work).await.unwrap_or_else(late)
}

fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs().try_into().unwrap_or(i64::MAX)
}

impl SimAgent {
    /// The agent `number` of the stored fleet.
    /// # Errors
    /// If its SVID cannot be read.
    pub fn load(world: &Arc<World>, number: usize) -> Result<Self> {
        let svid = world.stored.load(number)?;
        let mut agent = Self {
            tls: world.site.tls(Some(&svid.identity()?))?,
            renew_at: SystemTime::UNIX_EPOCH,
            csr: if world.options.svids { AgentKey::generate()?.csr } else { Vec::new() },
            held: Held::default(),
            position: None,
            server: number % world.servers.len(),
            served: false,
            said_version: false,
            random: (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            world: world.clone(),
            number,
            svid,
        };
        agent.plan_renewal()?;
        Ok(agent)
    }

    /// In 0..1; the same in each run.
    fn draw(&mut self) -> f64 {
        for shift in [13, 7, 17] {
            self.random ^= if shift == 7 { self.random >> shift } else { self.random << shift };
        }
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Serves until its task is aborted.
    pub async fn run(mut self) {
        let (mut failed, mut pause) = (0, PAUSE);
        loop {
            self.served = false;
            let (failure, is_closed) = match self.connect().await {
                Ok(http) => match self.serve(&http).await {
                    End::Renewed => continue,
                    End::Failed(failure) => {
                        tokio::task::yield_now().await; // to the connection's task, which may know more
                        (failure, http.is_closed())
                    }
                },
                Err(failure) => (failure, false),
            };
            if self.served {
                (failed, pause) = (0, PAUSE);
            }
            if self.served && is_closed {
                self.world.board.lost();
                continue; // connections end; the same server is tried first
            }
            self.world.board.failed(failure);
            self.server = (self.server + 1) % self.world.servers.len();
            failed += 1;
            if failed % self.world.servers.len() == 0 {
                sleep(pause.mul_f64(0.5 + self.draw())).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }

    async fn connect(&self) -> Result<Http2, Failure> {
        let world = &self.world;
        let _turn = match &world.handshakes {
            Some(turns) => Some(turns.acquire().await.map_err(|error| Failure::new("Closed", error))?),
            None => None,
        };
        let server = world.servers[self.server];
        let source = source(server.ip(), self.number);
        in_time(Http2::tls_from(source, server, self.tls.clone())).await
    }

    async fn serve(&mut self, http: &Http2) -> End {
        if !self.said_version {
            let mut client = AgentClient::with_origin(http.clone(), origin());
            let status = wire::PostStatusRequest { agent_version: "1.15.0".into(), current_bundle_serial: 0 };
            // A server without this call, or that cannot write just now, serves agents all the same.
            self.said_version = in_time(async { Ok(client.post_status(status).await?) }).await.is_ok();
        }
        let served = match self.world.options.protocol {
            Protocol::Watch => self.watch(http).await,
            Protocol::Sync | Protocol::Get => self.poll(http).await,
        };
        match served {
            Err(end) => end,
            Ok(()) => End::Failed(Failure::new("BadAnswer", "the stream of changes ended")),
        }
    }

    /// Polls, until something fails.
    async fn poll(&mut self, http: &Http2) -> Result<(), End> {
        let every = self.world.options.every;
        self.pass(http).await?;
        // From here on at its own moments, whenever it came.
        let mut next = Instant::now() + every.mul_f64(self.draw());
        loop {
            sleep_until(next).await;
            self.renew_if_due(http).await?;
            next += every.mul_f64(0.9 + 0.2 * self.draw());
            self.pass(http).await?;
            next = next.max(Instant::now());
        }
    }

    /// Follows the stream of changes, until it ends.
    async fn watch(&mut self, http: &Http2) -> Result<(), End> {
        let mut client = SyncClient::with_origin(http.clone(), origin());
        let request = WatchRequest { position: self.position.clone(), page_size: 0 };
        let mut from = Instant::now();
        let answer = in_time(async { Ok(client.watch(request).await?) }).await?;
        let (mut messages, mut step) = (answer.into_inner(), Step::default());
        let mut reconcile = Instant::now() + RECONCILE.mul_f64(0.5 + self.draw());
        loop {
            let message = tokio::select! {
                message = messages.message() => message.map_err(Failure::from)?,
                () = sleep_until(reconcile) => {
                    self.renew_if_due(http).await?;
                    self.pass(http).await?;
                    reconcile = Instant::now() + RECONCILE;
                    continue;
                }
            };
            let Some(message) = message else { return Ok(()) };
            if !step.is_begun() && self.served {
                from = Instant::now();
            }
            if step.add(message) {
                self.apply(http, std::mem::take(&mut step), from).await?;
            }
        }
    }

    async fn apply(&mut self, http: &Http2, step: Step, from: Instant) -> Result<(), Failure> {
        if step.snapshot && step.differs(&self.held) {
            self.pass(http).await?;
        } else {
            let (number, server, board) = (self.number, self.server, &self.world.board);
            step.apply(&mut self.held, |entry| board.saw_entry(number, server, entry));
            if step.changes_bundles() {
                in_time(calls::bundle(http)).await?;
            }
            self.svids(http).await?;
            self.synced(from);
        }
        self.position = step.position;
        Ok(())
    }

    /// Entries, bundle, and SVIDs if wanted: what a stock agent does every five seconds.
    async fn pass(&mut self, http: &Http2) -> Result<(), Failure> {
        let from = Instant::now();
        let (number, server, board) = (self.number, self.server, &self.world.board);
        let (held, told) = (&mut self.held, |entry: &_| board.saw_entry(number, server, entry));
        let (get, expect) =
            (self.world.options.protocol == Protocol::Get, self.world.stored.header().entries);
        in_time(async {
            if get {
                calls::get(http, held, told).await?
            } else {
                calls::sync(http, held, told).await?
            }
            calls::bundle(http).await
        })
        .await?;
        if self.held.len() < expect {
            let text = format!("{} entries instead of {expect}", self.held.len());
            return Err(Failure::new("TooFew", text));
        }
        self.svids(http).await?;
        self.synced(from);
        Ok(())
    }

    fn synced(&mut self, from: Instant) {
        self.served = true;
        self.world.board.synced(self.number, self.server, from.elapsed());
    }

    async fn svids(&mut self, http: &Http2) -> Result<(), Failure> {
        if !self.world.options.svids {
            return Ok(());
        }
        in_time(calls::svids(http, &mut self.held, &self.csr, unix_now())).await
    }

    async fn renew_if_due(&mut self, http: &Http2) -> Result<(), End> {
        if SystemTime::now() < self.renew_at {
            return Ok(());
        }
        let failed = |error: anyhow::Error| Failure::new("Renewal", format!("{error:#}"));
        let key = AgentKey::generate().map_err(failed)?;
        let params = Some(wire::AgentX509svidParams { csr: key.csr.clone() });
        let mut client = AgentClient::with_origin(http.clone(), origin());
        let renewed =
            in_time(async { Ok(client.renew_agent(wire::RenewAgentRequest { params }).await?) }).await?;
        let svid = renewed.into_inner().svid.ok_or_else(|| Failure::new("BadAnswer", "no SVID"))?;
        self.adopt(key.into_svid(svid.cert_chain)).map_err(failed)?;
        Err(End::Renewed)
    }

    fn adopt(&mut self, svid: AgentSvid) -> Result<()> {
        self.world.stored.save(self.number, &svid)?;
        self.tls = self.world.site.tls(Some(&svid.identity()?))?;
        self.svid = svid;
        self.plan_renewal()
    }

    /// Stock agents renew at half of the life, ours early.
    fn plan_renewal(&mut self) -> Result<()> {
        let (life, draw) = (self.svid.life()?, self.draw());
        let early = self.world.options.protocol == Protocol::Watch;
        self.renew_at = if early { life.renew_at(draw) } else { life.half(draw) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_come_from_addresses_of_their_own() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(source(address("127.0.0.1"), 0), Some(address("127.1.0.1")));
        assert_eq!(source(address("127.0.0.1"), 5000), Some(address("127.1.19.137")));
        assert_eq!(source(address("10.0.0.1"), 0), None);
        assert_eq!(source(address("::1"), 0), None);
    }
}
