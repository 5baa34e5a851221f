//! Measuring: how a micro benchmark is timed and reported, so that its figures can be compared.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// The figures of one benchmark.
#[derive(Debug, Clone)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// Nanoseconds per operation, of each round, ascending.
    pub rounds_ns: Vec<f64>,
}

impl Figure {
    /// The median round.
    pub fn median_ns(&self) -> f64 {
        self.rounds_ns[self.rounds_ns.len() / 2]
    }

    /// The fastest and the slowest round.
    pub fn spread_ns(&self) -> (f64, f64) {
        (self.rounds_ns[0], self.rounds_ns[self.rounds_ns.len() - 1])
    }
}

/// A benchmark: runs some operations and says how long they took, without setting up and tearing down.
pub struct Benchmark {
    /// What is measured.
    pub name: &'static str,
    /// The name of the benchmark whose figure this one is put in relation to.
    pub baseline: Option<&'static str>,
    /// Operations in one round.
    pub operations: u64,
    /// Runs a round.
    pub run: Box<dyn Fn(u64) -> Duration>,
}

/// Runs the benchmarks in turn, round by round, so that a machine that becomes slower does so for all of them. One more round, the
/// first, warms up and does not count.
pub fn measure(benchmarks: &[Benchmark], rounds: usize, progress: impl Fn(usize, &str)) -> Vec<Figure> {
    let mut figures: Vec<Figure> = benchmarks
        .iter()
        .map(|benchmark| Figure { name: benchmark.name, rounds_ns: Vec::with_capacity(rounds) })
        .collect();
    for round in 0..=rounds {
        for (benchmark, figure) in benchmarks.iter().zip(&mut figures) {
            progress(round, benchmark.name);
            let took = (benchmark.run)(benchmark.operations);
            if round > 0 {
                figure.rounds_ns.push(took.as_nanos() as f64 / benchmark.operations as f64);
            }
        }
    }
    for figure in &mut figures {
        figure.rounds_ns.sort_by(f64::total_cmp);
    }
    figures
}

/// Times `f`.
pub fn time(f: impl FnOnce()) -> Duration {
    let started = Instant::now();
    f();
    started.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warm_up_does_not_count_and_the_median_is_the_middle() {
        let times = std::cell::RefCell::new(vec![5u64, 1, 3, 1000].into_iter());
        let run = Box::new(move |_| Duration::from_nanos(times.borrow_mut().next_back().unwrap_or(9)));
        let benchmark = Benchmark { name: "test", baseline: None, operations: 1, run };
        let figures = measure(&[benchmark], 3, |_, _| {});
        assert_eq!(figures[0].rounds_ns, [1.0, 3.0, 5.0]);
        assert_eq!(figures[0].median_ns(), 3.0);
        assert_eq!(figures[0].spread_ns(), (1.0, 5.0));
    }
}
