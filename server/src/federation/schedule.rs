//! When a bundle is fetched next. Reads no clock.

use std::time::Duration;

use svid_core::bundle::Bundle;

/// Shorter hints count as this. Source: SPIRE.
const MIN_HINT: Duration = Duration::from_secs(60);
/// Attempts within the time that the hint asks for, so that one that fails costs no freshness. Source: SPIRE.
const ATTEMPTS_PER_HINT: u32 = 4;
/// Without a hint. Source: SPIFFE Federation, section 4.1.
const WITHOUT_HINT: Duration = Duration::from_secs(300);
/// Without a bundle. Source: SPIRE.
const WITHOUT_BUNDLE: Duration = Duration::from_secs(60);
/// The longest that a partner's hint may keep us from looking.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// How much longer than usual the pause after failures becomes: at the hint's own pace.
const MAX_BACK_OFF: u32 = ATTEMPTS_PER_HINT;

/// The pause after an attempt, with the bundle that is in use and the number of failures since the last success.
pub fn pause(bundle: Option<&Bundle>, failures: u32) -> Duration {
    let usual = match bundle {
        None => WITHOUT_BUNDLE,
        Some(bundle) if bundle.refresh_hint.is_zero() => WITHOUT_HINT,
        Some(bundle) => (bundle.refresh_hint.max(MIN_HINT) / ATTEMPTS_PER_HINT).min(MAX_INTERVAL),
    };
    usual * back_off(failures)
}

/// 1 after no or one failure, then 2, then 4.
fn back_off(failures: u32) -> u32 {
    2_u32.saturating_pow(failures.saturating_sub(1)).min(MAX_BACK_OFF)
}

/// Up to a tenth shorter, so that many servers do not ask at the same moment. `random` is any number.
pub fn jittered(pause: Duration, random: u8) -> Duration {
    pause - pause / 10 * u32::from(random) / 255
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Conformance: FED-06, FED-07, FED-08, FED-76, TDB-13, TDB-36 (hc-51, hc-52, hc-53).
    #[test]
    fn pauses() {
        let check = |hint: Option<u64>, failures, seconds| {
            let bundle = hint.map(|hint| Bundle {
                refresh_hint: Duration::from_secs(hint),
                ..Bundle::empty("a.test".parse().unwrap())
            });
            assert_eq!(pause(bundle.as_ref(), failures), Duration::from_secs(seconds), "{hint:?} {failures}");
        };
        check(None, 0, 60);
        check(None, 1, 60);
        check(None, 2, 120);
        check(None, 3, 240);
        check(None, 99, 240);
        check(Some(0), 0, 300);
        check(Some(1), 0, 15);
        check(Some(60), 0, 15);
        check(Some(300), 0, 75);
        check(Some(300), 1, 75);
        check(Some(300), 3, 300);
        check(Some(86_400), 0, 3600);
        check(Some(u64::MAX), 99, 14_400);
    }

    #[test]
    fn jitter_only_shortens() {
        let pause = Duration::from_secs(75);
        assert_eq!(jittered(pause, 0), pause);
        assert_eq!(jittered(pause, 255), Duration::from_millis(67_500));
    }
}
