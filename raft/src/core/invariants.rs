//! What must hold after every call, compared with how things stood after the one before. Debug builds only.

use super::raft::Raft;
use super::ready::Role;
use super::types::{Index, NodeId, Term};

/// The part of the state that only ever moves one way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Checkpoint {
    term: Term,
    vote: Option<NodeId>,
    committed: Index,
    applied: Index,
}

impl Checkpoint {
    /// Checks `raft` and returns its checkpoint.
    ///
    /// # Panics
    /// When an invariant is broken, which is a bug in this crate.
    pub fn check(&self, raft: &Raft) -> Checkpoint {
        let now = Checkpoint {
            term: raft.term,
            vote: raft.vote,
            committed: raft.log.committed,
            applied: raft.log.applied,
        };
        assert!(now.term >= self.term, "the term fell: {self:?} -> {now:?}");
        assert!(now.committed >= self.committed, "the commit index fell: {self:?} -> {now:?}");
        assert!(now.applied >= self.applied, "the applied index fell: {self:?} -> {now:?}");
        let changed_vote = now.term == self.term && self.vote.is_some() && now.vote != self.vote;
        assert!(!changed_vote, "voted twice in one term: {self:?} -> {now:?}");

        raft.log.check_invariants();
        assert!(raft.log.last_term() <= raft.term, "an entry from the future");
        match raft.role {
            Role::Follower => assert_ne!(raft.leader, Some(raft.id()), "leads without knowing"),
            Role::PreCandidate => assert_eq!(raft.leader, None),
            Role::Candidate => assert_eq!((raft.leader, raft.vote), (None, Some(raft.id()))),
            Role::Leader => {
                assert_eq!((raft.leader, raft.vote), (Some(raft.id()), Some(raft.id())));
                assert_eq!(raft.log.last_term(), raft.term, "a leader opens its term with an entry");
            }
        }
        let (_, latest) = raft.log.membership();
        assert_eq!(*latest, raft.membership, "the latest configuration in the log is the one in force");
        if raft.role == Role::Leader {
            let others = raft.membership.ids().filter(|&id| id != raft.id());
            assert!(raft.peers.keys().copied().eq(others), "a leader tracks every other member");
            let opened = raft.log.matches(raft.log.committed, raft.term);
            let own = raft.log.term(raft.status().membership_index) == Some(raft.term);
            // Followers may not know yet that the first of two is committed.
            assert!(!own || raft.log.memberships_uncommitted() <= 1, "two changes of members at once");
            assert!(!own || opened, "a change of members before an entry of the term was committed");
        } else {
            assert!(raft.peers.is_empty(), "only a leader tracks peers");
        }
        for (id, peer) in &raft.peers {
            assert!(peer.matched < peer.next, "peer {id}: {peer:?}");
            assert!(peer.matched <= raft.log.last_index(), "peer {id}: {peer:?}");
        }
        now
    }
}
