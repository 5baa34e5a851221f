//! Finding out which of a run's faults it takes to fail.

use crate::plan::Step;

/// Leaves out as many steps as possible so that `fails` still holds, asking it at most `runs_max` times. In a deterministic world the rest
/// of the run stays as it was up to the first step that is missing.
pub fn shrink(steps: &[Step], runs_max: usize, mut fails: impl FnMut(&[Step]) -> bool) -> Vec<Step> {
    let mut kept = steps.to_vec();
    let mut piece = kept.len().div_ceil(2);
    let mut runs = 0;
    while piece > 0 {
        let mut start = 0;
        while start < kept.len() && runs < runs_max {
            let mut fewer = kept.clone();
            fewer.drain(start..(start + piece).min(kept.len()));
            runs += 1;
            if fails(&fewer) {
                kept = fewer;
            } else {
                start += piece;
            }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Profile, draw};
    use squall_sim::Random;
    use std::time::Duration;

    #[test]
    fn what_matters_stays_and_the_rest_goes() {
        let steps = draw(Profile::Swarm, 3, Duration::from_secs(600), &mut Random::new(1, "steps"));
        assert!(steps.len() > 30);
        let needed = [steps[3], steps[20]];
        let fails = |fewer: &[Step]| needed.iter().all(|step| fewer.contains(step));
        assert_eq!(shrink(&steps, 1000, fails), needed);
        assert!(shrink(&steps, 3, fails).len() > 2);
    }
}
