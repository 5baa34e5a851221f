//! What every test of the suite is made of: a crowd of fibers on two workers with a heartbeat on each, and servers that are started
//! for one test and stopped with it.
//!
//! The crates under test are unmodified and know nothing of fibers; no test may help one along.

pub mod crowd;
pub mod server;
