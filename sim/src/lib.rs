//! The simulated operating system.
//!
//! This crate will own `SimOs`, the second implementation of the hook layer's `Os` seam: virtual time, randomness,
//! network, disks and processes, all drawn from one seed, so that a whole cluster of the real, unmodified server
//! runs inside one deterministic test process; with it the nemesis, the invariant and linearizability checkers and
//! the seed runner. It is the only library allowed to look at every other crate, and nothing may depend on it.
//!
//! It is empty on purpose: the seam exists (see `squall_hook::Os`), its simulated side does not yet.
#![forbid(unsafe_code)]
