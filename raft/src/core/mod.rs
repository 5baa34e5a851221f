//! The pure Raft state machine: messages and ticks in, actions out.

pub mod types;
