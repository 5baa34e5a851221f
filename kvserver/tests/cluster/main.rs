//! Clusters of real processes: what an operator and a client rely on, above all while something fails.
//!
//! One program, so that the number of clusters that run at the same time can be limited. Nothing asserts how fast
//! something is, beyond bounds that only a broken cluster misses.

#[path = "../harness/mod.rs"]
mod harness;

mod auth;
mod bad_input;
mod basics;
mod clerk_exactly_once;
mod expiry;
mod failover;
mod fibers;
mod kvctl;
mod members;
mod no_quorum;
mod pause;
mod restart;
mod stop;
mod transactions;
mod watch;
