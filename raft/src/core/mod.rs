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
//! compaction (5), joint consensus with automatic leave and learners (4.2, 4.3), leadership transfer (3.10). Both pre-vote and check-quorum are always on, since one without the other leaves a
//! node in a partial partition able either to depose a working leader or to keep a useless one.
//!
//! # Members
//!
//! The configuration is part of the log and in force from the moment it is appended; it is rolled back when its entry is
//! cut away, and a snapshot carries the one at its index. A leader starts a change only when it has committed an entry of
//! its own term and no other change is under way; it leaves a joint configuration by itself. A leader that is not in the
//! new configuration hands leadership on and steps down when that is committed.
//!
//! A member's disk has an incarnation. Answers of another one under the same id are not counted: a node whose data were
//! lost must not vote again as if it had promised nothing. Until the leader has heard from a member, which binds its
//! incarnation, a loss cannot be noticed; nor can it by a candidate that has missed everything since the group was founded.
//! Requests for votes are judged by their log alone, whoever sends them, since the receiver's configuration may be an old
//! one (dissertation, section 4.1); only a leader, whose own is the latest, tells strangers that they are.
//!
//! # Files
//!
//! `raft` the state machine; `log` the entries in memory and how far they are written, committed and
//! applied; `progress` what a leader knows of a peer; `membership` the configurations and their changes; `quorum` the arithmetic of majorities; `message`, `ready`,
//! `types` plain data; `config` the settings; `invariants` what must hold after every call.

mod config;
mod invariants;
mod log;
mod membership;
mod message;
mod progress;
pub mod quorum;
mod raft;
mod ready;
pub mod types;

pub use config::{Config, ConfigError};
pub use log::LogError;
pub use membership::{Member, MemberChange, Membership, MembershipError, Part};
pub use message::{Body, Message};
pub use progress::ProgressState;
pub use raft::{
    ChangeError, NewError, NotLeader, PeerStatus, Proposed, Raft, Status, StepError, TransferError,
};
pub use ready::{ReadState, Ready, Role, SoftState};
