//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

use crate::envoy::EnvoyCommand;

/// Where SPIRE's server puts its admin socket.
const SERVER_SOCKET: &str = "/tmp/spire-server/private/api.sock";
/// Where SPIRE's agent puts its Workload API socket.
const AGENT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
/// Where SPIRE's agent puts its admin socket, if it has one.
const AGENT_ADMIN_SOCKET: &str = "/tmp/spire-agent/private/admin.sock";

const JSON_HELP: &str = "\
With --output json every command writes one JSON object and a line feed; `svid watch` writes one per update.
Times are seconds since 1970 (0: unknown), *_s are seconds, names do not change between releases, new ones may join.
  status       {server, agent, warnings[], notes[]}; server and agent are null where they do not answer
  entry list   {entries[]} in the form of `svid-server entry show -output json`
  entry show   {entry}
  agent list   {agents[]}: id, attestation_type, serial, expires_at, remaining_s, state, can_reattest, version
  ca show      {trust_domain, server_id, key_manager, upstream_authority, x509_authorities[], jwt_authorities[],
               x509_bundle[], jwt_bundle[], servers[], warnings[]}; each authority has its chain[] from the root
  agent show   {agent, selectors[], entries[], computed_by}; each entry has admin and downstream
  federation list    {relationships[]}: trust_domain, source, url, profile, last_error, next_refresh_at, bundle
  federation show    {relationship}
  federation refresh {outcome, error, relationship}, and so does federation add
  backup       {file, size, trust_domain, taken_at, server_id, server_version, epoch, seq, bundles, relationships,
               journals, agents, entries}
  restore      {backup, database, tables[], comes_back[], lost[], stays[], authorities[], next_start, notes[],
               refusals[], accepted, restored}
  svid fetch   {svids[], federated_trust_domains[]}: spiffe_id, hint, chain[], bundle[]
  svid show    {items[]}: kind (certificate, certificate_request, private_key, jwt) and its facts
  svid watch   {at, svids[], federated_trust_domains[], changes[]}

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Looks into a SPIFFE trust domain: this project's server and agent, and SPIRE's.
#[derive(Debug, Parser)]
#[command(name = "svidctl", version, after_long_help = JSON_HELP, max_term_width = 100)]
pub struct Args {
    /// Admin socket of the server
    #[arg(long, global = true, value_name = "PATH", env = "SPIRE_SERVER_PRIVATE_SOCKET",
          default_value = SERVER_SOCKET)]
    pub server_socket: PathBuf,
    /// Workload API socket of the agent; SPIFFE_ENDPOINT_SOCKET counts as well
    #[arg(long, global = true, value_name = "PATH", env = "SPIRE_AGENT_PUBLIC_SOCKET")]
    pub agent_socket: Option<PathBuf>,
    /// Admin socket of the agent
    #[arg(long, global = true, value_name = "PATH", env = "SVID_AGENT_ADMIN_SOCKET",
          default_value = AGENT_ADMIN_SOCKET)]
    pub agent_admin_socket: PathBuf,
    /// How to print
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// The Workload API socket: flag, SPIRE's variable, the standard's variable, SPIRE's default.
    pub fn workload_socket(&self) -> PathBuf {
        let standard =
            || std::env::var("SPIFFE_ENDPOINT_SOCKET").ok().filter(|text| text.starts_with("unix:"));
        let path = self.agent_socket.clone().or_else(|| standard().map(PathBuf::from));
        without_scheme(&path.unwrap_or_else(|| AGENT_SOCKET.into()))
    }
}

/// `unix:///path` and `unix:/path` are paths too.
fn without_scheme(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    match text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
        Some(rest) => PathBuf::from(rest),
        None => path.to_owned(),
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables for people
    Table,
    /// JSON for programs
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One screen: authorities and their remaining life, agents, entries, what needs attention
    Status,
    /// Registration entries
    #[command(subcommand)]
    Entry(EntryCommand),
    /// Attested agents
    #[command(subcommand)]
    Agent(AgentCommand),
    /// The trust domain's authorities
    #[command(subcommand)]
    Ca(CaCommand),
    /// Other trust domains whose bundles are followed
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Writes the server's whole state, as of this moment, into a file: everything but private keys and join tokens
    Backup(BackupArgs),
    /// Puts a backup into the database of a server that is stopped; tells first what would come of it
    Restore(RestoreArgs),
    /// What the agent's socket gives this process, and what a file holds
    #[command(subcommand)]
    Svid(SvidCommand),
    /// Configurations for Envoy that live off the agent's socket
    #[command(subcommand)]
    Envoy(EnvoyCommand),
}

/// Registration entries.
#[derive(Debug, Subcommand)]
pub enum EntryCommand {
    /// Every entry
    List,
    /// One entry
    Show {
        /// The entry's id
        id: String,
    },
}

/// Attested agents.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Every agent
    List,
    /// One agent, and what it can obtain
    Show {
        /// The agent's SPIFFE ID
        id: String,
    },
}

/// The trust domain's authorities.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// From the root to what signs: remaining life, slots, where each key lives, what is tainted
    Show,
}

/// Other trust domains.
#[derive(Debug, Subcommand)]
pub enum FederationCommand {
    /// Whom the server follows: age of the last good bundle, last error, next refresh
    List,
    /// One of them
    Show {
        /// The trust domain
        trust_domain: String,
    },
    /// Follows another trust domain, and fetches its bundle at once
    Add(FederationAdd),
    /// Fetches a bundle now
    Refresh {
        /// The trust domain
        trust_domain: String,
        /// Take the bundle even if it is older than the last one, as after the partner restored a copy
        #[arg(long)]
        accept_older: bool,
    },
}

/// Another trust domain to follow.
#[derive(Debug, clap::Args)]
pub struct FederationAdd {
    /// The trust domain
    pub trust_domain: String,
    /// Its bundle endpoint
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// How the endpoint proves itself: a certificate of a public CA, or an SVID
    #[arg(long, value_enum)]
    pub profile: Profile,
    /// With https_spiffe: the endpoint's SPIFFE ID [default: /spire/server of the trust domain]
    #[arg(long, value_name = "SPIFFE-ID")]
    pub endpoint_spiffe_id: Option<String>,
    /// A first bundle: a SPIFFE bundle document, or roots in PEM. https_spiffe needs one
    #[arg(long, value_name = "FILE")]
    pub bundle: Option<PathBuf>,
}

/// How an endpoint proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// With a certificate of a public CA
    #[value(name = "https_web")]
    HttpsWeb,
    /// With an SVID
    #[value(name = "https_spiffe")]
    HttpsSpiffe,
}

/// SVIDs.
#[derive(Debug, Subcommand)]
pub enum SvidCommand {
    /// Asks the socket once
    Fetch,
    /// Reads a file: certificates, requests, keys (never printed), JWTs (never verified)
    Show {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Prints each update of the socket until Ctrl-C
    Watch,
}

/// Where a backup goes.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// The file, or - for standard output
    pub file: PathBuf,
}

/// What is restored, and how.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Configuration of the server whose database and data_dir it is
    #[arg(long, value_name = "PATH")]
    pub config: PathBuf,
    /// Expand environment variables in the configuration
    #[arg(long)]
    pub expand_env: bool,
    /// Do everything but write: read the backup, compare it with the database, tell what would happen
    #[arg(long)]
    pub rehearse: bool,
    /// Restore although what was deleted or revoked after the backup may come back, and newer changes get lost
    #[arg(long)]
    pub accept_rollback: bool,
    /// Restore although this server has no key of the trust domain and has to make a new CA
    #[arg(long)]
    pub accept_new_ca: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// The backup
    pub file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn sockets_may_be_uris() {
        for (given, path) in [
            ("/run/a.sock", "/run/a.sock"),
            ("unix:///run/a.sock", "/run/a.sock"),
            ("unix:/run/a.sock", "/run/a.sock"),
        ] {
            assert_eq!(without_scheme(Path::new(given)), Path::new(path), "{given}");
        }
    }

    #[test]
    fn usage_errors_end_with_two() {
        for line in ["svidctl", "svidctl nope", "svidctl entry show", "svidctl status --output xml"] {
            let error = Args::try_parse_from(line.split(' ')).map(|_| ()).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
