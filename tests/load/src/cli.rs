//! The command line. Every option is known to every measure, so that one set of options serves a whole session.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "svid-load",
    version,
    args_override_self = true,
    about = "Measures a SPIRE-compatible server or agent through SPIRE's public APIs",
    after_help = "Start the server with `ratelimit { attestation = false signing = false }`, or its limits are \
                  measured. CPU-seconds are those of the process behind the socket, unless --pid names another."
)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub measure: Measure,
    /// Where, how much, how long.
    #[command(flatten)]
    pub common: Common,
}

/// Options of all measures.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The server's TCP port; several with commas between them, for agents that know several servers
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:8081",
        value_delimiter = ','
    )]
    pub server: Vec<String>,
    /// The server's admin socket; several in the order of --server
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/tmp/spire-server/private/api.sock",
        value_delimiter = ','
    )]
    pub admin_socket: Vec<PathBuf>,
    /// The Workload API socket
    #[arg(long, global = true, value_name = "PATH", default_value = "/tmp/spire-agent/public/api.sock")]
    pub agent_socket: PathBuf,
    /// SPIFFE ID of the agent behind --agent-socket; needed when the server knows several agents
    #[arg(long, global = true, value_name = "SPIFFE-ID")]
    pub agent_id: Option<String>,
    /// The processes whose CPU and memory are told; otherwise those that listen on the sockets
    #[arg(long, global = true, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Agents to attest [default: attest 4000, sync 200, fleet 1000], or of a fleet to use [default: all]
    #[arg(long, global = true)]
    pub agents: Option<usize>,
    /// Entries: to create (entries: 50000), per agent (sync: 50, fleet: 19), beside (propagate, spread: 0)
    #[arg(long, global = true)]
    pub entries: Option<usize>,
    /// How long to measure
    #[arg(long, global = true, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Calls at the same time [default: attest 4, entries 1, sync 2, sign 2, jwt 16, fetch 50, fleet 16]
    #[arg(long, global = true, value_parser = at_least_one)]
    pub callers: Option<usize>,
    /// Threads of this program
    #[arg(long, global = true, default_value_t = 1, value_parser = at_least_one)]
    pub threads: usize,
    /// How to print the result
    #[arg(long, global = true, value_enum, default_value = "table")]
    pub output: Output,
}

impl Common {
    /// The first server's TCP port.
    pub fn server(&self) -> &str {
        self.server.first().map_or("", String::as_str)
    }

    /// The first server's admin socket.
    pub fn admin_socket(&self) -> &Path {
        self.admin_socket.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// How long to measure.
    pub fn limit(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One object, whose names stay.
    Json,
}

/// How simulated agents synchronise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// SyncAuthorizedEntries and GetBundle, as stock agents do.
    Sync,
    /// GetAuthorizedEntries and GetBundle, as stock agents do when told to.
    Get,
    /// Our stream of changes.
    Watch,
}

/// A fleet at work.
#[derive(Debug, Clone, Args)]
pub struct FleetArgs {
    /// Where `svid-load fleet` left the agents
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How the agents synchronise
    #[arg(long, value_enum, default_value = "sync")]
    pub protocol: Protocol,
    /// Seconds between two polls of an agent, give or take a tenth
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub every: f64,
    /// The agents ask for X.509-SVIDs of all their entries, too
    #[arg(long)]
    pub svids: bool,
    /// Connections that are set up at the same time [default: storm, takeover: all; else 64]
    #[arg(long, value_parser = at_least_one)]
    pub handshakes: Option<usize>,
}

/// Which binaries are run.
#[derive(Debug, Clone, Args)]
pub struct Daemons {
    /// The server's binary: svid-server or spire-server
    #[arg(long, value_name = "PATH")]
    pub server_bin: PathBuf,
    /// The agent's binary: svid-agent or spire-agent
    #[arg(long, value_name = "PATH")]
    pub agent_bin: PathBuf,
}

/// What is measured.
#[derive(Debug, Clone, Subcommand)]
pub enum Measure {
    /// AttestAgent with join tokens, a new TLS connection each
    Attest,
    /// BatchCreateEntry, 500 entries a call, through the admin socket
    Entries,
    /// SyncAuthorizedEntries and GetBundle, as stock agents do it
    Sync {
        /// Seconds between two syncs of an agent; 0: no pauses, --callers agents at a time
        #[arg(long, default_value_t = 0.0, value_parser = pace)]
        pace: f64,
        /// Entries of nobody, created beforehand
        #[arg(long, default_value_t = 0)]
        others: usize,
    },
    /// BatchNewX509SVID, 500 CSRs a call, a connection for each caller
    Sign {
        /// Measure issuance inside this process instead, without any server
        #[arg(long)]
        in_process: bool,
    },
    /// NewJWTSVID
    Jwt {
        /// TLS connections that the callers share
        #[arg(long, default_value_t = 2, value_parser = at_least_one)]
        connections: usize,
    },
    /// Workload API: connect, be attested, get the first X.509-SVID
    Fetch {
        /// Fetches offered a second, late or not; without it each caller starts when it has ended the last
        #[arg(long, value_parser = rate)]
        rate: Option<f64>,
    },
    /// From an entry's creation to its SVID in a workload's open stream
    Propagate {
        /// Entries created one after the other, unless --seconds end first
        #[arg(long, default_value_t = 100)]
        rounds: usize,
    },
    /// Attest agents and keep them in a directory, for the measures below. Their entries stay, too
    Fleet {
        /// A directory that does not exist
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// A fleet connects at once: until all agents are synced, or --seconds end
    Storm {
        #[command(flatten)]
        fleet: FleetArgs,
    },
    /// A fleet at work for --seconds
    Poll {
        #[command(flatten)]
        fleet: FleetArgs,
    },
    /// From an entry's creation on the first server to all agents, on all servers
    Spread {
        #[command(flatten)]
        fleet: FleetArgs,
        /// Entries created one after the other
        #[arg(long, default_value_t = 20, value_parser = at_least_one)]
        rounds: usize,
        /// Each entry is one agent's, in turn, instead of all agents'
        #[arg(long)]
        each: bool,
    },
    /// A server is killed: until its agents are synced at another, or --seconds end
    Takeover {
        #[command(flatten)]
        fleet: FleetArgs,
        /// Which one, counted from 1 in the order of --server and --admin-socket
        #[arg(long, default_value_t = 2, value_parser = at_least_one)]
        victim: usize,
    },
    /// Issuance with an upstream authority on disk and self-signed, in turn: servers of its own, --seconds each
    Upstream {
        /// The server's binary: svid-server or spire-server
        #[arg(long, value_name = "PATH")]
        server_bin: PathBuf,
        /// How often each is measured
        #[arg(long, default_value_t = 10, value_parser = at_least_one)]
        pairs: usize,
    },
    /// Issuance with other trust domains followed and without, in turn: servers of its own, --seconds each
    Federated {
        /// The server's binary: svid-server or spire-server
        #[arg(long, value_name = "PATH")]
        server_bin: PathBuf,
        /// How often each is measured
        #[arg(long, default_value_t = 10, value_parser = at_least_one)]
        pairs: usize,
        /// Trust domains that are followed; their bundle endpoints are in this process
        #[arg(long, default_value_t = 100, value_parser = at_least_one)]
        partners: usize,
        /// How many of them do not answer
        #[arg(long, default_value_t = 10)]
        dead: usize,
    },
    /// X.509 authorities are prepared, activated and tainted under a server and --agents agents of its own (200),
    /// each with a workload and --entries entries (5)
    Authorities {
        #[command(flatten)]
        daemons: Daemons,
        /// How often
        #[arg(long, default_value_t = 10, value_parser = at_least_one)]
        rounds: usize,
    },
    /// From `federation refresh` to a workload, after another trust domain prepared an authority: servers of its own
    Foreign {
        #[command(flatten)]
        daemons: Daemons,
        /// How often
        #[arg(long, default_value_t = 20, value_parser = at_least_one)]
        rounds: usize,
    },
    /// From an empty directory to the first X.509-SVID in a workload
    Start {
        /// The server's binary: svid-server or spire-server
        #[arg(long, value_name = "PATH")]
        server_bin: PathBuf,
        /// The agent's binary: svid-agent or spire-agent
        #[arg(long, value_name = "PATH")]
        agent_bin: PathBuf,
        /// How often
        #[arg(long, default_value_t = 5, value_parser = at_least_one)]
        repeat: usize,
    },
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|n| n.is_finite()).ok_or_else(|| "not a number".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    match number(text)? {
        n if n > 0.0 && n <= 86_400.0 => Ok(n),
        _ => Err("must be more than 0 and at most 86400".to_owned()),
    }
}

fn pace(text: &str) -> Result<f64, String> {
    if text == "0" { Ok(0.0) } else { seconds(text) }
}

fn rate(text: &str) -> Result<f64, String> {
    match number(text)? {
        n if n > 0.0 && n <= 1e6 => Ok(n),
        _ => Err("must be more than 0 and at most 1000000".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=100_000) => Ok(n),
        _ => Err("must be 1 to 100000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_parser_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_behind_the_measure() {
        let line = "svid-load fetch --agent-socket /a --rate 1000 --callers 50 --seconds 2.5 --output json";
        let cli = parse(line).expect("valid");
        assert!(matches!(cli.measure, Measure::Fetch { rate: Some(rate) } if rate == 1000.0));
        assert_eq!(cli.common.callers, Some(50));
        assert_eq!(cli.common.output, Output::Json);
        assert_eq!(cli.common.limit(), Duration::from_millis(2500));
    }

    #[test]
    fn the_last_of_equal_options_counts() {
        let cli = parse("svid-load jwt --seconds 3 --seconds 20").expect("valid");
        assert_eq!(cli.common.seconds, 20.0);
    }

    #[test]
    fn servers_stand_between_commas() {
        let line =
            "svid-load spread --dir /d --protocol watch --server a:1,b:2 --admin-socket /a,/b --pid 1,2";
        let cli = parse(line).expect("valid");
        assert_eq!((cli.common.server(), cli.common.server.len()), ("a:1", 2));
        assert_eq!(cli.common.admin_socket(), Path::new("/a"));
        assert_eq!((cli.common.admin_socket.len(), cli.common.pid), (2, vec![1, 2]));
    }

    #[test]
    fn refusals() {
        for line in [
            "svid-load",
            "svid-load attest --seconds 0",
            "svid-load attest --seconds NaN",
            "svid-load jwt --callers 0",
            "svid-load fetch --rate -1",
            "svid-load start",
            "svid-load jwt --output yaml",
            "svid-load storm",
            "svid-load upstream",
            "svid-load authorities --server-bin /s",
            "svid-load storm --dir /d --every 0",
            "svid-load fleet --protocol sync",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
