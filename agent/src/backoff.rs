//! Growing pauses between attempts.

use std::time::Duration;

/// Starts at one length, grows by half each time, a tenth of jitter either way, never beyond a cap.
#[derive(Clone, Debug)]
pub struct Backoff {
    start: Duration,
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// From `start` up to `max`.
    pub fn new(start: Duration, max: Duration) -> Self {
        Self { start, next: start, max }
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.mul_f64(1.5).min(self.max);
        jitter(pause)
    }

    /// Nothing failed since the beginning or the last reset.
    pub fn is_fresh(&self) -> bool {
        self.next == self.start
    }

    /// Begins anew.
    pub fn reset(&mut self) {
        self.next = self.start;
    }

    /// Sleeps for the next pause.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }
}

/// A duration moved by up to a tenth, so that many agents do not act at once.
pub fn jitter(duration: Duration) -> Duration {
    let mut byte = [0u8; 2];
    // Without randomness there is no jitter, which is no harm.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    duration.mul_f64(0.9 + 0.2 * f64::from(u16::from_be_bytes(byte)) / f64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_cap_and_begins_anew() {
        let within = |pause: Duration, want: f64| {
            let seconds = pause.as_secs_f64();
            assert!((want * 0.89..=want * 1.11).contains(&seconds), "{seconds} is not near {want}");
        };
        let mut backoff = Backoff::new(Duration::from_secs(4), Duration::from_secs(8));
        for want in [4.0, 6.0, 8.0, 8.0] {
            within(backoff.next_pause(), want);
        }
        backoff.reset();
        within(backoff.next_pause(), 4.0);
    }
}
