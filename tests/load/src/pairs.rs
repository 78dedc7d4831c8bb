//! Two sides measured in turn, pair by pair, so that what the machine does otherwise meets both alike.

use serde::Serialize;

use crate::process::round;

/// The ratio of two sides over many pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ratio {
    /// Of what to what.
    pub of: String,
    /// How many pairs.
    pub pairs: usize,
    /// The middle one.
    pub median: f64,
    /// The interval that holds the true median with at least 95% confidence; with few pairs all of them.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Ratio {
    /// Of the ratios of all pairs; `None` without any.
    pub fn of(what: impl Into<String>, mut ratios: Vec<f64>) -> Option<Self> {
        ratios.retain(|ratio| ratio.is_finite());
        ratios.sort_by(f64::total_cmp);
        let count = ratios.len();
        let skip = skipped(count);
        let rounded = |at: usize| ratios.get(at).map(|ratio| round(*ratio, 10_000.0));
        let middle = match count % 2 {
            0 => (ratios.get((count / 2).checked_sub(1)?)? + ratios.get(count / 2)?) / 2.0,
            _ => *ratios.get(count / 2)?,
        };
        Some(Self {
            of: what.into(),
            pairs: count,
            median: round(middle, 10_000.0),
            low: rounded(skip)?,
            high: rounded(count - 1 - skip)?,
        })
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { of, pairs, median, low, high } = self;
        write!(f, "{median:.3} [{low:.3}, {high:.3}] {of} ({pairs} pairs)")
    }
}

/// How many of the smallest, and of the largest, lie outside of the interval: the sign test. The true median is as
/// likely above as below any one ratio.
fn skipped(count: usize) -> usize {
    const TAIL: f64 = 0.025;
    let n = i32::try_from(count).unwrap_or(i32::MAX);
    let mut term = 0.5f64.powi(n); // of no success in n throws
    let (mut sum, mut fits) = (term, 0usize);
    while sum <= TAIL && fits < count / 2 {
        fits += 1;
        term *= (count - fits + 1) as f64 / fits as f64;
        sum += term;
    }
    fits.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_the_sign_test() {
        // Of ten throws at most one success has a chance of 0.011, at most two 0.055.
        for (count, skip) in [(1, 0), (5, 0), (6, 0), (9, 1), (10, 1), (12, 2), (20, 5)] {
            assert_eq!(skipped(count), skip, "{count} pairs");
        }
    }

    #[test]
    fn medians() {
        let ratio = Ratio::of("b to a", vec![1.2, 0.9, 1.0, f64::NAN]).expect("some");
        assert_eq!((ratio.pairs, ratio.median, ratio.low, ratio.high), (3, 1.0, 0.9, 1.2));
        assert_eq!(Ratio::of("b to a", vec![1.0, 2.0]).expect("some").median, 1.5);
        assert_eq!(Ratio::of("b to a", Vec::new()), None);
    }
}
