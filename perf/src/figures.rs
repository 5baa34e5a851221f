//! Condensing rounds into figures.

use serde::{Deserialize, Serialize};

/// The rounds of one figure, condensed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle round; the mean of the two in the middle if there is no single one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// Condenses rounds; `None` if there are none.
pub fn summarize(rounds: &[f64]) -> Option<Summary> {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
    Some(Summary { median, min, max })
}

/// The summary of the ratios, round by round: what disturbs a round disturbs both sides of it. Rounds that one side lacks are left out.
pub fn ratio(rounds: &[Option<f64>], baseline: &[Option<f64>]) -> Option<Summary> {
    let ratios: Vec<f64> = rounds
        .iter()
        .zip(baseline)
        .filter_map(|(ours, theirs)| Some((*ours)? / (*theirs)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    summarize(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(summarize(&[5.0, 1.0, 3.0]), Some(Summary { median: 3.0, min: 1.0, max: 5.0 }));
        assert_eq!(summarize(&[4.0, 2.0]), Some(Summary { median: 3.0, min: 2.0, max: 4.0 }));
        assert_eq!(summarize(&[]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The second round was disturbed, for both alike; the third failed for one.
        let ours = [Some(10.0), Some(100.0), None];
        let theirs = [Some(20.0), Some(200.0), Some(20.0)];
        assert_eq!(ratio(&ours, &theirs), Some(Summary { median: 0.5, min: 0.5, max: 0.5 }));
        assert_eq!(ratio(&[None], &[Some(1.0)]), None);
        assert_eq!(ratio(&[Some(1.0)], &[Some(0.0)]), None);
    }
}
