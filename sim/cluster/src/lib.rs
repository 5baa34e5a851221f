//! A whole cluster of the real server in a simulated world: its nodes, clients, faults, and the checks that must hold throughout.
//!
//! [`run`] makes one run from a seed: which faults come when, what the clients do, how the network and the disks behave, are all
//! drawn from it. [`plan`] is what may go wrong, as data that can be drawn, written by hand, shortened and printed. [`watch`] sees every
//! entry that any node applies. [`history`] is what the clients saw.

#![forbid(unsafe_code)]

pub mod changes;
mod clients;
pub mod history;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod watch;
