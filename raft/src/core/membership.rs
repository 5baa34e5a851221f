//! Who belongs to the group: voters, learners, and the two sets of voters of a change under way. Pure data and the rules by
//! which one configuration follows another; when a change may be made is decided by `raft`.
//!
//! Every configuration is written to the log whole, never as a difference: an entry that is read twice, or a snapshot that
//! overlaps the log, cannot apply a change twice.
//!
//! A change of voters goes through a joint configuration (dissertation, section 4.3), even if it concerns one voter only: one
//! mechanism, and none of the cases in which changes of a single server need extra rules to be safe.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::quorum::{Majority, Quorum};
use super::types::NodeId;

/// The first byte of an encoded configuration.
const VERSION: u8 = 1;
/// The longest address; bounds what a damaged length can make a reader allocate.
pub const ADDRESS_BYTES_MAX: usize = 1024;
/// The most members: the arithmetic of quorums is meant for a handful.
pub const MEMBERS_MAX: usize = 127;

const IS_VOTER: u8 = 1;
const IS_OUTGOING: u8 = 2;

/// What the group knows of one of its members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Tells the member's disk from any other that may come up under its id: drawn at random when its log was created.
    /// 0 until the leader has heard from it; from then on whoever comes with another one is not this member.
    pub incarnation: u64,
    /// How the user of this crate reaches it; opaque here. At most `ADDRESS_BYTES_MAX` bytes.
    pub address: Bytes,
}

/// A member's part in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It votes, now and when the change under way (if any) is done.
    Voter,
    /// It gets the log and does not vote.
    Learner,
    /// It votes once the change under way is done, and counts in its quorum already.
    Incoming,
    /// It votes until the change under way is done, and is removed then.
    Outgoing,
}

/// One change to the members. Several may be made at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member, which gets the log and does not vote.
    AddLearner {
        /// Its id; not one in use.
        id: NodeId,
        /// How to reach it.
        address: Bytes,
        /// Which disk it has; 0 if that is not known: then the first one that is heard is taken for it.
        incarnation: u64,
    },
    /// A learner becomes a voter.
    Promote {
        /// The learner.
        id: NodeId,
    },
    /// A voter or learner leaves.
    Remove {
        /// The member.
        id: NodeId,
    },
}

impl MemberChange {
    /// The member concerned.
    #[must_use]
    pub fn id(&self) -> NodeId {
        match self {
            MemberChange::AddLearner { id, .. }
            | MemberChange::Promote { id }
            | MemberChange::Remove { id } => *id,
        }
    }
}

/// Why a configuration does not follow from another. The caller is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The id 0 is reserved for "nobody".
    #[error("node id 0 is not allowed")]
    ZeroId,
    /// It is a member already.
    #[error("node {id} is a member already; to replace it, remove it first")]
    AlreadyMember {
        /// The member.
        id: NodeId,
    },
    /// It is not a member.
    #[error("node {id} is not a member")]
    NotAMember {
        /// The id.
        id: NodeId,
    },
    /// It votes already.
    #[error("node {id} is a voter already")]
    AlreadyVoter {
        /// The voter.
        id: NodeId,
    },
    /// Somebody must be left to vote.
    #[error("no voter would be left")]
    NoVoterLeft,
    /// There is a limit.
    #[error("there would be {members} members, the most is {MEMBERS_MAX}")]
    TooMany {
        /// How many there would be.
        members: usize,
    },
    /// There is a limit.
    #[error("the address of node {id} has {bytes} bytes, the most is {ADDRESS_BYTES_MAX}")]
    AddressTooLong {
        /// The member.
        id: NodeId,
        /// The address's length.
        bytes: usize,
    },
}

/// A configuration of the group.
///
/// Invariant: `voters` and `outgoing` are among `members`; who is in neither is a learner. `outgoing` is empty unless a
/// change of voters is under way (the configuration is *joint*): then every decision needs a majority of both sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
    voters: BTreeSet<NodeId>,
    outgoing: BTreeSet<NodeId>,
}

impl Membership {
    /// The configuration with which a group is founded.
    #[must_use]
    pub fn founding(voters: impl IntoIterator<Item = (NodeId, Bytes)>) -> Membership {
        let member = |(id, address)| (id, Member { incarnation: 0, address });
        let members: BTreeMap<_, _> = voters.into_iter().map(member).collect();
        Membership { voters: members.keys().copied().collect(), members, outgoing: BTreeSet::new() }
    }

    /// The configuration of these voters, without addresses.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Membership {
        Membership::founding(voters.into_iter().map(|id| (id, Bytes::new())))
    }

    /// Nobody: what a node knows that was told to join a group, until its leader tells it more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a change of voters is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` belongs to the group, in whatever part.
    #[must_use]
    pub fn contains(&self, id: NodeId) -> bool {
        self.members.contains_key(&id)
    }

    /// What is known of `id`.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Member, Part)> {
        self.members.iter().map(|(&id, member)| (id, member, self.part_of(id)))
    }

    /// The ids of all members in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.members.keys().copied()
    }

    /// Whether `id` counts in a quorum.
    #[must_use]
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether `id` will count in a quorum once the change under way, if any, is done.
    #[must_use]
    pub fn stays_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id)
    }

    /// The part of `id`, if it is a member.
    #[must_use]
    pub fn part(&self, id: NodeId) -> Option<Part> {
        self.contains(id).then(|| self.part_of(id))
    }

    fn part_of(&self, id: NodeId) -> Part {
        match (self.voters.contains(&id), self.outgoing.contains(&id)) {
            (true, false) if self.is_joint() => Part::Incoming,
            (true, _) => Part::Voter,
            (false, true) => Part::Outgoing,
            (false, false) => Part::Learner,
        }
    }

    /// Who decides.
    #[must_use]
    pub fn quorum(&self) -> Quorum {
        let majority = |ids: &BTreeSet<NodeId>| Majority::new(ids.iter().copied().collect());
        Quorum::new(majority(&self.voters), self.is_joint().then(|| majority(&self.outgoing)))
    }

    /// Whether a message of `id` that claims `incarnation` can be from the member of that id. An incarnation that is not known on
    /// either side is not held against it.
    #[must_use]
    pub fn admits(&self, id: NodeId, incarnation: u64) -> bool {
        let known = |member: &Member| {
            member.incarnation == incarnation || member.incarnation == 0 || incarnation == 0
        };
        self.members.get(&id).is_some_and(known)
    }

    /// The configuration after `changes`: joint if the set of voters changes.
    ///
    /// # Errors
    /// The first change that does not fit.
    ///
    /// # Panics
    /// When this configuration is joint: its change must be done first.
    pub fn changed(&self, changes: &[MemberChange]) -> Result<Membership, MembershipError> {
        assert!(!self.is_joint(), "a change is under way");
        let mut next = self.clone();
        for change in changes {
            let id = change.id();
            match change {
                MemberChange::AddLearner { id: 0, .. } => return Err(MembershipError::ZeroId),
                MemberChange::AddLearner { address, .. } if address.len() > ADDRESS_BYTES_MAX => {
                    return Err(MembershipError::AddressTooLong { id, bytes: address.len() });
                }
                MemberChange::AddLearner { address, incarnation, .. } => {
                    let member = Member { incarnation: *incarnation, address: address.clone() };
                    if next.members.insert(id, member).is_some() {
                        return Err(MembershipError::AlreadyMember { id });
                    }
                }
                _ if !next.contains(id) => return Err(MembershipError::NotAMember { id }),
                MemberChange::Promote { .. } if !next.voters.insert(id) => {
                    return Err(MembershipError::AlreadyVoter { id });
                }
                MemberChange::Promote { .. } => {}
                MemberChange::Remove { .. } => {
                    next.voters.remove(&id);
                    // A voter stays a member until the change is done: its vote still counts.
                    if !self.voters.contains(&id) {
                        next.members.remove(&id);
                    }
                }
            }
        }
        if next.voters.is_empty() {
            return Err(MembershipError::NoVoterLeft);
        }
        if next.members.len() > MEMBERS_MAX {
            return Err(MembershipError::TooMany { members: next.members.len() });
        }
        if next.voters != self.voters {
            next.outgoing = self.voters.clone();
        }
        Ok(next)
    }

    /// The configuration after the change under way is done: those who only voted before it are gone.
    #[must_use]
    pub fn left(&self) -> Membership {
        let mut next = self.clone();
        let outgoing = std::mem::take(&mut next.outgoing);
        next.members.retain(|id, _| next.voters.contains(id) || !outgoing.contains(id));
        next
    }

    /// The same configuration, in which these members have these incarnations.
    #[must_use]
    pub fn bound(&self, incarnations: &[(NodeId, u64)]) -> Membership {
        let mut next = self.clone();
        for (id, incarnation) in incarnations {
            if let Some(member) = next.members.get_mut(id) {
                member.incarnation = *incarnation;
            }
        }
        next
    }

    /// The bytes of a log entry, or of a snapshot's beginning. Numbers are little-endian: version (1 byte), number of members
    /// (2 bytes); then for each member, ids rising: id (8), incarnation (8), flags (1; bit 0 voter, bit 1 outgoing), length of its
    /// address (2), address.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u16_le(self.members.len() as u16);
        for (id, member) in &self.members {
            let flags = IS_VOTER * u8::from(self.voters.contains(id))
                + IS_OUTGOING * u8::from(self.outgoing.contains(id));
            out.put_u64_le(*id);
            out.put_u64_le(member.incarnation);
            out.put_u8(flags);
            out.put_u16_le(member.address.len() as u16);
            out.put_slice(&member.address);
        }
        out.freeze()
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` if it did not, or a later release did.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Membership> {
        let mut membership = Membership::default();
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let count = bytes.try_get_u16_le().ok()?;
        let mut last_id = 0;
        for _ in 0..count {
            let id = bytes.try_get_u64_le().ok()?;
            let incarnation = bytes.try_get_u64_le().ok()?;
            let flags = bytes.try_get_u8().ok()?;
            let length = usize::from(bytes.try_get_u16_le().ok()?);
            if id <= last_id || flags > IS_VOTER + IS_OUTGOING || length > ADDRESS_BYTES_MAX {
                return None;
            }
            let address = Bytes::copy_from_slice(bytes.get(..length)?);
            bytes.advance(length);
            last_id = id;
            membership.members.insert(id, Member { incarnation, address });
            if flags & IS_VOTER != 0 {
                membership.voters.insert(id);
            }
            if flags & IS_OUTGOING != 0 {
                membership.outgoing.insert(id);
            }
        }
        // Only nobody at all has no voters.
        let sound = membership.voters.is_empty() == membership.members.is_empty();
        (bytes.is_empty() && sound && membership.members.len() <= MEMBERS_MAX).then_some(membership)
    }
}

/// `voters 1 2 3, outgoing 1 2, learners 4`.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, name: &str, ids: Vec<NodeId>| {
            write!(f, "{name}")?;
            ids.iter().try_for_each(|id| write!(f, " {id}"))
        };
        list(f, "voters", self.voters.iter().copied().collect())?;
        if self.is_joint() {
            list(f, ", outgoing", self.outgoing.iter().copied().collect())?;
        }
        let learners: Vec<NodeId> = self.ids().filter(|id| !self.is_voter(*id)).collect();
        if !learners.is_empty() {
            list(f, ", learners", learners)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn add(id: NodeId) -> MemberChange {
        MemberChange::AddLearner { id, address: Bytes::from(format!("host-{id}")), incarnation: 0 }
    }

    #[test]
    fn a_learner_is_added_promoted_through_a_joint_configuration_and_removed() {
        let three = Membership::of_voters([1, 2, 3]);
        let with_learner = three.changed(&[add(4)]).unwrap();
        assert!(!with_learner.is_joint(), "the voters are the same");
        assert_eq!(with_learner.to_string(), "voters 1 2 3, learners 4");

        let joint = with_learner.changed(&[MemberChange::Promote { id: 4 }]).unwrap();
        assert_eq!(joint.to_string(), "voters 1 2 3 4, outgoing 1 2 3");
        assert_eq!((joint.part(4), joint.part(1)), (Some(Part::Incoming), Some(Part::Voter)));
        let four = joint.left();
        assert_eq!(four.to_string(), "voters 1 2 3 4");
        assert_eq!(four.left(), four);

        let joint = four.changed(&[MemberChange::Remove { id: 1 }, add(5)]).unwrap();
        assert_eq!(joint.to_string(), "voters 2 3 4, outgoing 1 2 3 4, learners 5");
        assert_eq!(joint.part(1), Some(Part::Outgoing));
        assert_eq!(joint.left().to_string(), "voters 2 3 4, learners 5");
        assert_eq!(joint.left().get(4).unwrap().address, "host-4");
    }

    #[test]
    fn changes_that_do_not_fit_are_refused() {
        let members = Membership::of_voters([1]).changed(&[add(2)]).unwrap();
        let refused = |change| members.changed(&[change]).unwrap_err();
        assert_eq!(refused(add(0)), MembershipError::ZeroId);
        assert_eq!(refused(add(1)), MembershipError::AlreadyMember { id: 1 });
        assert_eq!(refused(add(2)), MembershipError::AlreadyMember { id: 2 });
        assert_eq!(refused(MemberChange::Promote { id: 1 }), MembershipError::AlreadyVoter { id: 1 });
        assert_eq!(refused(MemberChange::Promote { id: 3 }), MembershipError::NotAMember { id: 3 });
        assert_eq!(refused(MemberChange::Remove { id: 3 }), MembershipError::NotAMember { id: 3 });
        assert_eq!(refused(MemberChange::Remove { id: 1 }), MembershipError::NoVoterLeft);
        let address = Bytes::from(vec![0; ADDRESS_BYTES_MAX + 1]);
        assert!(matches!(
            refused(MemberChange::AddLearner { id: 3, address, incarnation: 0 }),
            MembershipError::AddressTooLong { id: 3, .. }
        ));
        let crowd: Vec<_> = (10..10 + MEMBERS_MAX as u64).map(add).collect();
        assert!(matches!(members.changed(&crowd), Err(MembershipError::TooMany { .. })));
    }

    #[test]
    fn only_the_bound_incarnation_is_admitted() {
        let members = Membership::of_voters([1, 2]);
        assert!(members.admits(2, 77), "not bound yet");
        let members = members.bound(&[(2, 77)]);
        assert!(members.admits(2, 77) && members.admits(2, 0));
        assert!(!members.admits(2, 78));
        assert!(!members.admits(3, 77), "not a member");
    }

    proptest! {
        #[test]
        fn the_encoding_round_trips_and_nothing_else_is_read(
            members in prop::collection::btree_map(1u64..50, (any::<u64>(), prop::collection::vec(any::<u8>(), 0..20), 0u8..4), 1..9),
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let mut membership = Membership::default();
            for (id, (incarnation, address, flags)) in members {
                membership.members.insert(id, Member { incarnation, address: address.into() });
                if flags & 1 != 0 || membership.voters.is_empty() {
                    membership.voters.insert(id);
                }
                if flags & 2 != 0 {
                    membership.outgoing.insert(id);
                }
            }
            let bytes = membership.encode();
            prop_assert_eq!(Membership::decode(&bytes), Some(membership.clone()));
            prop_assert_eq!(Membership::decode(&bytes[..cut.index(bytes.len())]), None);
            // A changed byte may make another configuration, but never one that does not encode as it was read.
            let mut other = bytes.to_vec();
            let at = flip.index(other.len());
            other[at] ^= 0xff;
            if let Some(read) = Membership::decode(&other) {
                prop_assert_eq!(&read.encode()[..], &other[..]);
            }
        }
    }
}
