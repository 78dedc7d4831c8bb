//! Simulated agents, thousands in one process. They speak SPIRE's API, and our stream of changes where asked to.

mod agent;
mod board;
mod calls;
mod make;
mod step;
mod store;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use svid_core::id::SpiffeId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use board::{Board, Phase, Sighting};
pub use calls::AGENT_MASK;
pub use make::{group, make};
pub use store::AgentSvid;

use agent::SimAgent;
use store::Stored;

use crate::cli::{Common, Protocol};
use crate::site::Site;

/// Files besides the agents' connections.
const OTHER_FILES: u64 = 100;

/// What setting a fleet up may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How agents behave.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// How they synchronise.
    pub protocol: Protocol,
    /// How often those that poll do.
    pub every: Duration,
    /// They ask for X.509-SVIDs of all their entries.
    pub svids: bool,
    /// Connections that are set up at the same time; `None`: as many as there are agents.
    pub handshakes: Option<usize>,
}

/// What all agents of a run share.
pub struct World {
    site: Site,
    servers: Vec<SocketAddr>,
    options: Behaviour,
    stored: Stored,
    handshakes: Option<Semaphore>,
    board: Board,
}

/// Agents at work; they end with it.
pub struct Fleet {
    world: Arc<World>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Reads the agents in `dir` and starts them all.
    /// # Errors
    /// If there is no fleet, or this process may not open enough connections.
    pub async fn start(common: &Common, site: &Site, dir: &Path, options: Behaviour) -> Result<Self> {
        let stored = Stored::open(dir)?;
        let count = common.agents.unwrap_or(stored.header().agents);
        if count == 0 || count > stored.header().agents {
            bail!("the fleet in {} has {} agents", dir.display(), stored.header().agents);
        }
        allow_files(count as u64 + OTHER_FILES)?;
        let mut servers = Vec::with_capacity(common.server.len());
        for server in &common.server {
            let address =
                tokio::net::lookup_host(server).await.with_context(|| format!("--server {server}"))?;
            servers.extend(address.take(1));
        }
        if servers.len() != common.server.len() {
            bail!("a name in --server has no address");
        }
        let handshakes = options.handshakes.map(Semaphore::new);
        let site = site.tagged(&stored.header().tag);
        let world = Arc::new(World { site, servers, options, stored, handshakes, board: Board::new(count) });
        // All are read before the first starts: reading is not what is measured.
        let agents = (0..count).map(|number| SimAgent::load(&world, number)).collect::<Result<Vec<_>>>()?;
        let mut tasks = JoinSet::new();
        world.board.begin(None);
        for agent in agents {
            tasks.spawn(agent.run());
        }
        Ok(Self { world, tasks })
    }

    /// Waits until all agents are synced, so that a measure can begin.
    /// # Errors
    /// If that takes minutes: what went wrong first.
    pub async fn ready(&self) -> Result<()> {
        if self.board().all_synced(PATIENCE).await {
            return Ok(());
        }
        let Phase { syncs, left, .. } = self.board().end();
        let first = syncs.errors.into_iter().next();
        let first =
            first.map_or("nothing failed".to_owned(), |(code, errors)| format!("{code}: {}", errors.first));
        bail!("{left} of {} agents are not synced after {} s; {first}", self.len(), PATIENCE.as_secs())
    }

    /// What the agents report.
    pub fn board(&self) -> &Board {
        &self.world.board
    }

    /// The site, with the fleet's tag.
    pub fn site(&self) -> &Site {
        &self.world.site
    }

    /// An agent's SPIFFE ID.
    /// # Errors
    /// If its SVID cannot be read.
    pub fn agent_id(&self, number: usize) -> Result<SpiffeId> {
        self.world.stored.load(number)?.id()
    }

    /// How many agents.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }
}

/// Raises the limit of open files as far as it may go.
fn allow_files(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < wanted && hard >= wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    } else if soft < wanted {
        bail!(
            "{wanted} open files are needed and {hard} allowed; raise `ulimit -n`, or ask for fewer --agents"
        );
    }
    Ok(())
}
