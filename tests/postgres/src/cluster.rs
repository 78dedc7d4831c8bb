//! A cluster: one PostgreSQL server with its databases.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::process::{Watchdog, command, family, hand_over, program, run, signal};
use crate::{PASSWORD, USER};

/// Longest time that starting or stopping may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What differs from test to test.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Lines for `postgresql.conf`.
    pub config: String,
    /// Certificate and key in PEM: the cluster then speaks TLS.
    pub tls: Option<(String, String)>,
}

/// How a cluster is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended, everything is written (SIGINT).
    Fast,
    /// Nothing is written; the next start recovers (SIGQUIT).
    Immediate,
}

/// Whether a commit waits for a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// It does: what is acknowledged is at both.
    Synchronous,
    /// It does not.
    Asynchronous,
}

/// A PostgreSQL server of this test's own.
pub struct Postgres {
    postmaster: Option<Child>,
    dir: PathBuf,
    name: String,
    /// TCP port at 127.0.0.1; also a part of the socket's name.
    pub port: u16,
    /// After the postmaster, so that it finds nobody left and removes the directory.
    _watchdog: Watchdog,
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub fn start() -> Self {
        Self::start_with(&PostgresOptions::default())
    }

    /// Makes a cluster and starts it.
    pub fn start_with(options: &PostgresOptions) -> Self {
        let mut postgres = Self::prepare("primary");
        let password = postgres.dir.join("password");
        write(&password, PASSWORD);
        run(command(program("initdb"))
            .arg("--pgdata")
            .arg(postgres.data())
            .arg("--pwfile")
            .arg(&password)
            .args([
                "--username",
                USER,
                "--encoding=UTF8",
                "--locale=C",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--no-instructions",
            ]));
        if let Some((cert, key)) = &options.tls {
            write(&postgres.data().join("server.crt"), cert);
            write(&postgres.data().join("server.key"), key);
        }
        let tls = if options.tls.is_some() { "ssl = on" } else { "" };
        postgres
            .configure(&format!("max_connections = 300\nshared_buffers = 64MB\n{tls}\n{}", options.config));
        postgres.start_again();
        postgres
    }

    fn prepare(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = room().join(format!("svid-pg-{}-{count}", std::process::id()));
        fs::create_dir(&dir).expect("a fresh directory");
        hand_over(&dir);
        Self {
            postmaster: None,
            port: free_port(),
            name: name.to_owned(),
            _watchdog: Watchdog::over(&dir),
            dir,
        }
    }

    fn configure(&self, lines: &str) {
        let own = format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\ncluster_name = '{}'\n{lines}\n",
            self.port,
            self.dir.display(),
            self.name,
        );
        let path = self.data().join("postgresql.conf");
        let old = fs::read_to_string(&path).unwrap_or_default();
        write(&path, &format!("{old}\n{own}"));
    }

    /// Starts a cluster that is stopped, and waits until it takes connections.
    pub fn start_again(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut postmaster = self.launch();
            while postmaster.try_wait().expect("wait").is_none() {
                if self.accepts() {
                    self.postmaster = Some(postmaster);
                    return;
                }
                assert!(Instant::now() < deadline, "PostgreSQL does not start:\n{}", self.log());
                pause();
            }
            // Sessions of a killed postmaster still hold its shared memory for a moment.
            assert!(Instant::now() < deadline, "PostgreSQL ended at once:\n{}", self.log());
            pause();
        }
    }

    fn launch(&self) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let errors = log.try_clone().expect("a log file");
        let mut postmaster = command(program("postgres"));
        postmaster.arg("-D").arg(self.data()).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
        postmaster.spawn().expect("start PostgreSQL")
    }

    fn accepts(&self) -> bool {
        let mut ready = command(program("pg_isready"));
        ready.arg("-q").arg("-h").arg(&self.dir).args(["-p", &self.port.to_string()]);
        ready.status().is_ok_and(|status| status.success())
    }

    /// Stops the cluster and waits for its end.
    pub fn stop(&mut self, how: Shutdown) {
        let mut postmaster = self.postmaster.take().expect("running");
        let order = if how == Shutdown::Fast { Signal::SIGINT } else { Signal::SIGQUIT };
        signal(&family(postmaster.id())[..1], order);
        postmaster.wait().expect("wait");
    }

    /// kill -9 to the postmaster and all its sessions: what a machine without power leaves behind.
    pub fn kill(&mut self) {
        let mut postmaster = self.postmaster.take().expect("running");
        signal(&family(postmaster.id()), Signal::SIGKILL);
        postmaster.wait().expect("wait");
    }

    /// Stops the postmaster and all its sessions in their tracks: connections stay open and nobody answers.
    pub fn freeze(&self) {
        signal(&family(self.pid()), Signal::SIGSTOP);
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        signal(&family(self.pid()), Signal::SIGCONT);
    }

    /// Ends every other session.
    pub fn hang_up(&self) {
        self.sql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        );
    }

    fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("running").id()
    }

    /// A copy that follows this cluster. Only one synchronous standby at a time.
    pub fn standby(&self, sync: Sync) -> Self {
        let mut standby = Self::prepare(&format!("standby{}", free_port()));
        let mut copy = command(program("pg_basebackup"));
        copy.arg("-h").arg(&self.dir).args(["-p", &self.port.to_string(), "-U", USER, "-R", "-X", "stream"]);
        run(copy.args(["--checkpoint=fast", "-D"]).arg(standby.data()));
        standby.configure("");
        standby.start_again();
        if sync == Sync::Synchronous {
            self.sql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{}'", standby.name));
            self.sql("postgres", "SELECT pg_reload_conf()");
        }
        let attached = format!(
            "SELECT 1 FROM pg_stat_replication WHERE application_name = '{}' AND state = 'streaming' {}",
            standby.name,
            if sync == Sync::Synchronous { "AND sync_state = 'sync'" } else { "" },
        );
        let deadline = Instant::now() + PATIENCE;
        while self.sql("postgres", &attached).is_empty() {
            assert!(Instant::now() < deadline, "the standby does not follow:\n{}", standby.log());
            pause();
        }
        standby
    }

    /// Makes a standby take writes, and wait for no other.
    pub fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote(true, 60)");
        self.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''");
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Keeps a standby from applying what it receives, so that it falls behind.
    pub fn pause_replay(&self) {
        self.sql("postgres", "SELECT pg_wal_replay_pause()");
    }

    /// Runs SQL as the superuser; returns the rows, with `|` between columns.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = command(program("psql"));
        psql.arg("-h").arg(&self.dir).args(["-p", &self.port.to_string(), "-U", USER, "-d", database]);
        run(psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])).trim_end().to_owned()
    }

    /// A fresh, empty database.
    pub fn fresh_database(self: &Arc<Self>) -> Database {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("svid{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        Database { name, postgres: Arc::clone(self) }
    }

    /// A connection string over the Unix socket.
    pub fn connection_string(&self, database: &str) -> String {
        format!("host={} port={} user={USER} dbname={database}", self.dir.display(), self.port)
    }

    /// A connection string over TCP, with the password and without `sslmode`.
    pub fn tcp_connection_string(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={USER} password={PASSWORD} dbname={database}", self.port)
    }

    /// A connection string that tries this cluster first and then `other`, whichever takes writes.
    pub fn or(&self, other: &Self, database: &str) -> String {
        let (one, two) = (self.dir.display(), other.dir.display());
        format!("host={one},{two} port={},{} user={USER} dbname={database}", self.port, other.port)
    }

    /// Everything the cluster logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- log of PostgreSQL, newest first ---\n{}", last.join("\n"));
        }
        if self.postmaster.is_some() {
            self.thaw();
            self.stop(Shutdown::Immediate);
        }
    }
}

/// A database in a cluster that lives as long as it is used.
#[derive(Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// The cluster.
    pub postgres: Arc<Postgres>,
}

impl Database {
    /// A connection string over the Unix socket.
    pub fn connection_string(&self) -> String {
        self.postgres.connection_string(&self.name)
    }

    /// A connection string over TCP, with the password and without `sslmode`.
    pub fn tcp_connection_string(&self) -> String {
        self.postgres.tcp_connection_string(&self.name)
    }

    /// Runs SQL as the superuser; returns the rows, with `|` between columns.
    pub fn sql(&self, sql: &str) -> String {
        self.postgres.sql(&self.name, sql)
    }
}

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).expect("write a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set a file's mode");
    hand_over(path);
}

/// In memory where there is room: a disk that a build has just filled with writes makes each flush wait for them.
/// What a killed process wrote is there all the same.
fn room() -> PathBuf {
    const ENOUGH: u64 = 2 << 30;
    let shared = Path::new("/dev/shm");
    let free = nix::sys::statvfs::statvfs(shared).map(|fs| fs.blocks_available() * fs.fragment_size());
    if free.is_ok_and(|free| free >= ENOUGH) { shared.to_owned() } else { std::env::temp_dir() }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("bound").port()
}
