//! Raft: a replicated log that survives crashes.
//!
//! - [`core`]: the algorithm as a pure state machine. No I/O, clock, thread, randomness or log line.
//! - [`wal`] and [`snapshot`]: what a member keeps on disk.
//! - `group`: the driver that runs one member of a group, in ordinary blocking style over `std`.
#![forbid(unsafe_code)]

pub mod core;
pub mod snapshot;
pub mod wal;
