//! The directory: a head and the log that it speaks of. What the head says is on the disk before it says so.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::codec::Record;
use super::frames::{FrameKey, MAX_LOG};
use super::head::{DataKeys, Head, MAX_HEAD};

const HEAD: &str = "head";

/// When the last server answered, and when the agent last wrote something, in Unix seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Now.
    pub seen: i64,
    /// 0 for never.
    pub contact: i64,
}

/// A log that is being appended to.
pub struct Log {
    file: File,
    key: FrameKey,
    keys: DataKeys,
    head: Head,
    /// The length when it was new: what is in use, as far as is known.
    first: u64,
}

impl Log {
    /// More of it is past than in use.
    pub fn is_wasteful(&self) -> bool {
        const SLACK: u64 = 256 * 1024;
        self.head.length > 2 * self.first + SLACK
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Dir(PathBuf);

impl Dir {
    /// In `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("svid-cache"))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The head's bytes; `None` if there is none.
    /// # Errors
    /// What the system says.
    pub fn read_head(&self) -> io::Result<Option<Vec<u8>>> {
        match read(&self.0.join(HEAD), MAX_HEAD as u64) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What of the log counts.
    /// # Errors
    /// What the system says; `InvalidData` if the log is shorter than the head says.
    pub fn read_log(&self, head: &Head) -> io::Result<Zeroizing<Vec<u8>>> {
        if head.length > MAX_LOG {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 512 MiB"));
        }
        let mut bytes = read(&self.0.join(head.log_name()), MAX_LOG)?;
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        if bytes.len() < length {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is cut short"));
        }
        // Appended by a process that ended before it could say so.
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Begins a new log with `records`; older ones go once its head is there.
    /// # Errors
    /// What the system says; what was there before then still counts.
    pub fn begin(&self, mut head: Head, secret: &[u8], records: &[Record], stamp: Stamp) -> io::Result<Log> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let keys = DataKeys::derive(secret, &head);
        let key = FrameKey::new(&keys.log);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(self.0.join(head.log_name()))?;
        (head.length, head.frames) = (0, 0);
        let mut log = Log { file, key, keys, head, first: 0 };
        self.append(&mut log, records, stamp)?;
        log.first = log.head.length;
        self.remove_all_but(&[HEAD, &log.head.log_name()])?;
        Ok(log)
    }

    /// Adds `records`. After an error the log must not be used again: what was written of it is not known.
    /// # Errors
    /// What the system says.
    pub fn append(&self, log: &mut Log, records: &[Record], stamp: Stamp) -> io::Result<()> {
        let frames = log.key.seal(records, &mut log.head.frames).map_err(io::Error::other)?;
        log.file.write_all(&frames)?;
        log.file.sync_data()?;
        log.head.length += frames.len() as u64;
        self.stamp(log, stamp)
    }

    /// Notes the time.
    /// # Errors
    /// What the system says.
    pub fn stamp(&self, log: &mut Log, stamp: Stamp) -> io::Result<()> {
        (log.head.last_seen, log.head.last_contact) = (stamp.seen, stamp.contact);
        self.replace(HEAD, &log.head.encode(&log.keys))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.0.join(format!("{name}.tmp"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.0.join(name))?;
        File::open(&self.0)?.sync_all()
    }

    /// Removes everything, the head first: without it nothing counts.
    /// # Errors
    /// What the system says.
    pub fn wipe(&self) -> io::Result<()> {
        match fs::remove_file(self.0.join(HEAD)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match File::open(&self.0) {
            Ok(dir) => dir.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        self.remove_all_but(&[])
    }

    fn remove_all_but(&self, names: &[&str]) -> io::Result<()> {
        for file in fs::read_dir(&self.0)? {
            let file = file?;
            if !names.iter().any(|name| file.file_name() == **name) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }
}

fn read(path: &Path, most: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let facts = file.metadata()?;
    if !facts.is_file() || facts.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file of an agent's"));
    }
    // Reserved in full, so that growing leaves no copies behind.
    let room = usize::try_from(facts.len()).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
