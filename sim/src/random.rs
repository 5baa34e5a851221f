//! Randomness that comes from the seed alone.
//!
//! Every purpose has a stream of its own, so that a further draw for one (a fault left out, a test that asks for a number) does not change
//! what all the others get.

use core::ops::Range;
use std::time::Duration;

/// A stream of random numbers.
///
/// ```
/// use squall_sim::Random;
/// let draw = |purpose| Random::new(7, purpose).below(1_000_000);
/// assert_eq!(draw("network"), draw("network"));
/// assert_ne!(draw("network"), draw("disk"));
/// ```
#[derive(Debug, Clone)]
pub struct Random(fastrand::Rng);

impl Random {
    /// The stream of a seed for a purpose.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a of the purpose, spread by the seed's own bits.
        let name = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(fastrand::Rng::with_seed(name ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    /// A number below `limit`.
    ///
    /// # Panics
    /// If `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit)
    }

    /// An index of a collection of `length`.
    ///
    /// # Panics
    /// If `length` is 0.
    pub fn index(&mut self, length: usize) -> usize {
        self.0.usize(..length)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// A time in a range, each as likely; its start if the range is empty.
    pub fn duration(&mut self, range: Range<Duration>) -> Duration {
        let (start, end) = (range.start.as_nanos() as u64, range.end.as_nanos() as u64);
        Duration::from_nanos(if start < end { self.0.u64(start..end) } else { start })
    }

    /// A time around `typical`: mostly less, sometimes many times as long.
    pub fn skewed(&mut self, typical: Duration) -> Duration {
        let unit = self.0.f64();
        typical.mul_f64(0.5 + unit + 8.0 * unit.powi(8))
    }

    /// One of several.
    ///
    /// # Panics
    /// If there are none.
    pub fn choice<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Puts them in any order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.u64(..)
    }
}
