//! The pure Raft state machine: messages and ticks in, actions out.
//!
//! # Contract
//!
//! [`Raft`] does no I/O, reads no clock, draws no random number and starts nothing. Its owner
//!
//! 1. feeds it: [`tick`](Raft::tick) at a fixed pace, [`step`](Raft::step) for every message of a peer,
//!    [`propose`](Raft::propose) and [`read_index`](Raft::read_index) for clients;
//! 2. then takes [`ready`](Raft::ready) until it returns `None`, and carries out each [`Ready`]:
//!    - `messages` are sent at once, before or beside the disk;
//!    - `hard_state`, `snapshot` and `entries` are written in the order of [`Ready::seq`] and synced; when write
//!      `n` is durable (then so is every write before it) the owner sends the `messages_after_persist` of all
//!      writes up to `n`, and calls [`persisted(n)`](Raft::persisted). Any number of writes may be under way;
//!    - `committed` entries (after restoring `snapshot`, if there is one) are applied in order, later reported by
//!      [`applied`](Raft::applied);
//!    - a read of `read_states` may be answered once its index is applied.
//!
//! Two messages depend on the disk: a granted vote and a successful append. A lost one of these would
//! be a broken promise after a crash; everything else may be lost or sent early. By the same rule a leader
//! sends entries to its followers while its own disk still writes them, and counts itself towards a
//! quorum only when `persisted` says so, and a candidate leads only when its vote for itself is durable
//! (else, after a crash, it could lead the same term twice with two different logs).
//!
//! The same inputs give the same outputs: nothing here iterates in an order that is not sorted.
//!
//! # What it implements
//!
//! The Raft paper's election, replication and commit rule (sections 5.2 to 5.4), and from the
//! dissertation: pre-vote and check-quorum (9.6, 6.2), the no-op that opens a term (6.4), ReadIndex (6.4), log
//! compaction (5). Both pre-vote and check-quorum are always on, since one without the other leaves a
//! node in a partial partition able either to depose a working leader or to keep a useless one.
//!
//! # Files
//!
//! `raft` the state machine; `log` the entries in memory and how far they are written, committed and
//! applied; `progress` what a leader knows of a peer; `quorum` the arithmetic of majorities; `message`, `ready`,
//! `types` plain data; `config` the settings; `invariants` what must hold after every call.

mod config;
mod invariants;
mod log;
mod message;
mod progress;
pub mod quorum;
mod raft;
mod ready;
pub mod types;

pub use config::{Config, ConfigError};
pub use log::LogError;
pub use message::{Body, Message};
pub use progress::ProgressState;
pub use raft::{NewError, NotLeader, PeerStatus, Proposed, Raft, Status, StepError};
pub use ready::{ReadState, Ready, Role, SoftState};
