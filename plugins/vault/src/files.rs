//! Files that the configuration names, read again whenever they are needed.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::VaultError;

/// Largest file that is read, in bytes: certificates, keys and tokens are far smaller.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads a small file. `what` names it in the error, as the configuration's key does.
pub(crate) fn read(what: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let words = |error: &dyn std::fmt::Display| VaultError::File(format!("{what} {path:?}: {error}"));
    let file = File::open(path).map_err(|error| words(&error))?;
    let length = file.metadata().map_err(|error| words(&error))?.len();
    if length > MAX_BYTES {
        return Err(words(&format!("is larger than {MAX_BYTES} bytes")));
    }
    // Reserved in full, so that growing leaves no copies of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|error| words(&error))?;
    Ok(bytes)
}
