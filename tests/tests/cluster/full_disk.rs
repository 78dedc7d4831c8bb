//! PostgreSQL's disk is full: writes are refused in words, and go on when there is room.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use svid_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, entry_client::EntryClient};
use svid_tests::calls::attested;
use svid_tests::client::unix;
use svid_tests::{Server, ServerOptions, root, until};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::Code;

use crate::load::{all_entries, check_rows, entry};
use crate::{blocking, federate, fresh_postgres, sign, start};

/// A small file system in a mount namespace of its own, which ends with its process.
struct SmallDisk {
    process: Child,
    path: PathBuf,
}

impl SmallDisk {
    /// For this user and group: others cannot look through that process.
    async fn of((uid, gid): (u32, u32)) -> Self {
        let script = format!(
            "mount -t tmpfs -o size=24m,mode=700,uid={uid} tmpfs /mnt && echo ready \
             && exec setpriv --reuid {uid} --regid {gid} --clear-groups sleep infinity"
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn().expect("start unshare");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next_line().await.expect("a line").as_deref(), Some("ready"));
        let pid = process.id().expect("running");
        until("another user", || async { owner(format!("/proc/{pid}")) == Some((uid, gid)) }).await;
        Self { process, path: format!("/proc/{pid}/root/mnt").into() }
    }
}

fn owner(path: impl AsRef<Path>) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|meta| (meta.uid(), meta.gid()))
}

/// Takes all the room but a little.
fn fill_up(path: &Path) {
    let mut file = File::create(path).expect("create the filler");
    let chunk = [0; 4096];
    while file.write_all(&chunk).is_ok() {}
    let taken = file.metadata().expect("its size").len();
    file.set_len(taken - (512 << 10)).expect("give a little back");
}

/// Creates entries until one is refused; returns how many were acknowledged and what the refusal said.
async fn fill(server: &Server, from: usize) -> (usize, Code, String) {
    let mut client = EntryClient::new(unix(&server.socket()).await);
    for n in 0..100 {
        let entries = (0..100).map(|m| entry(&format!("full-{from}-{n}-{m}"))).collect();
        let request = BatchCreateEntryRequest { entries, output_mask: None };
        let results = client.batch_create_entry(request).await.expect("answered").into_inner().results;
        let statuses: Vec<_> = results.into_iter().map(|result| result.status.expect("a status")).collect();
        let acked = statuses.iter().filter(|status| status.code == 0).count();
        if let Some(refused) = statuses.iter().find(|status| status.code != 0) {
            return (n * 100 + acked, refused.code.into(), refused.message.clone());
        }
    }
    panic!("the disk never was full");
}

async fn written(server: &Server) -> usize {
    let entries = all_entries(server).await;
    let ours = entries
        .iter()
        .filter(|entry| entry.spiffe_id.as_ref().is_some_and(|id| id.path.starts_with("/job/")));
    ours.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_postgresql_refuses_writes_and_nothing_else() {
    if !root("a small file system for PostgreSQL") {
        return;
    }
    let postgres = fresh_postgres();
    let disk = SmallDisk::of(owner(postgres.data()).expect("PostgreSQL's user")).await;
    blocking(|| {
        postgres.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", disk.path.display()));
        postgres.sql("postgres", "CREATE DATABASE small TABLESPACE small");
    });
    let options = ServerOptions { postgres: Some(postgres.connection_string("small")), ..Default::default() };
    let [server] = start([options]).await;
    federate(&server).await;
    let web = server.entry("/web", "unix:uid:1", &[]).await;
    let (_, agent) = attested(&server).await;
    let filler = disk.path.join("filler");
    fill_up(&filler);

    let (acked, code, why) = fill(&server, 0).await;
    assert_eq!(code, Code::Unavailable, "{why}");
    assert!(why.contains("its disk is full"), "{why}");
    assert_eq!(written(&server).await, acked, "{why}");
    sign(&agent, &web).await.expect("signed as ever");
    check_rows(|sql| blocking(|| postgres.sql("small", sql)));

    std::fs::remove_file(&filler).expect("remove the filler");
    server.entry("/after", "unix:uid:1", &[]).await;
    assert_eq!(written(&server).await, acked);
    drop(server);
    drop(postgres);
    let mut disk = disk;
    disk.process.kill().await.expect("kill");
}
