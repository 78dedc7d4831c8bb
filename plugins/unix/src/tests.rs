#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use super::*;

/// A process that is not pinned: enough to see what becomes of its facts.
struct Process {
    pid: i32,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Caller for Process {
    fn pid(&self) -> i32 {
        self.pid
    }
    fn uid(&self) -> u32 {
        self.uid
    }
    fn gid(&self) -> u32 {
        self.gid
    }
    fn groups(&self) -> &[u32] {
        &self.groups
    }
    fn read_proc(&self, name: &str, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(format!("/proc/{}/{name}", self.pid))?.take(limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
    fn executable(&self) -> Result<Executable, PluginError> {
        let link = format!("/proc/{}/exe", self.pid);
        let path = std::fs::read_link(&link).map_err(|err| PluginError::internal(err.to_string()))?;
        let file = File::open(&link).map_err(|err| PluginError::internal(err.to_string()))?;
        Ok(Executable { path, file })
    }
}

fn process(pid: u32) -> Process {
    let meta = std::fs::metadata(format!("/proc/{pid}")).unwrap();
    Process { pid: pid as i32, uid: meta.uid(), gid: meta.gid(), groups: vec![0, 4_000_000_000] }
}

async fn attest(config: UnixConfig, caller: &Process) -> Result<Vec<String>, PluginError> {
    let selectors = UnixAttestor::new(config).attest(caller).await?;
    Ok(selectors.iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn ids_and_names() {
    let caller = Process { pid: 1, uid: 0, gid: 0, groups: vec![0, 4_000_000_000] };
    let want = [
        "unix:uid:0",
        "unix:user:root",
        "unix:gid:0",
        "unix:group:root",
        "unix:supplementary_gid:0",
        "unix:supplementary_group:root",
        "unix:supplementary_gid:4000000000",
    ];
    assert_eq!(attest(UnixConfig::default(), &caller).await.unwrap(), want);
    let nobody_knows = Process { uid: 4_000_000_001, gid: 4_000_000_002, groups: vec![], ..caller };
    let want = ["unix:uid:4000000001", "unix:gid:4000000002"];
    assert_eq!(attest(UnixConfig::default(), &nobody_knows).await.unwrap(), want);
}

#[tokio::test]
async fn too_many_groups() {
    let with = |count| Process { pid: 1, uid: 0, gid: 0, groups: (4_000_000_000..).take(count).collect() };
    assert!(attest(UnixConfig::default(), &with(1024)).await.is_ok());
    let refused = attest(UnixConfig::default(), &with(1025)).await.unwrap_err();
    assert!(refused.message.contains("1025 supplementary groups; at most 1024"), "{refused}");
}

#[tokio::test]
async fn this_process_and_a_child() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    for pid in [std::process::id(), child.id()] {
        let caller = process(pid);
        let path = caller.executable().unwrap().path;
        let config = UnixConfig { discover_workload_path: true, workload_size_limit: 0 };
        let selectors = attest(config, &caller).await.unwrap();
        assert!(selectors.contains(&format!("unix:uid:{}", caller.uid)), "{selectors:?}");
        assert!(selectors.contains(&format!("unix:path:{}", path.display())), "{selectors:?}");
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &std::fs::read(&path).unwrap());
        assert!(selectors.contains(&format!("unix:sha256:{}", hex::encode(hash))), "{selectors:?}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn the_size_limit() {
    let caller = process(std::process::id());
    let config = |workload_size_limit| UnixConfig { discover_workload_path: true, workload_size_limit };
    let has_hash = |selectors: &[String]| selectors.iter().any(|text| text.starts_with("unix:sha256:"));
    assert!(has_hash(&attest(config(0), &caller).await.unwrap()));
    assert!(has_hash(&attest(config(i64::MAX), &caller).await.unwrap()));
    assert!(!has_hash(&attest(config(-1), &caller).await.unwrap()));
    let refused = attest(config(1), &caller).await.unwrap_err();
    assert!(refused.message.contains("exceeds size limit"), "{refused}");
}

#[test]
fn configuration() {
    let check = |text: &str, want: Result<(bool, i64), &str>| {
        let (config, report) = UnixConfig::read(&hcl::parse(text).unwrap());
        match want {
            Ok(values) => {
                assert!(report.errors.is_empty(), "{text}: {:?}", report.errors);
                assert_eq!((config.discover_workload_path, config.workload_size_limit), values, "{text}");
            }
            Err(part) => {
                assert!(report.errors.iter().any(|err| err.to_string().contains(part)), "{text}: {report:?}")
            }
        }
    };
    check("", Ok((false, 0)));
    check("discover_workload_path = true\nworkload_size_limit = 1024", Ok((true, 1024)));
    check("workload_size_limit = -1", Ok((false, -1)));
    check("discover_path = true", Err("line 1: discover_path: unknown configuration key"));
    check("workload_size_limit = \"many\"", Err("expected a whole number"));
}
