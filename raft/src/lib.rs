//! Raft: a replicated log that survives crashes.
//!
//! - [`core`]: the algorithm as a pure state machine. No I/O, clock, thread, randomness or log line.
//! - [`wal`] and [`snapshot`]: what a member keeps on disk.
//! - [`group`]: the driver that runs one member of a group, in ordinary blocking style over `std`.
//!
//! Sending messages belongs to the user, who implements [`group::Transport`], and so does the replicated
//! state, a [`group::StateMachine`].
//!
//! [`planted`] has known mistakes for the simulation to find; an ordinary build cannot make them.
#![forbid(unsafe_code)]

pub mod core;
mod error;
pub mod group;
pub mod planted;
pub mod snapshot;
mod spawn;
pub mod wal;

pub use error::RaftError;
pub(crate) use spawn::{JoinHandle, spawn};
