//! The replicated state machine: the store and the sessions, changed by log entries alone.
//!
//! Two machines that were given the same entries hold the same state, byte for byte in their snapshots. All
//! that may differ between nodes, the leader's clock and its configured limits, is stamped into the entry.
//! Log time never goes back: an entry stamped by a leader whose clock is behind runs at the time of the one
//! before it.
//!
//! Expired keys are removed as entries are applied, a bounded number for each. On an idle cluster nothing is
//! applied, so the leader should propose [`Proposal::tick`] while [`KvMachine::is_tick_due`] says so.

mod proposal;
mod snapshot;

use std::io::Read;

use bytes::Bytes;

use crate::command::{self, Context};
use crate::resp::Reply;
use crate::session::{Admission, SessionError, SessionLimits, Sessions};
use crate::store::{Change, SnapshotError, Store};
use squall_raft::planted::{Mistake, planted};

pub use proposal::{Proposal, ProposalError};
pub use snapshot::MachineView;

/// How many expired keys an entry removes, and how many more for each argument of its commands. A command gives an
/// expiry to one key at most and has more arguments than one, so removal keeps pace with any traffic.
const PURGED_PER_ENTRY: usize = 64;
const PURGED_PER_ARGUMENT: usize = 1;

/// What must be the same on all replicas of a cluster, or they diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineOptions {
    /// Keys the hash that orders the store. The cluster's id serves well: clients are not told it.
    pub hash_key: u128,
    /// The bounds of the session table.
    pub sessions: SessionLimits,
}

/// A committed entry that was not executed. Every replica finds the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The client's request may not run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The entry's bytes are not a proposal of a release that this one knows.
    #[error(transparent)]
    Proposal(#[from] ProposalError),
}

/// Figures about the state, for display.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineStats {
    /// How many keys are visible.
    pub keys: u64,
    /// How many keys have an expiry, the expired ones still in memory among them.
    pub expiring_keys: u64,
    /// The memory accounted to keys and values, in bytes.
    pub store_bytes: u64,
    /// How many sessions are remembered.
    pub sessions: u64,
    /// The latest log time, in milliseconds since the Unix epoch.
    pub log_time_ms: u64,
}

/// The store and the sessions of one node.
#[derive(Debug)]
pub struct KvMachine {
    options: MachineOptions,
    store: Store,
    sessions: Sessions,
    log_time_ms: u64,
}

impl KvMachine {
    /// The machine before the first entry.
    pub fn new(options: MachineOptions) -> Self {
        Self {
            options,
            store: Store::new(options.hash_key),
            sessions: Sessions::new(options.sessions),
            log_time_ms: 0,
        }
    }

    /// What entries have changed since this was called last. To be called after each [`KvMachine::apply`]: until then it takes memory.
    pub fn take_changes(&mut self) -> impl Iterator<Item = Change> + '_ {
        self.store.take_changes()
    }

    /// The number of a check that an entry has asked for since this was called last: a sum over the state as it is now is wanted, on every
    /// replica.
    pub fn take_check(&mut self) -> Option<u64> {
        self.store.take_check()
    }

    /// How many changes there have been.
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// Applies a committed entry and returns a reply for each of its commands.
    ///
    /// # Errors
    /// [`ApplyError`]: no command was executed.
    pub fn apply(&mut self, entry: &Bytes) -> Result<Vec<Reply>, ApplyError> {
        let proposal = Proposal::decode(entry)?;
        let mut now_ms = proposal.now_ms;
        if planted(Mistake::ExpiryByOwnClock) {
            now_ms = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
        }
        self.log_time_ms = self.log_time_ms.max(now_ms);
        let context = Context { now_ms: self.log_time_ms, value_bytes_max: proposal.value_bytes_max };
        // Counted in arguments, because a transaction is a command with others in it.
        let arguments = proposal.commands.iter().map(Vec::len).sum::<usize>();
        let purged_max = PURGED_PER_ENTRY + PURGED_PER_ARGUMENT * arguments;
        self.store.purge_expired(context.now_ms, purged_max);
        self.store.free_cleared();

        self.run(&proposal, &context)
    }

    fn run(&mut self, proposal: &Proposal, context: &Context) -> Result<Vec<Reply>, ApplyError> {
        if let Some((client_id, seq)) = proposal.session
            && let Admission::Repeat(replies) = self.sessions.admit(client_id, seq, context.now_ms)?
        {
            return Ok(replies);
        }
        let run = |arguments: &Vec<Bytes>| command::execute(&mut self.store, context, arguments);
        let replies: Vec<Reply> = proposal.commands.iter().map(run).collect();
        if let Some((client_id, seq)) = proposal.session {
            self.sessions.record(client_id, seq, context.now_ms, &replies);
        }
        Ok(replies)
    }

    /// Answers commands that only read, as of `now_ms` or the log's time, whichever is later. What an applied
    /// entry saw expire stays expired, even for a reader whose clock is behind.
    pub fn query(&self, now_ms: u64, commands: &[Vec<Bytes>]) -> Vec<Reply> {
        // Reads append nothing, so the limit on values does not matter.
        let context = Context { now_ms: self.log_time_ms.max(now_ms), value_bytes_max: 0 };
        commands.iter().map(|arguments| command::query(&self.store, &context, arguments)).collect()
    }

    /// Whether keys that have expired at `now_ms`, or were cleared, are still in memory.
    pub fn is_tick_due(&self, now_ms: u64) -> bool {
        self.tick_due_ms().is_some_and(|due_ms| due_ms <= now_ms.max(self.log_time_ms))
    }

    /// From when on [`KvMachine::is_tick_due`] says so, if nothing is written meanwhile; `None` if never.
    pub fn tick_due_ms(&self) -> Option<u64> {
        if self.store.has_cleared() { Some(0) } else { self.store.next_expiry_ms() }
    }

    /// Figures about the state at `now_ms`.
    pub fn stats(&self, now_ms: u64) -> MachineStats {
        MachineStats {
            keys: self.store.len(now_ms.max(self.log_time_ms)) as u64,
            expiring_keys: self.store.expiring_len() as u64,
            store_bytes: self.store.bytes(),
            sessions: self.sessions.len() as u64,
            log_time_ms: self.log_time_ms,
        }
    }

    /// A view of the state as it is now, to be written as a snapshot by another activity while entries are
    /// applied. Takes well under a millisecond for the store, and time proportional to the number of
    /// sessions.
    pub fn view(&self) -> MachineView {
        MachineView::new(self.store.view(), self.sessions.view(), self.log_time_ms)
    }

    /// Replaces the state by that of a snapshot, or leaves it as it is if that cannot be read.
    ///
    /// # Errors
    /// As [`KvMachine::read_snapshot`].
    ///
    /// # Blocking
    /// As `input` does, and until the former state is freed.
    pub fn restore(&mut self, input: &mut dyn Read) -> Result<(), SnapshotError> {
        *self = Self::read_snapshot(self.options, input)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: MachineOptions = MachineOptions {
        hash_key: 42,
        sessions: SessionLimits { sessions_max: 4, idle_ms_max: 1000, reply_bytes_max: 1000 },
    };

    fn entry(session: Option<(u128, u64)>, now_ms: u64, lines: &[&str]) -> Bytes {
        let words =
            |line: &&str| line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let commands = lines.iter().map(words).collect();
        Proposal { session, now_ms, value_bytes_max: 100, commands }.encode()
    }

    fn snapshot(machine: &KvMachine) -> Vec<u8> {
        let mut bytes = Vec::new();
        machine.view().write_snapshot(&mut bytes).unwrap();
        bytes
    }

    fn restore(bytes: &[u8]) -> Result<KvMachine, SnapshotError> {
        KvMachine::read_snapshot(OPTIONS, &mut &bytes[..])
    }

    fn get(machine: &KvMachine, now_ms: u64, key: &str) -> Reply {
        let command = vec![Bytes::from("GET"), Bytes::copy_from_slice(key.as_bytes())];
        machine.query(now_ms, &[command]).remove(0)
    }

    #[test]
    fn a_batch_is_executed_in_order() {
        let mut machine = KvMachine::new(OPTIONS);
        let replies =
            machine.apply(&entry(None, 1, &["SET a 1", "INCR a", "GET a", "NOSUCH", "INCR a"])).unwrap();
        assert_eq!(replies[..3], [Reply::OK, Reply::Integer(2), Reply::bulk("2")]);
        assert!(replies[3].is_error());
        assert_eq!(replies[4], Reply::Integer(3));
    }

    #[test]
    fn a_repeated_request_runs_once_also_after_a_restart_from_a_snapshot() {
        let mut machine = KvMachine::new(OPTIONS);
        let request = entry(Some((7, 1)), 1, &["INCR a", "INCR a"]);
        let replies = machine.apply(&request).unwrap();
        assert_eq!(machine.apply(&request).unwrap(), replies);
        let bytes = snapshot(&machine);
        assert!(machine.restore(&mut &bytes[1..]).is_err());
        machine.restore(&mut &bytes[..]).unwrap();
        assert_eq!(machine.apply(&request).unwrap(), replies);
        assert_eq!(get(&machine, 1, "a"), Reply::bulk("2"));
        assert_eq!(
            machine.apply(&entry(Some((8, 2)), 1, &["INCR a"])),
            Err(SessionError::Expired { seq: 2 }.into())
        );
        assert_eq!(get(&machine, 1, "a"), Reply::bulk("2"));
    }

    #[test]
    fn log_time_never_goes_back() {
        let mut machine = KvMachine::new(OPTIONS);
        machine.apply(&entry(None, 1000, &["SET a 1 PX 10", "SET b 1 PX 100"])).unwrap();
        machine.apply(&entry(None, 1050, &[])).unwrap();
        assert_eq!(get(&machine, 0, "a"), Reply::Nil);
        let replies =
            machine.apply(&entry(None, 5, &["GET a", "PTTL b", "SET c 1 PX 10", "PEXPIRETIME c"])).unwrap();
        assert_eq!(replies, [Reply::Nil, Reply::Integer(50), Reply::OK, Reply::Integer(1060)]);
        assert_eq!(get(&machine, 1100, "b"), Reply::Nil, "a later reader sees the later expiry");
    }

    #[test]
    fn ticks_purge_what_has_expired_in_bounded_amounts() {
        let mut machine = KvMachine::new(OPTIONS);
        for key in 0..150 {
            machine.apply(&entry(None, 1, &[&format!("SET {key} v PX 10")])).unwrap();
        }
        assert!(!machine.is_tick_due(10));
        let mut ticks = 0;
        while machine.is_tick_due(11) {
            assert_eq!(machine.stats(11).keys, 0);
            machine.apply(&Proposal::tick(11).encode()).unwrap();
            ticks += 1;
        }
        assert_eq!(ticks, 3);
        assert_eq!(machine.stats(0), MachineStats { log_time_ms: 11, ..MachineStats::default() });
    }

    #[test]
    fn a_malformed_entry_is_an_error_and_changes_nothing() {
        let mut machine = KvMachine::new(OPTIONS);
        machine.apply(&entry(None, 1, &["SET a 1"])).unwrap();
        let before = snapshot(&machine);
        let valid = entry(Some((1, 1)), 99, &["SET a 2"]);
        for length in 0..valid.len() {
            assert!(machine.apply(&valid.slice(..length)).is_err(), "{length} bytes");
        }
        let trailing = Bytes::from([&valid[..], b"x"].concat());
        assert!(machine.apply(&trailing).is_err());
        assert_eq!(snapshot(&machine), before);
    }

    #[test]
    fn a_damaged_snapshot_is_refused() {
        let mut machine = KvMachine::new(OPTIONS);
        machine.apply(&entry(Some((1, 1)), 1, &["SET a 1", "SET b 2 EX 5"])).unwrap();
        let bytes = snapshot(&machine);
        for length in 0..bytes.len() {
            assert!(restore(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[index] ^= 1 << bit;
                assert!(restore(&flipped).is_err(), "bit {bit} of byte {index}");
            }
        }
        assert!(matches!(restore(&[&bytes[..], b"x"].concat()), Err(SnapshotError::Damaged(_))));
        let mut newer = bytes.clone();
        newer[8] = 9;
        assert!(matches!(restore(&newer), Err(SnapshotError::UnknownVersion { found: 9, .. })));
        assert!(matches!(restore(b"something else"), Err(SnapshotError::NotASnapshot)));
    }

    /// Log entries that touch few keys, so that they meet often.
    fn entries() -> impl Strategy<Value = Vec<Bytes>> {
        let key = || prop::sample::select(vec!["a", "b", "c", "d"]);
        let line = prop_oneof![
            (key(), 0..50_u32).prop_map(|(key, value)| format!("SET {key} {value}")),
            (key(), 1..90_u32).prop_map(|(key, px)| format!("SET {key} 1 PX {px}")),
            (key(), 1..90_u32).prop_map(|(key, px)| format!("PEXPIRE {key} {px} GT")),
            (key(), 0..9_u32).prop_map(|(key, suffix)| format!("APPEND {key} {suffix}")),
            key().prop_map(|key| format!("INCR {key}")),
            key().prop_map(|key| format!("GETDEL {key}")),
            (key(), key()).prop_map(|(a, b)| format!("DEL {a} {b}")),
            (key(), key()).prop_map(|(a, b)| format!("MSET {a} 1 {b} x")),
            Just("RANDOMKEY".to_owned()),
            Just("SCAN 0 COUNT 2".to_owned()),
            Just("FLUSHALL".to_owned()),
            Just("SET a 1 EX nonsense".to_owned()),
        ];
        let session = prop::option::of((1_u128..7, 1_u64..5));
        let proposal =
            (session, 0_u64..300, prop::collection::vec(line, 0..4)).prop_map(|(session, now_ms, lines)| {
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                entry(session, now_ms, &lines)
            });
        let garbage = prop::collection::vec(any::<u8>(), 0..30).prop_map(Bytes::from);
        prop::collection::vec(prop_oneof![9 => proposal, 1 => garbage], 0..60)
    }

    proptest! {
        #[test]
        fn replicas_agree_also_when_one_restarts_from_a_snapshot(entries in entries(), restart in 0_usize..60) {
            let mut steady = KvMachine::new(OPTIONS);
            let mut restarted = KvMachine::new(OPTIONS);
            for (index, entry) in entries.iter().enumerate() {
                if index == restart {
                    restarted = restore(&snapshot(&restarted)).unwrap();
                }
                prop_assert_eq!(steady.apply(entry), restarted.apply(entry));
            }
            let bytes = snapshot(&steady);
            prop_assert_eq!(&snapshot(&restarted), &bytes);
            prop_assert_eq!(&snapshot(&restore(&bytes).unwrap()), &bytes);
        }

        #[test]
        fn reading_arbitrary_bytes_as_a_snapshot_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let framed = [b"SQUALLKV\x02\0\0\0".as_slice(), &bytes].concat();
            prop_assert!(restore(&framed).is_err());
        }
    }
}
