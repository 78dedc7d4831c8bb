//! Watches the first bytes of an HTTP/2 connection until they prove that the peer means it.

/// Length of the client connection preface. Source: RFC 9113, section 3.4.
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;

/// How far a peer has to come before its deadline no longer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The preface, for peers that proved who they are.
    Preface,
    /// The first request's headers, for all others.
    FirstRequest,
}

/// Follows the frames without keeping them.
#[derive(Debug)]
pub(super) struct Progress {
    until: Until,
    /// Bytes to skip before the next frame header.
    skip: usize,
    header: [u8; FRAME_HEADER],
    have: usize,
    done: bool,
}

impl Progress {
    pub(super) fn new(until: Until) -> Self {
        Self { until, skip: PREFACE, header: [0; FRAME_HEADER], have: 0, done: false }
    }

    /// Takes what was read; true once the goal was reached.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while !self.done && !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if self.skip > 0 {
                break;
            }
            if self.until == Until::Preface {
                self.done = true;
                break;
            }
            let taken = (FRAME_HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == FRAME_HEADER {
                let [a, b, c, kind, ..] = self.header;
                self.done = kind == HEADERS;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.have = 0;
            }
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_the_first_request() {
        let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        wire.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        let before = wire.len();
        wire.extend([0, 0, 1, 1, 4, 0, 0, 0, 1]);
        for step in [1, 2, 7, 100] {
            let mut progress = Progress::new(Until::FirstRequest);
            let mut done_at = None;
            for (at, chunk) in wire.chunks(step).enumerate() {
                if progress.feed(chunk) && done_at.is_none() {
                    done_at = Some((at * step + chunk.len()).min(wire.len()));
                }
            }
            assert!(done_at.is_some_and(|at| at > before), "{step}: {done_at:?}");
            let mut progress = Progress::new(Until::FirstRequest);
            assert!(!progress.feed(&wire[..before]));
            let mut progress = Progress::new(Until::Preface);
            assert!(!progress.feed(&wire[..23]) && progress.feed(&wire[23..25]));
        }
    }
}
