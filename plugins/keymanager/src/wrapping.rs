//! A key beside the keys, for what else the process keeps on its disk.
//!
//! It is no protection from whoever reads the directory: they read the key as well. It lets what is wrapped be made
//! unreadable by removing one small file, and is the place where a key manager with real hardware does better.

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use svid_plugin_api::PluginError;
use zeroize::Zeroizing;

use crate::file;

const KEY_LEN: usize = 32;

/// The key's file beside `keys_path`.
fn path_beside(keys_path: &Path) -> PathBuf {
    keys_path.with_file_name("wrapping.key")
}

/// Wraps with the key beside `keys_path`, which is made if it is missing: a random nonce, then AES-256-GCM's output.
pub(crate) fn wrap(keys_path: &Path, secret: &[u8], context: &[u8]) -> Result<Vec<u8>, PluginError> {
    let path = path_beside(keys_path);
    let key = match read(&path)? {
        Some(key) => key,
        None => make(&path)?,
    };
    let mut nonce = [0u8; NONCE_LEN];
    random(&mut nonce)?;
    let mut sealed = Zeroizing::new(secret.to_vec());
    let tag =
        key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut sealed);
    let tag = tag.map_err(|_| PluginError::internal("unable to wrap a secret"))?;
    Ok([&nonce, sealed.as_slice(), tag.as_ref()].concat())
}

/// Opens what [`wrap`] made.
pub(crate) fn unwrap(
    keys_path: &Path,
    wrapped: &[u8],
    context: &[u8],
) -> Result<Zeroizing<Vec<u8>>, PluginError> {
    let path = path_beside(keys_path);
    let refuse = || PluginError::invalid(format!("the secret was not wrapped with {}", path.display()));
    let key = read(&path)?.ok_or_else(refuse)?;
    let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or_else(refuse)?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut buffer);
    let length = opened.map_err(|_| refuse())?.len();
    buffer.truncate(length);
    Ok(buffer)
}

fn read(path: &Path) -> Result<Option<LessSafeKey>, PluginError> {
    let Some(bytes) = file::read_private(path)? else { return Ok(None) };
    if bytes.len() != KEY_LEN {
        let message = format!("{} does not hold a key of {KEY_LEN} bytes; remove it", path.display());
        return Err(PluginError::internal(message));
    }
    cipher(&bytes).map(Some)
}

fn make(path: &Path) -> Result<LessSafeKey, PluginError> {
    let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
    random(bytes.as_mut_slice())?;
    file::replace(path, bytes.as_slice()).map_err(|error| {
        PluginError::internal(format!("unable to write the wrapping key to {}: {error}", path.display()))
    })?;
    cipher(bytes.as_slice())
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, PluginError> {
    let key = UnboundKey::new(&AES_256_GCM, key);
    Ok(LessSafeKey::new(key.map_err(|_| PluginError::internal("unable to use the wrapping key"))?))
}

fn random(bytes: &mut [u8]) -> Result<(), PluginError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| PluginError::internal("the system gives no random numbers"))
}
