//! `api fetch` and `api fetch x509`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Instant, SystemTime};

use svid_core::pem;
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::json;
use svid_proto::workload::X509svidRequest;

use super::api::{block_on, first, request, within, workload};
use super::text::go_io;
use super::x509_text::{ReceivedSet, Style};
use super::{Env, socket};

const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

pub(super) fn flags() -> FlagSet {
    socket::flags(FlagSet::new("fetch x509"))
        .duration("timeout", "5s", "Time to wait for a response")
        .bool("silent", "Suppress stdout")
        .string(
            "write",
            "",
            "Write SVID data to the specified path (optional; only available for pretty output format)",
        )
        .output()
}

pub(super) fn run(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    match try_run(flags, env) {
        Ok(()) => 0,
        Err(text) => env.fail(text),
    }
}

fn try_run(flags: &Parsed, env: &mut Env<'_>) -> Result<(), String> {
    let socket = socket::resolve(flags, env)?;
    let start = Instant::now();
    let response = block_on(within(flags.duration("timeout"), async {
        let mut client = workload(&socket).await?;
        first(client.fetch_x509svid(request(X509svidRequest::default())).await).await
    }))
    .map_err(|err| err.to_string())?;
    let after = start.elapsed();
    if flags.str("output") == "json" {
        let value = json::to_json("X509SVIDResponse", &response).map_err(|err| err.to_string())?;
        return env.out.write_all(json::print(&[value]).as_bytes()).map_err(|err| err.to_string());
    }
    let received = ReceivedSet::parse(response)?;
    received.verify(SystemTime::now())?;
    if !flags.bool("silent") {
        received.print(after, Style::Fetch, env.out).map_err(|err| err.to_string())?;
    }
    match flags.str("write") {
        "" => Ok(()),
        dir => write_all(&received, Path::new(dir), env).map_err(|err| err.to_string()),
    }
}

fn write_all(received: &ReceivedSet, dir: &Path, env: &mut Env<'_>) -> io::Result<()> {
    for (at, svid) in received.svids.iter().enumerate() {
        let path = dir.join(format!("svid.{at}.pem"));
        writeln!(env.out, "Writing SVID #{at} to file {}.", path.display())?;
        replace(&path, PUBLIC, svid.chain.to_pem().as_bytes())?;

        let path = dir.join(format!("svid.{at}.key"));
        writeln!(env.out, "Writing key #{at} to file {}.", path.display())?;
        replace(&path, PRIVATE, pem::key_to_pem(&svid.key).as_bytes())?;

        let path = dir.join(format!("bundle.{at}.pem"));
        writeln!(env.out, "Writing bundle #{at} to file {}.", path.display())?;
        replace(&path, PUBLIC, pem::certs_to_pem(svid.bundle.iter()).as_bytes())?;

        for (number, (name, certs)) in received.federated.iter().enumerate() {
            let path = dir.join(format!("federated_bundle.{at}.{number}.pem"));
            writeln!(
                env.out,
                "Writing federated bundle #{number} for trust domain {name} to file {}.",
                path.display()
            )?;
            replace(&path, PUBLIC, pem::certs_to_pem(certs.iter()).as_bytes())?;
        }
    }
    Ok(())
}

/// Puts a file in place whole: readers see the old content or the new, and a key never has a wider mode.
fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let written = write_new(&temporary, mode, content).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    // The name the user knows, not the temporary one.
    written
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(|err| io::Error::other(format!("open {}: {}", path.display(), go_io(&err))))
}

fn write_new(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits away.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}
