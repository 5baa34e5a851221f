//! What the members of a group do, side by side: properties of Raft that no member can see alone.

use bytes::Bytes;
use squall_raft::core::types::{Entry, Index, NodeId, SnapshotMeta, Term};
use squall_raft::core::{Role, SoftState};
use squall_raft::group::Observer;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often states are compared: every so many entries.
const STATE_INTERVAL: Index = 200;

/// Compares the members of one group. Nothing is ever taken back: once a property is broken, [`Watch::violations`] says so.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    leaders: BTreeMap<Term, NodeId>,
    /// What any log has ever had at an index in a term, and the term of the entry before, where that was seen.
    written: BTreeMap<(Index, Term), (Bytes, Option<Term>)>,
    /// What was applied at each index, by whoever did so first.
    log: BTreeMap<Index, (Term, Bytes)>,
    /// The state at some indices.
    states: BTreeMap<Index, (NodeId, Vec<u8>)>,
    members: BTreeMap<NodeId, Member>,
    violations: Vec<String>,
}

#[derive(Debug, Default)]
struct Member {
    part: Option<SoftState>,
    /// The terms of the entries in its log, as far as it has told; the first key may be its snapshot's.
    log: BTreeMap<Index, Term>,
    committed: Index,
    applied: Option<Index>,
    /// The last entry that it has ever applied, in any of its lives: nothing is applied that is not on its own disk.
    kept: Index,
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is about to be started: what it knew only in memory is gone.
    pub fn starts(&self, node: NodeId) {
        let mut seen = self.seen();
        let kept = seen.members.get(&node).map_or(0, |member| member.kept);
        seen.members.insert(node, Member { kept, ..Member::default() });
    }

    /// What was broken.
    pub fn violations(&self) -> Vec<String> {
        self.seen().violations.clone()
    }

    /// The leader of the latest term, as far as anybody was elected.
    pub fn leader(&self) -> Option<NodeId> {
        self.seen().leaders.last_key_value().map(|(_, leader)| *leader)
    }

    /// How many terms had a leader.
    pub fn elections(&self) -> usize {
        self.seen().leaders.len()
    }

    /// The last entry that each node has applied.
    pub fn applied(&self) -> BTreeMap<NodeId, Index> {
        self.seen().members.iter().map(|(node, member)| (*node, member.applied.unwrap_or(0))).collect()
    }
}

impl Seen {
    /// The entries that were applied anywhere, are of earlier terms, and should be in a node's log, but are not.
    fn missing_in(&self, node: NodeId, term: Term) -> Vec<Index> {
        let Some(log) = self.members.get(&node).map(|member| &member.log) else { return Vec::new() };
        let Some((first, _)) = log.first_key_value() else { return Vec::new() };
        let applied = self.log.range(first..).filter(|(_, (of, _))| *of < term);
        applied.filter(|(index, (of, _))| log.get(index) != Some(of)).map(|(index, _)| *index).collect()
    }
}

impl Observer for Watch {
    /// Log matching: where two logs have an entry of the same term at an index, it is the same entry, and the one before is of the same
    /// term; so by induction everything before is the same.
    fn writes(&self, node: NodeId, snapshot: Option<SnapshotMeta>, entries: &[Entry]) {
        let seen = &mut *self.seen();
        let member = seen.members.entry(node).or_default();
        if let Some(snapshot) = snapshot {
            member.log = BTreeMap::from([(snapshot.index, snapshot.term)]);
            let last = entries.last().map_or(0, |last| last.index).max(snapshot.index);
            if last < member.kept {
                let text =
                    format!("node {node} had entry {} on its disk, and has only {last} now", member.kept);
                seen.violations.push(text);
            }
        }
        if let Some(first) = entries.first() {
            member.log.split_off(&first.index);
            if first.index <= member.committed {
                seen.violations.push(format!(
                    "node {node} replaces entry {} though it took {} for committed",
                    first.index, member.committed
                ));
            }
        }
        for entry in entries {
            let before = member.log.get(&(entry.index - 1)).copied();
            member.log.insert(entry.index, entry.term);
            let key = (entry.index, entry.term);
            let known = seen.written.entry(key).or_insert_with(|| (entry.data.clone(), before));
            known.1 = known.1.or(before);
            if known.0 != entry.data || before.is_some_and(|before| known.1 != Some(before)) {
                let text = format!("node {node} has another entry {} of term {}", entry.index, entry.term);
                seen.violations.push(format!("{text} than somebody else, or another one before it"));
            }
        }
    }

    /// A commit index does not go back, and is not beyond the log.
    fn commits(&self, node: NodeId, index: Index) {
        let seen = &mut *self.seen();
        let member = seen.members.entry(node).or_default();
        let last = member.log.last_key_value().map_or(0, |(last, _)| *last);
        if index < member.committed {
            seen.violations
                .push(format!("node {node} went back from commit {} to {index}", member.committed));
        }
        if index > last {
            seen.violations
                .push(format!("node {node} takes {index} for committed, but its log ends at {last}"));
        }
        member.committed = index;
    }

    /// Election safety: at most one leader in a term. Leader completeness: its log has everything that was applied in earlier terms. And
    /// terms do not go back.
    fn part(&self, node: NodeId, state: SoftState) {
        let seen = &mut *self.seen();
        let member = seen.members.entry(node).or_default();
        if let Some(before) = member.part.filter(|before| before.term > state.term) {
            seen.violations
                .push(format!("node {node} went back from term {} to {}", before.term, state.term));
        }
        member.part = Some(state);
        if state.role == Role::Leader {
            let leader = *seen.leaders.entry(state.term).or_insert(node);
            if leader != node {
                seen.violations.push(format!("nodes {leader} and {node} both lead in term {}", state.term));
            }
            let missing = seen.missing_in(node, state.term);
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                let text =
                    format!("node {node} leads in term {} without entries that were applied", state.term);
                seen.violations.push(format!("{text}, among {first} to {last}"));
            }
        }
    }

    /// State-machine safety: at each index all apply the same entry. And they apply in order, without gaps.
    fn applies(&self, node: NodeId, entry: &Entry) {
        let seen = &mut *self.seen();
        let member = seen.members.entry(node).or_default();
        if let Some(before) = member.applied.filter(|before| before + 1 != entry.index) {
            seen.violations.push(format!("node {node} applied entry {} after {before}", entry.index));
        }
        member.applied = Some(entry.index);
        member.kept = member.kept.max(entry.index);
        let first = seen.log.entry(entry.index).or_insert_with(|| (entry.term, entry.data.clone()));
        if *first != (entry.term, entry.data.clone()) {
            let text = format!(
                "node {node} applied another entry at {}: of term {} where somebody applied one of term {}",
                entry.index, entry.term, first.0
            );
            seen.violations.push(text);
        }
    }

    fn restored(&self, node: NodeId, snapshot: SnapshotMeta) {
        let seen = &mut *self.seen();
        let member = seen.members.entry(node).or_default();
        if member.applied.is_some_and(|before| before > snapshot.index) {
            seen.violations.push(format!("node {node} went back to the snapshot at {}", snapshot.index));
        }
        member.applied = Some(snapshot.index);
        member.kept = member.kept.max(snapshot.index);
        let known = seen.log.get(&snapshot.index).map(|(term, _)| *term);
        if known.is_some_and(|term| term != snapshot.term) {
            let text = format!("node {node} has a snapshot of term {} at {}", snapshot.term, snapshot.index);
            seen.violations.push(text);
        }
    }

    fn wants_state(&self, _: NodeId, index: Index) -> bool {
        index.is_multiple_of(STATE_INTERVAL)
    }

    /// Replicas are equal at the same index, byte for byte.
    fn state(&self, node: NodeId, index: Index, content: &[u8]) {
        let seen = &mut *self.seen();
        let (first, state) = seen.states.entry(index).or_insert_with(|| (node, content.to_vec()));
        if state != content {
            let text = format!("after entry {index} the states of nodes {first} and {node} differ");
            seen.violations.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use squall_raft::core::types::EntryKind;

    fn entry(index: Index, term: Term, data: &'static str) -> Entry {
        Entry { index, term, kind: EntryKind::Command, data: Bytes::from_static(data.as_bytes()) }
    }

    fn broken(what: impl Fn(&Watch)) -> Vec<String> {
        let watch = Watch::default();
        what(&watch);
        watch.violations()
    }

    #[test]
    fn each_broken_property_is_seen_and_none_where_all_is_well() {
        let part = |role, term| SoftState { role, leader: None, term };
        let well = broken(|watch| {
            watch.part(1, part(Role::Leader, 1));
            watch.part(2, part(Role::Follower, 1));
            for node in 1..=2 {
                watch.writes(node, Some(SnapshotMeta::default()), &[entry(1, 1, "a"), entry(2, 1, "b")]);
                watch.writes(node, None, &[entry(3, 1, "c")]);
                watch.commits(node, 2);
                watch.writes(node, None, &[entry(3, 2, "d")]);
                watch.restored(node, SnapshotMeta::default());
                watch.applies(node, &entry(1, 1, "a"));
                watch.applies(node, &entry(2, 1, "b"));
                watch.state(node, 50, b"state");
            }
            watch.starts(1);
            watch.writes(1, Some(SnapshotMeta { index: 1, term: 1 }), &[entry(1, 1, "a"), entry(2, 1, "b")]);
            watch.commits(1, 1);
            watch.part(1, part(Role::Follower, 0));
            watch.restored(1, SnapshotMeta { index: 1, term: 1 });
            watch.applies(1, &entry(2, 1, "b"));
            watch.part(2, part(Role::Leader, 2));
        });
        assert_eq!(well, Vec::<String>::new());
        let bad: [fn(&Watch); 14] = [
            // Log matching: another entry, another one before it.
            |watch| {
                watch.writes(1, Some(SnapshotMeta::default()), &[entry(1, 1, "a")]);
                watch.writes(2, Some(SnapshotMeta::default()), &[entry(1, 1, "b")]);
            },
            |watch| {
                watch.writes(1, Some(SnapshotMeta::default()), &[entry(1, 1, "a"), entry(2, 3, "b")]);
                watch.writes(2, Some(SnapshotMeta::default()), &[entry(1, 2, "a"), entry(2, 3, "b")]);
            },
            // Commit index: back, beyond the log, given up.
            |watch| {
                watch.writes(1, Some(SnapshotMeta::default()), &[entry(1, 1, "a"), entry(2, 1, "b")]);
                watch.commits(1, 2);
                watch.commits(1, 1);
            },
            |watch| watch.commits(1, 1),
            |watch| {
                watch.writes(1, Some(SnapshotMeta::default()), &[entry(1, 1, "a"), entry(2, 1, "b")]);
                watch.commits(1, 2);
                watch.writes(1, None, &[entry(2, 2, "c")]);
            },
            // What was on the disk.
            |watch| {
                watch.applies(1, &entry(1, 1, "a"));
                watch.starts(1);
                watch.writes(1, Some(SnapshotMeta::default()), &[]);
            },
            // Leader completeness.
            |watch| {
                watch.writes(1, Some(SnapshotMeta::default()), &[entry(1, 1, "a")]);
                watch.applies(2, &entry(1, 1, "a"));
                watch.applies(2, &entry(2, 1, "b"));
                watch.part(1, SoftState { role: Role::Leader, leader: None, term: 2 });
            },
            |watch| {
                watch.part(1, SoftState { role: Role::Leader, leader: None, term: 3 });
                watch.part(2, SoftState { role: Role::Leader, leader: None, term: 3 });
            },
            |watch| {
                watch.part(1, SoftState { role: Role::Follower, leader: None, term: 3 });
                watch.part(1, SoftState { role: Role::Follower, leader: None, term: 2 });
            },
            |watch| {
                watch.applies(1, &entry(1, 1, "a"));
                watch.applies(2, &entry(1, 1, "b"));
            },
            |watch| {
                watch.applies(1, &entry(1, 1, "a"));
                watch.applies(1, &entry(3, 1, "c"));
            },
            |watch| {
                watch.applies(1, &entry(5, 1, "a"));
                watch.restored(1, SnapshotMeta { index: 4, term: 1 });
            },
            |watch| {
                watch.applies(1, &entry(5, 2, "a"));
                watch.restored(2, SnapshotMeta { index: 5, term: 1 });
            },
            |watch| {
                watch.state(1, 50, b"one");
                watch.state(2, 50, b"two");
            },
        ];
        for bad in bad {
            assert_eq!(broken(bad).len(), 1);
        }
    }
}
