//! The arithmetic of majorities. Pure functions of a set of voters; knows nothing of logs or messages.

use super::types::NodeId;
use crate::planted::{Mistake, planted};

/// How an election stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteResult {
    /// A quorum said yes.
    Won,
    /// Yes can no longer reach a quorum.
    Lost,
    /// Neither yet.
    Pending,
}

/// A set of voters of which more than half decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Majority {
    /// Invariant: sorted, without duplicates.
    voters: Vec<NodeId>,
}

impl Majority {
    /// The majority quorum of `voters`.
    pub fn new(mut voters: Vec<NodeId>) -> Majority {
        voters.sort_unstable();
        voters.dedup();
        Majority { voters }
    }

    /// The voters in ascending order.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// Whether `id` votes.
    pub fn contains(&self, id: NodeId) -> bool {
        self.voters.binary_search(&id).is_ok()
    }

    /// How many voters decide.
    pub fn size(&self) -> usize {
        if planted(Mistake::SmallQuorum) {
            return self.voters.len().div_ceil(2).max(2) - 1;
        }
        self.voters.len() / 2 + 1
    }

    /// The highest value that a quorum has reached or passed, where `reached` tells each voter's value. 0
    /// for an empty set.
    pub fn reached(&self, reached: impl Fn(NodeId) -> u64) -> u64 {
        // Groups have at most a handful of voters; the stack array keeps the commit path free of allocation.
        let mut stack = [0; 9];
        let mut heap;
        let values = if self.voters.len() <= stack.len() {
            &mut stack[..self.voters.len()]
        } else {
            heap = vec![0; self.voters.len()];
            &mut heap[..]
        };
        if values.is_empty() {
            return 0;
        }
        for (value, &voter) in values.iter_mut().zip(&self.voters) {
            *value = reached(voter);
        }
        values.sort_unstable();
        values[self.voters.len() - self.size()]
    }

    /// How an election stands, where `vote` tells each voter's answer so far.
    pub fn vote_result(&self, vote: impl Fn(NodeId) -> Option<bool>) -> VoteResult {
        let count = |answer| self.voters.iter().filter(|&&id| vote(id) == answer).count();
        let yes = count(Some(true));
        if yes >= self.size() {
            VoteResult::Won
        } else if yes + count(None) >= self.size() {
            VoteResult::Pending
        } else {
            VoteResult::Lost
        }
    }
}

/// Who decides in a configuration: one majority, or, while voters change, one of the old and one of the new set
/// (dissertation, section 4.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    incoming: Majority,
    outgoing: Option<Majority>,
}

impl Quorum {
    /// A majority of `incoming`, and of `outgoing`, if there is one.
    pub fn new(incoming: Majority, outgoing: Option<Majority>) -> Quorum {
        Quorum { incoming, outgoing }
    }

    /// Whether `id` votes in either set.
    pub fn contains(&self, id: NodeId) -> bool {
        self.incoming.contains(id) || self.outgoing.as_ref().is_some_and(|outgoing| outgoing.contains(id))
    }

    /// The highest value that a quorum has reached or passed; see [`Majority::reached`].
    pub fn reached(&self, reached: impl Fn(NodeId) -> u64) -> u64 {
        let incoming = self.incoming.reached(&reached);
        self.outgoing.as_ref().map_or(incoming, |outgoing| incoming.min(outgoing.reached(&reached)))
    }

    /// How an election stands; see [`Majority::vote_result`].
    pub fn vote_result(&self, vote: impl Fn(NodeId) -> Option<bool>) -> VoteResult {
        let incoming = self.incoming.vote_result(&vote);
        let outgoing = self.outgoing.as_ref().map_or(VoteResult::Won, |outgoing| outgoing.vote_result(&vote));
        match (incoming, outgoing) {
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            _ => VoteResult::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;

    /// Tries every value from the top: the first that enough voters have reached.
    fn reached_naively(values: &[u64]) -> u64 {
        let mut candidates = values.to_vec();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        candidates
            .into_iter()
            .find(|&c| values.iter().filter(|&&v| v >= c).count() * 2 > values.len())
            .unwrap_or(0)
    }

    proptest! {
        #[test]
        fn reached_equals_the_naive_count(values in prop::collection::vec(0u64..20, 0..12)) {
            let majority = Majority::new((1..=values.len() as u64).collect());
            prop_assert_eq!(majority.reached(|id| values[id as usize - 1]), reached_naively(&values));
        }

        #[test]
        fn a_vote_is_decided_exactly_when_the_missing_answers_cannot_change_it(
            votes in prop::collection::vec(prop::option::of(any::<bool>()), 1..8),
        ) {
            let majority = Majority::new((1..=votes.len() as u64).collect());
            let wins_if = |missing: bool| {
                votes.iter().filter(|v| v.unwrap_or(missing)).count() * 2 > votes.len()
            };
            let expected = match (wins_if(false), wins_if(true)) {
                (true, _) => VoteResult::Won,
                (false, true) => VoteResult::Pending,
                (false, false) => VoteResult::Lost,
            };
            prop_assert_eq!(majority.vote_result(|id| votes[id as usize - 1]), expected);
        }

        /// The definition itself: every way to fill in the missing answers is tried, and an election is won or lost if none
        /// changes it; a value is reached if the voters that reached it are a majority of each set.
        #[test]
        fn a_joint_quorum_needs_both_majorities(
            incoming in prop::collection::btree_set(1u64..8, 1..6),
            outgoing in prop::option::of(prop::collection::btree_set(1u64..8, 1..6)),
            values in prop::collection::vec(0u64..6, 8),
            votes in prop::collection::vec(prop::option::of(any::<bool>()), 8),
        ) {
            let sets: Vec<&BTreeSet<NodeId>> = std::iter::once(&incoming).chain(&outgoing).collect();
            let is_quorum = |yes: &dyn Fn(NodeId) -> bool| {
                sets.iter().all(|set| set.iter().filter(|&&id| yes(id)).count() * 2 > set.len())
            };
            let majority = |set: &BTreeSet<NodeId>| Majority::new(set.iter().copied().collect());
            let quorum = Quorum::new(majority(&incoming), outgoing.as_ref().map(majority));

            let naive = (0..6).rev().find(|&value| is_quorum(&|id| values[id as usize] >= value)).unwrap_or(0);
            prop_assert_eq!(quorum.reached(|id| values[id as usize]), naive);

            let open: Vec<NodeId> = (1..8).filter(|&id| votes[id as usize].is_none()).collect();
            let outcomes: BTreeSet<bool> = (0..1u32 << open.len())
                .map(|bits| {
                    let missing: BTreeMap<NodeId, bool> =
                        (0..).zip(&open).map(|(bit, &id)| (id, bits >> bit & 1 == 1)).collect();
                    is_quorum(&|id| votes[id as usize].unwrap_or_else(|| missing[&id]))
                })
                .collect();
            let expected = match (outcomes.contains(&true), outcomes.contains(&false)) {
                (true, true) => VoteResult::Pending,
                (won, _) => if won { VoteResult::Won } else { VoteResult::Lost },
            };
            prop_assert_eq!(quorum.vote_result(|id| votes[id as usize]), expected);
        }
    }
}
