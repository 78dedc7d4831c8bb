//! `backup`: the server's state into a file that is whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use svid_proto::backup::{Counts, Decoder, FormatError, Header, Kind};
use svid_proto::svid::backup::v1::backup_client::BackupClient;
use svid_proto::svid::backup::v1::{TakeBackupRequest, TakeBackupResponse};
use tonic::Streaming;

use crate::args::{Args, BackupArgs, Output};
use crate::connect::{self, Failure, Who};
use crate::render::{self, Paint, Screen, facts};

pub async fn run(args: &Args, command: &BackupArgs, screen: &mut Screen) -> Result<(), Failure> {
    let to_stdout = command.file.as_os_str() == "-";
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::new("a backup is binary, and standard output is a terminal")
            .advise("Name a file, or send the output to one or to another program."));
    }
    if !to_stdout {
        check_free(command)?;
    }
    let channel = connect::dial(Who::Server, &args.server_socket).await?;
    let answer = BackupClient::new(channel).take_backup(TakeBackupRequest {}).await;
    let pieces = answer.map_err(|status| refused(&status))?.into_inner();
    let report = match to_stdout {
        true => {
            let contents = take(pieces, &mut io::stdout().lock()).await?;
            contents.report("-".into())
        }
        false => into_file(pieces, command).await?,
    };
    if to_stdout {
        // Standard output is the backup.
        let text = match screen.output {
            Output::Json => serde_json::to_string(&report).map_err(Failure::new)? + "\n",
            Output::Table => text(&report, Paint(false)),
        };
        return Ok(io::stderr().write_all(text.as_bytes())?);
    }
    screen.print(&report, text)
}

fn refused(status: &tonic::Status) -> Failure {
    match connect::is_unknown(status) {
        true => Failure::new("this server cannot be backed up by svidctl: it does not know svid.backup.v1")
            .advise("With stock SPIRE, back up its database with the database's own tools."),
        false => connect::rpc(Who::Server, status),
    }
}

/// What a backup holds.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    size: u64,
    trust_domain: String,
    taken_at: i64,
    server_id: String,
    server_version: String,
    epoch: String,
    seq: u64,
    bundles: u64,
    relationships: u64,
    journals: u64,
    agents: u64,
    entries: u64,
}

/// Reads a backup as it passes by.
#[derive(Default)]
struct Check {
    decoder: Decoder,
    header: Option<Header>,
    size: u64,
}

impl Check {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.size += bytes.len() as u64;
        self.decoder.feed(bytes);
        while let Some(kind) = self.decoder.next_record()? {
            if let Kind::Header(header) = kind {
                self.header = Some(header);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Contents, FormatError> {
        let counts = self.decoder.finish()?;
        Ok(Contents { header: self.header.unwrap_or_default(), counts, size: self.size })
    }
}

/// A backup that is whole.
#[derive(Debug, PartialEq)]
struct Contents {
    header: Header,
    counts: Counts,
    size: u64,
}

impl Contents {
    fn report(self, file: String) -> Report {
        let Self { header, counts, size } = self;
        let position = header.position.unwrap_or_default();
        let epoch: String = position.epoch.iter().map(|byte| format!("{byte:02x}")).collect();
        Report {
            file,
            size,
            trust_domain: header.trust_domain,
            taken_at: header.taken_at,
            server_id: header.server_id,
            server_version: header.server_version,
            epoch,
            seq: position.seq,
            bundles: counts.bundles,
            relationships: counts.relationships,
            journals: counts.journals,
            agents: counts.nodes,
            entries: counts.entries,
        }
    }
}

/// Writes what the server sends, which has to be whole.
async fn take(mut pieces: Streaming<TakeBackupResponse>, to: &mut impl Write) -> Result<Contents, Failure> {
    let mut check = Check::default();
    while let Some(piece) = pieces.message().await.map_err(|status| refused(&status))? {
        check.feed(&piece.data).map_err(Failure::new)?;
        to.write_all(&piece.data)?;
    }
    to.flush()?;
    check.finish().map_err(Failure::new)
}

fn check_free(command: &BackupArgs) -> Result<(), Failure> {
    let file = command.file.display();
    match fs::symlink_metadata(&command.file) {
        Ok(facts) if !facts.is_file() => Err(Failure::new(format!("{file} is no regular file"))),
        Ok(_) if !command.force => Err(Failure::new(format!("{file} exists"))
            .advise("Name another file, or give --force to replace it.")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::new(format!("{file}: {error}"))),
    }
}

/// The file under its temporary name; gone again unless it was kept.
struct Part {
    path: PathBuf,
    kept: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            // The failure that led here is told, this one would hide it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Written beside its final name, read again from the disk, and only then given that name.
async fn into_file(pieces: Streaming<TakeBackupResponse>, command: &BackupArgs) -> Result<Report, Failure> {
    let target = &command.file;
    let named = |error: io::Error| Failure::new(format!("{}: {error}", target.display()));
    let name =
        target.file_name().ok_or_else(|| Failure::new(format!("{} names no file", target.display())))?;
    let mut part_name = name.to_owned();
    part_name.push(".part");
    let (mut part, mut file) = create_part(target.with_file_name(part_name)).map_err(named)?;
    let sent = take(pieces, &mut file).await?;
    file.sync_all().map_err(named)?;
    drop(file);
    let read = read_again(&part.path)?;
    if read != sent {
        return Err(Failure::new(format!("{} does not hold what was written", part.path.display()))
            .advise("The disk or its file system is at fault: nothing was kept."));
    }
    check_free(command)?;
    fs::rename(&part.path, target).map_err(named)?;
    part.kept = true;
    let directory = target.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(named)?;
    Ok(read.report(target.display().to_string()))
}

/// What an earlier run left behind goes; what somebody else puts there meanwhile is not written through.
fn create_part(path: PathBuf) -> io::Result<(Part, File)> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((Part { path, kept: false }, file))
}

fn read_again(path: &Path) -> Result<Contents, Failure> {
    let named = |error: &dyn std::fmt::Display| Failure::new(format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(|error| named(&error))?;
    let mut check = Check::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = file.read(&mut buffer).map_err(|error| named(&error))?;
        if length == 0 {
            return check.finish().map_err(|error| named(&error));
        }
        check.feed(&buffer[..length]).map_err(|error| named(&error))?;
    }
}

fn text(report: &Report, paint: Paint) -> String {
    let mut text = facts(
        "",
        &[
            ("Backup of", report.trust_domain.clone()),
            ("File", format!("{} ({} bytes)", report.file, report.size)),
            ("Taken at", render::time(report.taken_at)),
            ("By server", format!("{} (release {})", report.server_id, report.server_version)),
            ("Position", format!("{} in epoch {}", report.seq, report.epoch)),
            ("Entries", report.entries.to_string()),
            ("Agents", report.agents.to_string()),
            ("Bundles", report.bundles.to_string()),
            ("Relationships", report.relationships.to_string()),
            ("CA journals", report.journals.to_string()),
        ],
    );
    text +=
        &paint.dim("Private keys are not in it: save the data_dir, or the key manager's keys, as well.\n");
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn command(file: PathBuf, force: bool) -> BackupArgs {
        BackupArgs { force, file }
    }

    #[test]
    fn a_file_is_not_replaced_unless_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.backup");
        check_free(&command(path.clone(), false)).unwrap();
        fs::write(&path, "older").unwrap();
        let refusal = check_free(&command(path.clone(), false)).unwrap_err().to_string();
        assert!(refusal.contains("exists\nName another file, or give --force"), "{refusal}");
        check_free(&command(path, true)).unwrap();
        let refusal = check_free(&command(dir.path().into(), true)).unwrap_err().to_string();
        assert!(refusal.contains("is no regular file"), "{refusal}");
    }

    #[test]
    fn what_is_not_kept_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.part");
        fs::write(&path, "left behind").unwrap();
        let (part, mut file) = create_part(path.clone()).unwrap();
        file.write_all(b"svid-backup\n").unwrap();
        let error = read_again(&path).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
        drop(part);
        assert!(!path.exists());
    }
}
