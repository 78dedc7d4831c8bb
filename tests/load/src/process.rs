//! CPU time and memory of the measured process, from `/proc`.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;

/// Clock ticks a second in `/proc/<pid>/stat`: 100 on every architecture Rust's Linux targets have.
const USER_HZ: f64 = 100.0;

/// What a process used during a run, and what it holds after it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Usage {
    /// Whose.
    pub pid: u32,
    /// User and system time during the run, in seconds.
    pub cpu_seconds: f64,
    /// Units per CPU-second; `None` when too little was used to tell.
    pub rate_per_cpu_second: Option<f64>,
    /// Largest resident size since the process started, in MiB.
    pub peak_rss_mib: f64,
    /// Resident size before the run, in MiB.
    pub rss_before_mib: f64,
    /// Resident size now, in MiB.
    pub rss_mib: f64,
    /// The part of it that no file backs, in MiB.
    pub anon_mib: f64,
}

/// A running measurement of a process.
#[derive(Debug)]
pub struct Meter {
    pid: u32,
    before: f64,
    rss_before_mib: f64,
}

impl Meter {
    /// Starts with the process that listens on `socket`.
    /// # Errors
    /// If there is none or its numbers cannot be read.
    pub fn of_listener(socket: &Path) -> anyhow::Result<Self> {
        Self::of_process(listener(socket)?)
    }

    /// Starts with the process `pid`.
    /// # Errors
    /// If there is no such process or its numbers cannot be read.
    pub fn of_process(pid: u32) -> anyhow::Result<Self> {
        let rss_before_mib = mib(&read(pid, "status")?, "VmRSS");
        Ok(Self { pid, before: cpu_seconds(pid)?, rss_before_mib })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends a run that made `units`.
    /// # Errors
    /// If the process is gone.
    pub fn finish(&self, units: u64) -> anyhow::Result<Usage> {
        let cpu_seconds = cpu_seconds(self.pid)? - self.before;
        let status = read(self.pid, "status")?;
        Ok(Usage {
            pid: self.pid,
            cpu_seconds: round(cpu_seconds, 100.0),
            rate_per_cpu_second: (cpu_seconds > 0.0).then(|| round(units as f64 / cpu_seconds, 10.0)),
            peak_rss_mib: mib(&status, "VmHWM"),
            rss_before_mib: self.rss_before_mib,
            rss_mib: mib(&status, "VmRSS"),
            anon_mib: mib(&status, "RssAnon"),
        })
    }
}

/// Rounds to one `of`-th.
pub fn round(value: f64, of: f64) -> f64 {
    (value * of).round() / of
}

fn listener(socket: &Path) -> anyhow::Result<u32> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("nothing listens on {}; start it or give its path", socket.display()))?;
    let peer = getsockopt(&stream, PeerCredentials).context("the socket does not tell its process")?;
    match u32::try_from(peer.pid()) {
        Ok(pid) if pid != 0 => Ok(pid),
        _ => Err(anyhow!("the process behind {} is in another PID namespace; give --pid", socket.display())),
    }
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}; is --pid right?"))
}

fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    ticks(&read(pid, "stat")?).map(|ticks| ticks as f64 / USER_HZ).context("cannot read /proc/<pid>/stat")
}

/// utime and stime. The command's name comes before them and may hold anything, also blanks and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    const UTIME: usize = 11; // fields behind the name
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(UTIME);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn mib(status: &str, key: &str) -> f64 {
    kib(status, key).map(|kib| round(kib as f64 / 1024.0, 10.0)).unwrap_or_default()
}

/// CPU time of the calling thread, if this kernel counts it.
pub fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// CPU time of this program, in seconds.
pub fn own_cpu_seconds() -> f64 {
    cpu_seconds(std::process::id()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_behind_an_odd_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 1000 0 0";
        assert_eq!(ticks(stat), Some(300));
        for broken in ["", "7 (a", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 100 0 0 0 x 50"] {
            assert_eq!(ticks(broken), None, "{broken}");
        }
    }

    #[test]
    fn sizes() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(kib(status, "VmHWM"), Some(2048));
        assert_eq!(kib(status, "VmRSS"), Some(1024));
        assert_eq!(kib(status, "RssAnon"), None);
    }

    #[test]
    fn this_process() {
        let meter = Meter { pid: std::process::id(), before: 0.0, rss_before_mib: 0.0 };
        let usage = meter.finish(10).expect("our own numbers");
        assert!(usage.rss_mib > 0.0 && usage.peak_rss_mib >= usage.anon_mib);
        assert!(Meter::of_process(u32::MAX).is_err());
        assert!(Meter::of_listener(Path::new("/")).is_err());
    }
}
