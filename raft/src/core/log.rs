//! The log in memory: the entries since the last compaction, and how far they are written, committed and
//! applied. Decides nothing; `raft` does.

use std::collections::VecDeque;
use std::iter;
use std::sync::Arc;

use bytes::Bytes;

use super::membership::Membership;
use super::message::POSITION_MAX;
use super::types::{Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term};

/// The log recovered from disk cannot be one that this crate wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A hole, or an entry out of place.
    #[error("recovered log: entry {found} where {expected} must follow")]
    Gap {
        /// The index that must come next.
        expected: Index,
        /// The index that was found.
        found: Index,
    },
    /// Terms must not fall along the log, nor exceed the hard state's.
    #[error("recovered log: entry {index} has term {term}, outside {least}..={most}")]
    Term {
        /// The entry.
        index: Index,
        /// Its term.
        term: Term,
        /// The term of the entry before.
        least: Term,
        /// The hard state's term.
        most: Term,
    },
    /// An entry of the kind that holds a configuration does not.
    #[error(
        "recovered log: entry {index} should hold the group's members and cannot be read; was it written by a later release?"
    )]
    Members {
        /// The entry.
        index: Index,
    },
    /// The log reaches back behind the snapshot, but was not what the snapshot was taken of.
    #[error("recovered log: it does not contain entry {} of term {}, at which the snapshot was taken", snapshot.index, snapshot.term)]
    Snapshot {
        /// The snapshot.
        snapshot: SnapshotMeta,
    },
}

/// A write that was handed to the owner and is not yet durable.
#[derive(Debug, Clone, Copy)]
struct Write {
    seq: u64,
    /// The log is durable up to here once the write is. Lowered when the log is cut below it, so a write that
    /// ends after its entries were replaced counts for nothing, even if the same entries came back since.
    covers: Index,
    hard_state: HardState,
}

/// Invariant: `base.index <= delivered <= committed <= last` and `persisted <= handed <= last`,
/// `applied <= delivered`, `base.index <= snapshot.index <= delivered`.
#[derive(Debug)]
pub(crate) struct Log {
    /// The entry before the first one kept.
    base: SnapshotMeta,
    /// The latest snapshot: what a peer gets that needs an entry at or below `base`.
    pub snapshot: SnapshotMeta,
    entries: VecDeque<Entry>,
    /// Bytes of commands in `entries`.
    pub bytes: u64,
    /// The configurations in the log, each from its index on, and the one in force at the snapshot.
    /// Invariant: not empty, indices rising, the first at or below the snapshot's.
    memberships: Vec<(Index, Arc<Membership>)>,
    /// A snapshot replaced the log and was not yet handed to the owner.
    restored: Option<SnapshotMeta>,
    /// Entries up to here were handed to the owner to write.
    handed: Index,
    writes: VecDeque<Write>,
    write_seq: u64,
    /// Entries up to here are durable.
    pub persisted: Index,
    pub committed: Index,
    /// Committed entries up to here were handed to the owner to apply.
    delivered: Index,
    /// Applied up to here.
    pub applied: Index,
}

impl Log {
    /// The log as recovered from disk: everything in it is durable. `membership` is the configuration at the snapshot. `entries`
    /// follow the snapshot, or begin before its end.
    pub fn new(
        snapshot: SnapshotMeta,
        membership: Membership,
        entries: Vec<Entry>,
        hard_state: HardState,
    ) -> Result<Log, LogError> {
        let mut entries = VecDeque::from(entries);
        // The first entry of a log that reaches back behind the snapshot serves as the base: what precedes it is
        // gone, and with it the term that an append before it would have to name.
        let base = match entries.pop_front_if(|first| first.index <= snapshot.index) {
            Some(Entry { index, term, .. }) => SnapshotMeta { index, term },
            None => snapshot,
        };
        let mut previous = base;
        let mut memberships = vec![(snapshot.index, Arc::new(membership))];
        for entry in &entries {
            if entry.index != previous.index + 1 || entry.index >= POSITION_MAX {
                return Err(LogError::Gap { expected: previous.index + 1, found: entry.index });
            }
            if entry.term < previous.term || entry.term > hard_state.term {
                let (index, term) = (entry.index, entry.term);
                return Err(LogError::Term { index, term, least: previous.term, most: hard_state.term });
            }
            if entry.kind == EntryKind::Members && entry.index > snapshot.index {
                let membership =
                    Membership::decode(&entry.data).ok_or(LogError::Members { index: entry.index })?;
                memberships.push((entry.index, Arc::new(membership)));
            }
            previous = SnapshotMeta { index: entry.index, term: entry.term };
        }
        let log = Log {
            base,
            snapshot,
            bytes: entries.iter().map(|e| e.data.len() as u64).sum(),
            entries,
            memberships,
            restored: None,
            handed: previous.index,
            writes: VecDeque::new(),
            write_seq: 0,
            persisted: previous.index,
            committed: hard_state.commit.min(previous.index).max(snapshot.index),
            delivered: snapshot.index,
            applied: snapshot.index,
        };
        match log.matches(snapshot.index, snapshot.term) {
            true => Ok(log),
            false => Err(LogError::Snapshot { snapshot }),
        }
    }

    pub fn first_index(&self) -> Index {
        self.base.index + 1
    }

    pub fn last_index(&self) -> Index {
        self.base.index + self.entries.len() as u64
    }

    pub fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base.term, |e| e.term)
    }

    /// The term at `index`; `None` when it is compacted or not there yet.
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entries.get(self.position(index)?).map(|e| e.term)
    }

    /// The latest configuration in the log, which is the one in force, and where it stands (or the snapshot that has it).
    pub fn membership(&self) -> (Index, &Arc<Membership>) {
        self.memberships.last().map(|(index, membership)| (*index, membership)).expect("never empty")
    }

    /// The configuration at `index`, not below the latest snapshot.
    pub fn membership_at(&self, index: Index) -> &Arc<Membership> {
        let known = self.memberships.partition_point(|(at, _)| *at <= index);
        &self.memberships[known.max(1) - 1].1
    }

    /// Whether `id` votes in a configuration that may be the group's: the last committed one, or a later one.
    pub fn may_vote(&self, id: NodeId) -> bool {
        let committed = self.memberships.partition_point(|(index, _)| *index <= self.committed);
        self.memberships[committed.max(1) - 1..].iter().any(|(_, membership)| membership.is_voter(id))
    }

    /// How many configurations in the log are not known to be committed.
    pub fn memberships_uncommitted(&self) -> usize {
        self.memberships.iter().filter(|(index, _)| *index > self.committed).count()
    }

    pub fn matches(&self, index: Index, term: Term) -> bool {
        self.term(index) == Some(term)
    }

    /// Whether a candidate with this last entry may lead (Raft paper, section 5.4.1).
    pub fn is_behind_or_equal(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last_index())
    }

    /// The last index at or below `index` whose term is at most `term`, and its term: where two logs may still
    /// agree if one of them has `term` at `index` (section 5.3, skipping whole terms). Not below the base.
    pub fn agree_at_most(&self, index: Index, term: Term) -> (Index, Term) {
        let known = self.entries.partition_point(|e| e.index <= index && e.term <= term);
        match known.checked_sub(1).and_then(|at| self.entries.get(at)) {
            Some(entry) => (entry.index, entry.term),
            None => (self.base.index.min(index), self.base.term),
        }
    }

    /// Entries from `from` on, as many as fit in `bytes_max`, but at least one if there is any.
    pub fn slice(&self, from: Index, bytes_max: usize) -> (Vec<Entry>, usize) {
        let mut bytes = 0;
        let mut taken = Vec::new();
        let start = self.position(from).unwrap_or(self.entries.len());
        for entry in self.entries.range(start.min(self.entries.len())..) {
            if !taken.is_empty() && bytes + entry.data.len() > bytes_max {
                break;
            }
            bytes += entry.data.len();
            taken.push(entry.clone());
        }
        (taken, bytes)
    }

    /// The first of the entries up to `last` of which at most `count` with `bytes_max` bytes are kept.
    pub fn start_of_last(&self, last: Index, count: u64, bytes_max: u64) -> Index {
        let mut start = last + 1;
        let mut bytes = 0;
        while start > self.first_index() && last + 1 - start < count {
            let Some(entry) = self.position(start - 1).and_then(|at| self.entries.get(at)) else { break };
            bytes += entry.data.len() as u64;
            if bytes > bytes_max {
                break;
            }
            start -= 1;
        }
        start
    }

    /// Appends as the leader of `term`. Returns the new entry's index.
    pub fn push(&mut self, term: Term, kind: EntryKind, data: Bytes) -> Index {
        let index = self.last_index() + 1;
        self.put(Entry { index, term, kind, data });
        index
    }

    fn put(&mut self, entry: Entry) {
        self.bytes += entry.data.len() as u64;
        if entry.kind == EntryKind::Members {
            // Whatever comes from outside was looked at before: see `Message::check_shape` and `Log::new`.
            let membership = Membership::decode(&entry.data).expect("checked before it got here");
            self.memberships.push((entry.index, Arc::new(membership)));
        }
        self.entries.push_back(entry);
    }

    /// The first of `entries` that differs from the log or lies beyond it, as a position in `entries`.
    pub fn first_new(&self, entries: &[Entry]) -> Option<usize> {
        entries.iter().position(|e| !self.matches(e.index, e.term))
    }

    /// Puts `entries` in place of whatever stands at their first index and after. The caller has checked that
    /// they follow an entry of this log and that nothing committed is replaced.
    pub fn replace_suffix(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut entries = entries.into_iter();
        let Some(first) = entries.next() else { return };
        let keep = first.index - 1;
        while self.last_index() > keep {
            let Some(cut) = self.entries.pop_back() else { break };
            self.bytes -= cut.data.len() as u64;
        }
        self.handed = self.handed.min(keep);
        self.persisted = self.persisted.min(keep);
        for write in &mut self.writes {
            write.covers = write.covers.min(keep);
        }
        // A configuration that is cut away is no longer in force. The first one is never cut: it is committed.
        while self.memberships.len() > 1 && self.membership().0 > keep {
            self.memberships.pop();
        }
        for entry in iter::once(first).chain(entries) {
            self.put(entry);
        }
    }

    /// Returns whether that was progress.
    #[must_use]
    pub fn commit_to(&mut self, index: Index) -> bool {
        let news = index > self.committed;
        self.committed = self.committed.max(index);
        news
    }

    /// A snapshot, durable on this node's disk, takes the place of everything.
    pub fn restore(&mut self, snapshot: SnapshotMeta, membership: Membership) {
        self.memberships = vec![(snapshot.index, Arc::new(membership))];
        self.base = snapshot;
        self.snapshot = snapshot;
        self.entries.clear();
        self.bytes = 0;
        self.restored = Some(snapshot);
        self.handed = snapshot.index;
        for write in &mut self.writes {
            write.covers = 0;
        }
        self.persisted = 0;
        self.committed = snapshot.index;
        self.delivered = snapshot.index;
    }

    /// A snapshot was taken of the applied state; entries before `keep_from` are no longer needed.
    pub fn compact(&mut self, snapshot: SnapshotMeta, keep_from: Index) {
        // A snapshot from the leader may have overtaken it; one of a state not yet applied cannot be.
        if snapshot.index <= self.snapshot.index || snapshot.index > self.applied {
            return;
        }
        self.snapshot = snapshot;
        let known = self.memberships.partition_point(|(at, _)| *at <= snapshot.index);
        self.memberships.drain(..known.max(1) - 1);
        while self.base.index + 1 < keep_from.min(snapshot.index + 1) {
            let Some(gone) = self.entries.pop_front() else { break };
            self.bytes -= gone.data.len() as u64;
            self.base = SnapshotMeta { index: gone.index, term: gone.term };
        }
    }

    /// What must be written now: the snapshot that replaced the log, and the entries not yet handed out.
    pub fn take_unwritten(&mut self) -> (Option<SnapshotMeta>, Vec<Entry>) {
        let start = (self.handed - self.base.index) as usize;
        self.handed = self.last_index();
        (self.restored.take(), self.entries.range(start..).cloned().collect())
    }

    /// Numbers the write of everything handed out so far.
    pub fn begin_write(&mut self, hard_state: HardState) -> u64 {
        self.write_seq += 1;
        self.writes.push_back(Write { seq: self.write_seq, covers: self.handed, hard_state });
        self.write_seq
    }

    pub fn is_writing(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Writes up to `seq` are durable. Returns the hard state that now is, if any write ended.
    pub fn end_writes(&mut self, seq: u64) -> Option<HardState> {
        let mut durable = None;
        while let Some(write) = self.writes.pop_front_if(|w| w.seq <= seq) {
            self.persisted = self.persisted.max(write.covers);
            durable = Some(write.hard_state);
        }
        durable
    }

    /// Committed entries that are durable here and were not handed out before.
    pub fn take_committed(&mut self) -> Vec<Entry> {
        let to = self.committed.min(self.persisted);
        if to <= self.delivered {
            return Vec::new();
        }
        let range = (self.delivered - self.base.index) as usize..(to - self.base.index) as usize;
        self.delivered = to;
        self.entries.range(range).cloned().collect()
    }

    /// Ignores an index that was never delivered.
    pub fn set_applied(&mut self, index: Index) {
        if index <= self.delivered {
            self.applied = self.applied.max(index);
        }
    }

    pub fn check_invariants(&self) {
        assert!(self.base.index <= self.snapshot.index && self.snapshot.index <= self.delivered, "{self:?}");
        assert!(self.applied <= self.delivered && self.delivered <= self.committed, "{self:?}");
        assert!(self.committed <= self.last_index(), "{self:?}");
        assert!(self.persisted <= self.handed && self.handed <= self.last_index(), "{self:?}");
        assert!(self.writes.iter().all(|w| w.covers <= self.handed), "{self:?}");
        assert!(self.writes.iter().map(|w| w.seq).is_sorted_by(|a, b| a < b), "{self:?}");
        let rising = self.memberships.is_sorted_by(|(a, _), (b, _)| a < b);
        assert!(rising && self.memberships[0].0 <= self.snapshot.index, "{self:?}");
        assert!(self.membership().0 <= self.last_index(), "{self:?}");
        assert!(self.entries.front().is_none_or(|e| e.index == self.first_index()), "{self:?}");
    }

    /// Where `index` stands in `entries`, if it is not compacted.
    fn position(&self, index: Index) -> Option<usize> {
        index.checked_sub(self.base.index + 1).map(|at| at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: Index, term: Term) -> Entry {
        Entry { index, term, kind: EntryKind::Command, data: Bytes::from(vec![0; 10]) }
    }

    /// A log after a snapshot at index 2, term 1, with entries of these terms from index 3 on.
    fn log(terms: &[Term]) -> Log {
        let entries = (3..).zip(terms).map(|(index, &term)| entry(index, term)).collect();
        let snapshot = SnapshotMeta { index: 2, term: 1 };
        recovered(snapshot, entries, HardState { term: 9, vote: None, commit: 0 }).unwrap()
    }

    fn recovered(
        snapshot: SnapshotMeta,
        entries: Vec<Entry>,
        hard_state: HardState,
    ) -> Result<Log, LogError> {
        Log::new(snapshot, Membership::of_voters([1]), entries, hard_state)
    }

    fn members(index: Index, term: Term, voters: &[u64]) -> Entry {
        let data = Membership::of_voters(voters.iter().copied()).encode();
        Entry { index, term, kind: EntryKind::Members, data }
    }

    fn in_force(log: &Log) -> (Index, String) {
        let (index, membership) = log.membership();
        (index, membership.to_string())
    }

    #[test]
    fn a_recovered_log_with_a_hole_or_falling_terms_is_refused() {
        let new = |entries| {
            recovered(SnapshotMeta::default(), entries, HardState { term: 5, ..Default::default() })
        };
        assert_eq!(new(vec![entry(2, 1)]).unwrap_err(), LogError::Gap { expected: 1, found: 2 });
        assert_eq!(new(vec![entry(1, 1), entry(3, 1)]).unwrap_err(), LogError::Gap { expected: 2, found: 3 });
        assert!(matches!(new(vec![entry(1, 3), entry(2, 2)]), Err(LogError::Term { index: 2, .. })));
        assert!(matches!(new(vec![entry(1, 6)]), Err(LogError::Term { index: 1, most: 5, .. })));
    }

    #[test]
    fn a_recovered_log_may_reach_back_behind_the_snapshot_if_it_contains_it() {
        let hard_state = HardState { term: 5, ..HardState::default() };
        let entries = || vec![entry(3, 1), entry(4, 2), entry(5, 2)];
        let log = recovered(SnapshotMeta { index: 4, term: 2 }, entries(), hard_state).unwrap();
        assert_eq!((log.first_index(), log.term(3), log.last_index(), log.committed), (4, Some(1), 5, 4));
        log.check_invariants();
        let snapshot = SnapshotMeta { index: 4, term: 3 };
        assert_eq!(recovered(snapshot, entries(), hard_state).unwrap_err(), LogError::Snapshot { snapshot });
        let snapshot = SnapshotMeta { index: 9, term: 3 };
        assert_eq!(recovered(snapshot, entries(), hard_state).unwrap_err(), LogError::Snapshot { snapshot });
    }

    #[test]
    fn a_configuration_is_in_force_while_it_is_in_the_log() {
        let mut log = log(&[1]);
        assert_eq!(in_force(&log), (2, "voters 1".into()), "the snapshot's");
        log.replace_suffix([members(4, 2, &[1, 2]), entry(5, 2), members(6, 2, &[1, 2, 3])]);
        assert_eq!(in_force(&log), (6, "voters 1 2 3".into()));
        assert_eq!(log.memberships_uncommitted(), 2);
        log.replace_suffix([entry(5, 3)]);
        assert_eq!(in_force(&log), (4, "voters 1 2".into()), "what was cut away is no longer in force");
        log.replace_suffix([entry(4, 4)]);
        assert_eq!(in_force(&log), (2, "voters 1".into()));
        log.push(5, EntryKind::Members, Membership::of_voters([9]).encode());
        assert_eq!(in_force(&log), (5, "voters 9".into()));
        assert_eq!(log.membership_at(4).to_string(), "voters 1");
        log.check_invariants();
    }

    #[test]
    fn compaction_keeps_the_configuration_at_the_snapshot() {
        let mut log = log(&[]);
        log.replace_suffix([members(3, 2, &[1, 2]), members(4, 2, &[1, 2, 3]), members(5, 2, &[3])]);
        log.take_unwritten();
        let seq = log.begin_write(HardState::default());
        log.end_writes(seq);
        assert!(log.commit_to(4));
        log.take_committed();
        log.set_applied(4);
        log.compact(SnapshotMeta { index: 4, term: 2 }, 5);
        assert_eq!(log.membership_at(4).to_string(), "voters 1 2 3");
        assert_eq!(in_force(&log), (5, "voters 3".into()));
        log.replace_suffix([entry(5, 6)]);
        assert_eq!(in_force(&log), (4, "voters 1 2 3".into()));
        log.check_invariants();
    }

    #[test]
    fn recovered_configurations_count_from_the_snapshot_on() {
        let snapshot = SnapshotMeta { index: 4, term: 1 };
        let hard_state = HardState { term: 1, ..HardState::default() };
        let entries = vec![members(3, 1, &[8]), members(4, 1, &[9]), members(5, 1, &[1, 2])];
        let log = recovered(snapshot, entries, hard_state).unwrap();
        assert_eq!(in_force(&log), (5, "voters 1 2".into()));
        assert_eq!(log.membership_at(4).to_string(), "voters 1", "the snapshot's own");
        let damaged = Entry { data: Bytes::from_static(b"?"), ..members(1, 1, &[]) };
        let refused = recovered(SnapshotMeta::default(), vec![damaged], hard_state);
        assert_eq!(refused.unwrap_err(), LogError::Members { index: 1 });
    }

    #[test]
    fn what_is_kept_for_laggards_is_limited_in_count_and_bytes() {
        let log = log(&[1, 1, 1, 1]);
        assert_eq!(log.start_of_last(5, 2, 1000), 4);
        assert_eq!(log.start_of_last(5, 9, 25), 4);
        assert_eq!(log.start_of_last(5, 9, 1000), 3);
        assert_eq!(log.start_of_last(5, 0, 1000), 6);
    }

    #[test]
    fn a_commit_hint_beyond_the_log_is_cut_to_it() {
        let hard_state = HardState { term: 1, vote: None, commit: 9 };
        let log = recovered(SnapshotMeta::default(), vec![entry(1, 1)], hard_state).unwrap();
        assert_eq!(log.committed, 1);
    }

    #[test]
    fn slices_respect_the_byte_limit_but_never_starve() {
        let log = log(&[1, 1, 1]);
        assert_eq!(log.slice(3, 25).0.len(), 2);
        assert_eq!(log.slice(4, 0).0, vec![entry(4, 1)]);
        assert_eq!(log.slice(6, 100), (vec![], 0));
        assert_eq!(log.slice(9, 100), (vec![], 0));
    }

    #[test]
    fn agree_at_most_skips_whole_terms_and_stops_at_the_base() {
        let log = log(&[1, 1, 4, 4, 6]);
        assert_eq!(log.agree_at_most(7, 5), (6, 4));
        assert_eq!(log.agree_at_most(6, 3), (4, 1));
        assert_eq!(log.agree_at_most(100, 6), (7, 6));
        assert_eq!(log.agree_at_most(6, 0), (2, 1));
    }

    #[test]
    fn a_write_that_ends_after_its_entries_were_replaced_counts_for_nothing() {
        let mut log = log(&[]);
        log.replace_suffix([entry(3, 2), entry(4, 2)]);
        assert_eq!(log.take_unwritten().1.len(), 2);
        let first = log.begin_write(HardState::default());
        log.replace_suffix([entry(4, 3)]);
        assert_eq!(log.take_unwritten().1, vec![entry(4, 3)]);
        let second = log.begin_write(HardState::default());
        // The very same entry comes back: a check by index and term alone would now be fooled.
        log.replace_suffix([entry(4, 2)]);
        log.take_unwritten();
        let third = log.begin_write(HardState::default());
        log.end_writes(first);
        assert_eq!(log.persisted, 3);
        log.end_writes(second);
        assert_eq!(log.persisted, 3);
        log.end_writes(third);
        assert_eq!(log.persisted, 4);
        assert!(!log.is_writing());
    }

    #[test]
    fn only_durable_entries_are_delivered() {
        let mut log = log(&[]);
        log.replace_suffix([entry(3, 2), entry(4, 2)]);
        assert!(log.commit_to(4));
        assert!(log.take_committed().is_empty());
        log.take_unwritten();
        let seq = log.begin_write(HardState::default());
        log.end_writes(seq);
        assert_eq!(log.take_committed().len(), 2);
        assert!(log.take_committed().is_empty());
    }

    #[test]
    fn compaction_keeps_what_it_is_told_and_ignores_an_older_snapshot() {
        let mut log = log(&[1, 1, 2, 2]);
        assert!(log.commit_to(6));
        log.take_committed();
        log.compact(SnapshotMeta { index: 5, term: 2 }, 4);
        assert_eq!(log.first_index(), 3, "not applied yet");
        log.set_applied(6);
        log.compact(SnapshotMeta { index: 5, term: 2 }, 4);
        assert_eq!((log.first_index(), log.term(3), log.term(2)), (4, Some(1), None));
        assert_eq!(log.bytes, 30);
        log.compact(SnapshotMeta { index: 4, term: 1 }, 5);
        assert_eq!((log.snapshot.index, log.first_index()), (5, 4));
        log.check_invariants();
    }

    #[test]
    fn a_restored_snapshot_replaces_everything_and_is_durable_only_when_written() {
        let mut log = log(&[1, 1]);
        log.restore(SnapshotMeta { index: 50, term: 4 }, Membership::of_voters([7]));
        assert_eq!(in_force(&log), (50, "voters 7".into()));
        assert_eq!((log.last_index(), log.last_term(), log.committed, log.persisted), (50, 4, 50, 0));
        assert_eq!(log.take_unwritten(), (Some(SnapshotMeta { index: 50, term: 4 }), vec![]));
        let seq = log.begin_write(HardState::default());
        log.end_writes(seq);
        assert_eq!(log.persisted, 50);
    }
}
