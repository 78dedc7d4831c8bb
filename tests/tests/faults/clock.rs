//! A clock that is set wrong by a day, in both directions: nothing past its end is served, and nothing is pruned.
//!
//! The server runs with its clocks shifted: a small library goes between it and the system's.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use svid_proto::spire::api::server::entry::v1::{GetAuthorizedEntriesRequest, entry_client::EntryClient};
use svid_tests::calls::{attested, unix_now};
use svid_tests::client::{AttestedAgent, attest_by_token};
use svid_tests::{Process, Server, ServerOptions, until};
use tempfile::TempDir;
use tokio::process::Command;

const DAY: i64 = 86_400;
/// Longer than from one round of housekeeping to the next.
const ROUND: i64 = 310;

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Seconds: wall clock, steady clock. */
static volatile int64_t *shift;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("SVID_TEST_CLOCK"), O_RDONLY);
    void *map = mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) abort();
    close(file);
    shift = map;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && shift)
        now->tv_sec += shift[clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE ? 0 : 1];
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"#;

/// The clocks of one server.
struct Clocks {
    dir: TempDir,
    library: PathBuf,
    file: std::fs::File,
    wall: i64,
    steady: i64,
}

impl Clocks {
    /// `None` without a C compiler.
    async fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (source, library) = (dir.path().join("clock.c"), dir.path().join("clock.so"));
        std::fs::write(&source, LIBRARY).expect("write");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).stdin(Stdio::null());
        let Ok(done) = compiler.output().await else {
            println!("skipped: a server whose clock is wrong; install a C compiler (cc)");
            return None;
        };
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let file = std::fs::File::create(dir.path().join("shift")).expect("create");
        let clocks = Self { dir, library, file, wall: 0, steady: 0 };
        clocks.write();
        Some(clocks)
    }

    fn write(&self) {
        let words = [self.wall, self.steady].map(i64::to_ne_bytes).concat();
        self.file.write_all_at(&words, 0).expect("write");
    }

    /// Sets the wall clock forth or back.
    fn set(&mut self, seconds: i64) {
        self.wall += seconds;
        self.write();
    }

    /// Lets time pass, by both clocks.
    fn pass(&mut self, seconds: i64) {
        self.steady += seconds;
        self.set(seconds);
    }

    async fn start(&self) -> Server {
        let mut server = Server::prepare(&ServerOptions::default());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {}", server.command_line())]);
        command.env("LD_PRELOAD", &self.library).env("SVID_TEST_CLOCK", self.dir.path().join("shift"));
        server.adopt(Process::start("svid-server", &mut command)).await;
        server
    }
}

/// The paths that the agent is served, on a new connection; nothing if it is refused.
async fn served(server: &Server, agent: &AttestedAgent) -> Vec<String> {
    let config = svid_tests::client::careless_tls(Some(&agent.cert));
    let Ok(channel) = svid_tests::client::tls(server.port, config).await else { return Vec::new() };
    let request = GetAuthorizedEntriesRequest::default();
    let Ok(answer) = EntryClient::new(channel).get_authorized_entries(request).await else {
        return Vec::new();
    };
    let paths = answer.into_inner().entries.into_iter().filter_map(|entry| Some(entry.spiffe_id?.path));
    let mut paths: Vec<String> = paths.filter(|path| path != "/host").collect();
    paths.sort();
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_a_day_prunes_nothing() {
    let Some(mut clocks) = Clocks::new().await else { return };
    let mut server = clocks.start().await;
    let (agent, _) = attested(&server).await;
    server.entry("/web", "unix:uid:1", &[]).await;
    let end = (unix_now() + DAY / 2).to_string();
    let guest = server.entry("/guest", "unix:uid:1", &["-entryExpiry", &end]).await;
    let both = ["/guest".to_owned(), "/web".to_owned()];
    assert_eq!(served(&server, &agent).await, both);

    // A day ahead.
    clocks.set(DAY);
    clocks.pass(ROUND);
    server.process().wait_for("s ahead of where it should be").await;
    assert!(served(&server, &agent).await.is_empty(), "its certificate is over");
    // Nothing is signed with the authority that is over; who comes waits for its successor.
    let late = loop {
        let token = server.token().await;
        match attest_by_token(server.port, &token).await {
            Ok(agent) => break agent,
            Err(status) => assert!(status.message().contains("not available for signing"), "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    until("who comes now is served", || async { served(&server, &late).await == ["/web".to_owned()] }).await;
    server.cli(&["entry", "show", "-entryID", &guest]).await.ok();

    // And set right again: what only seemed over is there.
    clocks.set(-DAY);
    until("served again", || async { served(&server, &agent).await == both }).await;
    clocks.pass(ROUND);
    server.process().wait_for("The clocks agree again").await;

    // A day behind: nothing is valid yet that was made today.
    clocks.set(-DAY);
    clocks.pass(ROUND);
    server.process().wait_for("s behind where it should be").await;
    assert!(served(&server, &agent).await.is_empty(), "its certificate is not valid yet");
    clocks.set(DAY);
    until("served again", || async { served(&server, &agent).await == both }).await;
    clocks.pass(ROUND);
    server.process().wait_for_lines("The clocks agree again", 2).await;
    let log = server.process().log().join("\n");
    assert!(!log.contains("Pruned") && !log.contains("panicked"), "{log}");
}
