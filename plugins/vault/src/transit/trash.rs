//! Keys that nobody uses any more, deleted in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::engine::Transit;

/// How many keys may wait for their deletion. More are found at the next start.
const ROOM: usize = 120;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Where names of keys are put to have them deleted.
#[derive(Clone)]
pub(super) struct Trash(mpsc::Sender<String>);

impl Trash {
    pub(super) fn new() -> (Self, mpsc::Receiver<String>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        (Self(sender), receiver)
    }

    pub(super) fn put(&self, name: &str) {
        match self.0.try_send(name.to_owned()) {
            Ok(()) => tracing::debug!(key_name = name, "Key enqueued for deletion"),
            Err(_) => tracing::error!(
                key_name = name,
                "Failed to enqueue key for deletion; it is found again at the next start"
            ),
        }
    }
}

/// Deletes what is put into the trash, and tries again what fails.
pub(super) async fn empty(engine: Arc<Transit>, mut names: mpsc::Receiver<String>) {
    let mut pause = FIRST_PAUSE;
    while let Some(name) = names.recv().await {
        while let Err(error) = engine.delete(&name).await {
            tracing::error!(key_name = name, %error, retry_in = ?pause, "It was not possible to delete the key");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        pause = FIRST_PAUSE;
        tracing::debug!(key_name = name, "Key deleted");
    }
}
