//! Signals: INT and TERM stop the process, USR1 and USR2 are for the caller.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Starts listening. The token is cancelled at the first SIGINT or SIGTERM; `on_usr1` (reconfigure plugins, dump
/// metrics) and `on_usr2` (reopen the log file) run at each signal and must not block.
///
/// # Errors
/// What the system says. Must be called within a tokio runtime.
pub fn install(
    on_usr1: impl Fn() + Send + 'static,
    on_usr2: impl Fn() + Send + 'static,
) -> io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
    let mut usr2 = signal(SignalKind::user_defined2())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => token.cancel(),
                _ = terminate.recv() => token.cancel(),
                _ = usr1.recv() => on_usr1(),
                _ = usr2.recv() => on_usr2(),
            }
        }
    });
    Ok(stop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sys::signal::{Signal, raise};
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[tokio::test]
    async fn each_signal_reaches_its_place() {
        let (sender, mut seen) = unbounded_channel();
        let other = sender.clone();
        let stop = install(move || sender.send(1).unwrap(), move || other.send(2).unwrap()).unwrap();
        raise(Signal::SIGUSR1).unwrap();
        assert_eq!(seen.recv().await, Some(1));
        raise(Signal::SIGUSR2).unwrap();
        assert_eq!(seen.recv().await, Some(2));
        assert!(!stop.is_cancelled());
        raise(Signal::SIGTERM).unwrap();
        stop.cancelled().await;
    }
}
