//! Members that come and go, and leaders that hand over: the dissertation's chapter 4 and section 3.10, and the cases that
//! other implementations got wrong.

mod support;

use bytes::Bytes;
use squall_raft::core::types::NodeId;
use squall_raft::core::{
    Body, ChangeError, MemberChange, Membership, MembershipError, ProgressState, Role, TransferError,
};
use support::Network;

fn add(id: NodeId) -> MemberChange {
    MemberChange::AddLearner { id, address: Bytes::from(format!("host-{id}")), incarnation: 0 }
}

fn promote(id: NodeId) -> MemberChange {
    MemberChange::Promote { id }
}

fn remove(id: NodeId) -> MemberChange {
    MemberChange::Remove { id }
}

/// Nodes 1 to `size`, of which the first `founders` have founded the group, with their disks known to it.
fn founded(size: u64, founders: u64) -> (Network, NodeId) {
    let mut network = Network::founded(size, founders, 7, |_| ());
    let leader = network.elect();
    for _ in 0..3 {
        network.round();
    }
    (network, leader)
}

fn members(network: &Network) -> String {
    network.members().to_string()
}

/// Has `leader` make a change, and waits until it is complete.
fn change(network: &mut Network, leader: NodeId, changes: &[MemberChange]) {
    network.raft(leader).change_members(changes).unwrap();
    network.drain(leader);
    for _ in 0..5 {
        network.round();
    }
}

#[test]
fn dissertation_4_2_1_a_learner_gets_the_log_without_a_vote_and_is_promoted_when_it_has_it() {
    let (mut network, leader) = founded(4, 3);
    for n in 0..20 {
        network.propose(leader, &format!("{n}"));
    }
    network.settle();
    network.isolate(4);
    change(&mut network, leader, &[add(4)]);
    assert_eq!(members(&network), "voters 1 2 3, learners 4");
    let refused = network.raft(leader).change_members(&[promote(4)]).unwrap_err();
    assert!(matches!(refused, ChangeError::NotCaughtUp { id: 4, matched: 0, .. }), "{refused}");

    network.heal();
    network.round();
    network.settle();
    assert_eq!(network.node(4).state, network.node(leader).state, "it has applied everything");
    // It hears no leader for long, and still does not stand for election.
    network.isolate(4);
    for _ in 0..50 {
        network.tick(4);
    }
    assert_eq!(network.raft(4).soft_state().role, Role::Follower);
    network.heal();
    network.round();
    change(&mut network, leader, &[promote(4)]);
    assert_eq!(members(&network), "voters 1 2 3 4");
}

#[test]
fn a_learner_counts_neither_for_commitment_nor_for_the_leader_s_own_quorum() {
    let (mut network, leader) = founded(5, 3);
    change(&mut network, leader, &[add(4), add(5)]);
    for id in [1, 2, 3] {
        if id != leader {
            network.isolate(id);
        }
    }
    let before = network.raft(leader).committed();
    network.propose(leader, "for learners only");
    network.settle();
    assert_eq!(network.raft(leader).committed(), before);
    for _ in 0..25 {
        network.tick(leader);
        network.settle();
    }
    assert_ne!(network.raft(leader).soft_state().role, Role::Leader, "two learners are no quorum");
}

#[test]
fn dissertation_4_3_a_change_of_voters_needs_both_majorities_and_ends_by_itself() {
    let (mut network, leader) = founded(5, 3);
    change(&mut network, leader, &[add(4), add(5)]);
    let others: Vec<NodeId> = [1, 2, 3].into_iter().filter(|&id| id != leader).collect();
    // From {1, 2, 3} to {leader, 4, 5}, while nobody else of the old majority can be reached.
    for &id in &others {
        network.isolate(id);
    }
    let changes = [promote(4), promote(5), remove(others[0]), remove(others[1])];
    network.raft(leader).change_members(&changes).unwrap();
    network.drain(leader);
    network.settle();
    let status = network.raft(leader).status();
    assert!(status.membership.is_joint(), "it is in force as soon as it is in the log");
    assert!(status.committed < status.membership_index, "4 and 5 alone do not decide");

    network.heal();
    for _ in 0..5 {
        network.round();
    }
    let status = network.raft(leader).status();
    let expected = Membership::of_voters([leader, 4, 5]).to_string();
    assert_eq!((status.membership.to_string(), members(&network)), (expected.clone(), expected));
    assert_eq!(network.raft(leader).soft_state().role, Role::Leader);
}

#[test]
fn dissertation_4_2_2_a_leader_that_removes_itself_leads_until_that_is_committed_and_hands_over() {
    let (mut network, leader) = founded(3, 3);
    network.raft(leader).change_members(&[remove(leader)]).unwrap();
    network.drain(leader);
    assert_eq!(network.raft(leader).soft_state().role, Role::Leader);
    network.settle();
    assert!(network.node(leader).evicted, "it knows that it is no member");
    // Without a tick: whoever took over was told to.
    let next = network.leader().expect("the old leader has handed over");
    assert_ne!(next, leader);
    network.propose(next, "go on");
    network.round();
    assert!(!network.members().contains(leader));
}

#[test]
fn the_only_voter_besides_a_removed_leader_goes_on_alone() {
    let (mut network, leader) = founded(2, 2);
    change(&mut network, leader, &[remove(leader)]);
    let other = 3 - leader;
    assert_eq!(network.leader(), Some(other));
    assert!(network.propose(other, "alone"));
    network.round();
    assert_eq!(members(&network), format!("voters {other}"));
    let refused = network.raft(other).change_members(&[remove(other)]).unwrap_err();
    assert_eq!(refused, ChangeError::Membership(MembershipError::NoVoterLeft));
}

/// The leader has written that it leaves, and nobody else has; then everything stops. Nobody else can win: its log is the longest.
#[test]
fn dissertation_4_2_2_a_node_whose_removal_is_not_committed_may_have_to_lead_again() {
    let (mut network, leader) = founded(2, 2);
    let other = 3 - leader;
    network.raft(leader).change_members(&[remove(leader)]).unwrap();
    network.drain(leader);
    while network.raft(leader).membership().is_joint() {
        network.sync(leader, usize::MAX);
        network.sync(other, usize::MAX);
        for message in std::mem::take(&mut network.messages) {
            network.deliver(message);
        }
    }
    network.messages.clear();
    for id in [leader, other] {
        network.crash(id, usize::MAX);
        network.restart(id);
    }
    assert!(network.raft(other).status().last_index < network.raft(leader).status().last_index);
    for _ in 0..60 {
        network.round();
    }
    assert!(network.node(leader).evicted);
    assert_eq!((network.leader(), members(&network)), (Some(other), format!("voters {other}")));
}

#[test]
fn dissertation_4_2_3_a_removed_node_disturbs_nobody_and_is_told() {
    let (mut network, leader) = founded(3, 3);
    let removed = 1 + leader % 3;
    network.isolate(removed);
    change(&mut network, leader, &[remove(removed)]);
    let term = network.raft(leader).soft_state().term;
    network.heal();
    for _ in 0..40 {
        network.round();
        if network.node(removed).evicted {
            break;
        }
    }
    assert!(network.node(removed).evicted, "it has asked for a vote and was told");
    assert_eq!(network.raft(leader).soft_state().term, term);
    assert_eq!(network.leader(), Some(leader));
}

#[test]
fn a_removed_learner_is_told() {
    let (mut network, leader) = founded(4, 3);
    change(&mut network, leader, &[add(4)]);
    change(&mut network, leader, &[remove(4)]);
    assert!(network.node(4).evicted);
}

/// The bug of single-server changes that was published on raft-dev in 2015, with its schedule: two leaders in turn change the
/// members without knowing of each other's change. It is impossible because a leader changes nothing before it has committed an
/// entry of its own term.
#[test]
fn raft_dev_2015_a_new_leader_changes_nothing_before_it_has_committed_in_its_term() {
    let (mut network, first) = founded(5, 4);
    let others: Vec<NodeId> = [1, 2, 3, 4].into_iter().filter(|&id| id != first).collect();
    let second = others[0];
    // The first leader adds 5; nobody hears of it.
    network.isolate(first);
    assert!(network.change_members(first, &[add(5)]));
    network.settle();
    // The second leader has committed nothing yet.
    network.hold = Some(second);
    network.elect_instead(second);
    let refused = network.raft(second).change_members(&[remove(first)]).unwrap_err();
    assert_eq!(refused, ChangeError::NotReady);
    network.hold = None;
    network.heal();
    for _ in 0..5 {
        network.round();
    }
    let leader = network.elect();
    change(&mut network, leader, &[add(5)]);
    assert_eq!(members(&network), "voters 1 2 3 4, learners 5", "what was never committed is rolled back");
}

#[test]
fn a_configuration_that_is_cut_away_is_no_longer_in_force() {
    let (mut network, old) = founded(4, 3);
    network.isolate(old);
    assert!(network.change_members(old, &[add(4)]));
    assert!(network.raft(old).membership().contains(4));
    let next = 1 + old % 3;
    network.elect_instead(next);
    network.propose(next, "other history");
    network.settle();
    network.heal();
    network.round();
    assert!(!network.raft(old).membership().contains(4));
    assert_eq!(members(&network), "voters 1 2 3");
}

#[test]
fn one_change_at_a_time() {
    let (mut network, leader) = founded(5, 3);
    network.raft(leader).change_members(&[add(4)]).unwrap();
    assert_eq!(network.raft(leader).change_members(&[add(5)]).unwrap_err(), ChangeError::UnderWay);
    network.drain(leader);
    network.settle();
    network.raft(leader).change_members(&[add(5)]).unwrap();
}

/// etcd#12582, etcd#13466: leaving a joint configuration twice, or again after a restart.
#[test]
fn a_crash_in_the_middle_of_a_change_neither_repeats_nor_loses_it() {
    for crash_all in [false, true] {
        let (mut network, leader) = founded(4, 3);
        change(&mut network, leader, &[add(4)]);
        let removed = 1 + leader % 3;
        network.raft(leader).change_members(&[promote(4), remove(removed)]).unwrap();
        network.drain(leader);
        // The joint configuration reaches everybody's disk, but the leader dies before it hears of that.
        for id in network.ids() {
            network.sync(id, usize::MAX);
        }
        for message in std::mem::take(&mut network.messages) {
            network.deliver(message);
        }
        for id in network.ids() {
            network.sync(id, usize::MAX);
        }
        network.messages.clear();
        let dead = if crash_all { network.ids() } else { vec![leader] };
        for &id in &dead {
            network.crash(id, usize::MAX);
        }
        for &id in &dead {
            network.restart(id);
        }
        for _ in 0..60 {
            network.round();
        }
        let expected: Vec<NodeId> = [1, 2, 3, 4].into_iter().filter(|&id| id != removed).collect();
        assert_eq!(members(&network), Membership::of_voters(expected).to_string());
        let entries = network.committed.values();
        let settled = entries.filter(|e| {
            squall_raft::core::Membership::decode(&e.data)
                .is_some_and(|m| !m.contains(removed) && m.contains(4))
        });
        assert_eq!(settled.count(), 1, "left once");
    }
}

#[test]
fn a_snapshot_carries_the_members_and_a_node_restarts_with_them() {
    let (mut network, leader) = founded(4, 3);
    change(&mut network, leader, &[add(4)]);
    network.isolate(4);
    change(&mut network, leader, &[]);
    for n in 0..10 {
        network.propose(leader, &format!("{n}"));
        network.settle();
    }
    network.compact(leader, 0);
    assert_eq!(network.node(leader).disk.entries, vec![]);
    network.heal();
    for _ in 0..5 {
        network.round();
    }
    assert_eq!(network.node(4).disk.snapshot, network.node(leader).disk.snapshot);
    assert_eq!(network.raft(4).membership().to_string(), "voters 1 2 3, learners 4");
    for id in network.ids() {
        network.crash(id, usize::MAX);
        network.restart(id);
        assert_eq!(network.raft(id).membership().to_string(), "voters 1 2 3, learners 4");
    }
}

/// openraft's FAQ, sofa-jraft#1000, RedisRaft#2: a node that comes back with an empty disk under its old id has forgotten
/// what it has promised.
#[test]
fn a_wiped_node_is_refused_under_its_old_id_and_counts_for_nothing() {
    let (mut network, leader) = founded(3, 3);
    let wiped = 1 + leader % 3;
    let third = 1 + wiped % 3;
    // Only the leader and the node to be wiped have the entry.
    network.isolate(third);
    network.propose(leader, "acknowledged");
    network.settle();
    let last = network.raft(leader).committed();
    network.crash(wiped, usize::MAX);
    network.wipe(wiped);
    // As when the operator starts it again just as it was started first: it takes itself for a founder.
    let entry = network.committed[&1].clone();
    network.nodes.get_mut(&wiped).unwrap().disk.entries.push(entry);
    network.nodes.get_mut(&wiped).unwrap().disk.hard_state.term = 1;
    network.crash(leader, usize::MAX);
    network.restart(wiped);
    network.heal();
    for _ in 0..60 {
        network.round();
    }
    assert_eq!(
        network.leader(),
        None,
        "the wiped node's vote would elect one that lacks an acknowledged entry"
    );

    network.restart(leader);
    for _ in 0..60 {
        network.round();
    }
    assert!(network.node(wiped).evicted);
    let leader = network.leader().expect("two of three are a quorum");
    assert!(network.raft(leader).committed() > last);

    // It comes back as another member under the same id.
    change(&mut network, leader, &[remove(wiped)]);
    change(&mut network, leader, &[add(wiped)]);
    network.wipe(wiped);
    network.restart(wiped);
    for _ in 0..5 {
        network.round();
    }
    change(&mut network, leader, &[promote(wiped)]);
    assert_eq!(members(&network), "voters 1 2 3");
    assert!(network.agrees());
    let incarnation = network.node(wiped).disk.incarnation;
    assert_eq!(network.members().get(wiped).unwrap().incarnation, incarnation);
}

/// A refusal that was under way when the node was added again must not stop it.
#[test]
fn a_node_that_was_added_again_ignores_an_old_refusal() {
    let (mut network, leader) = founded(4, 3);
    change(&mut network, leader, &[add(4)]);
    network.raft(leader).change_members(&[remove(4)]).unwrap();
    network.drain(leader);
    let mut refusals = Vec::new();
    for _ in 0..10 {
        for id in [1, 2, 3] {
            network.sync(id, usize::MAX);
        }
        for message in std::mem::take(&mut network.messages) {
            match message.body {
                Body::Refused { .. } => refusals.push(message),
                _ => network.deliver(message),
            }
        }
    }
    assert_eq!(refusals.len(), 1);
    change(&mut network, leader, &[add(4)]);
    network.deliver(refusals.remove(0));
    network.round();
    assert!(!network.node(4).evicted);
    assert_eq!(network.node(4).state, network.node(leader).state);
}

#[test]
fn dissertation_3_10_a_transfer_waits_for_the_target_to_catch_up_and_takes_no_proposals_meanwhile() {
    let (mut network, leader) = founded(3, 3);
    let target = 1 + leader % 3;
    network.isolate(target);
    network.propose(leader, "missed");
    network.settle();
    let term = network.raft(leader).soft_state().term;
    assert!(network.transfer(leader, Some(target)));
    assert!(!network.propose(leader, "too late"));
    network.settle();
    assert_eq!(network.leader(), Some(leader), "the target lacks an entry");
    network.heal();
    network.tick(leader);
    network.settle();
    assert_eq!(network.leader(), Some(target), "at once, while everybody hears the old leader");
    assert_eq!(network.raft(target).soft_state().term, term + 1);
    assert!(network.propose(target, "taken over"));
}

#[test]
fn a_transfer_to_a_node_that_does_not_answer_is_given_up_after_an_election_timeout() {
    let (mut network, leader) = founded(3, 3);
    let target = 1 + leader % 3;
    network.crash(target, usize::MAX);
    assert!(network.transfer(leader, Some(target)));
    let other = 1 + target % 3;
    let refused = network.raft(leader).transfer_leadership(Some(other)).unwrap_err();
    assert_eq!(refused, TransferError::UnderWay { to: target });
    for _ in 0..10 {
        assert!(!network.propose(leader, "waits"));
        network.round();
    }
    assert!(network.propose(leader, "goes on"));
    network.round();
    assert_eq!(network.leader(), Some(leader));
}

#[test]
fn a_transfer_goes_to_another_voter_only_and_by_default_to_the_one_that_is_furthest() {
    let (mut network, leader) = founded(4, 3);
    change(&mut network, leader, &[add(4)]);
    for to in [4, leader, 9] {
        let refused = network.raft(leader).transfer_leadership(Some(to)).unwrap_err();
        assert_eq!(refused, TransferError::NotAVoter { to });
    }
    let (behind, ahead) = (1 + leader % 3, 1 + (leader + 1) % 3);
    network.isolate(behind);
    network.propose(leader, "missed by one");
    network.settle();
    network.heal();
    assert_eq!(network.raft(leader).transfer_leadership(None), Ok(ahead));
}

/// The word to take over, late: the leader of that term is known to have gone on, or to be gone.
#[test]
fn an_old_word_to_take_over_changes_nothing() {
    let (mut network, leader) = founded(3, 3);
    let target = 1 + leader % 3;
    assert!(network.transfer(leader, Some(target)));
    let late: Vec<_> = std::mem::take(&mut network.messages);
    let late = late.into_iter().find(|m| m.body == Body::TimeoutNow).expect("the target has everything");
    let third = 1 + target % 3;
    network.crash(leader, usize::MAX);
    network.elect_instead(third);
    network.restart(leader);
    network.round();
    let term = network.raft(third).soft_state().term;
    network.deliver(late);
    network.settle();
    assert_eq!((network.leader(), network.raft(third).soft_state().term), (Some(third), term));
}

/// hashicorp/raft#503, tikv#17363: a leader whose disk hangs goes on with heartbeats, and nothing it applies moves.
#[test]
fn a_leader_whose_disk_hangs_gives_leadership_to_one_whose_disk_does_not() {
    let (mut network, leader) = founded(3, 3);
    network.propose(leader, "on two disks of three");
    // Its own disk does nothing from now on.
    for _ in 0..40 {
        for id in network.ids() {
            network.tick(id);
        }
        for _ in 0..10 {
            for message in std::mem::take(&mut network.messages) {
                network.deliver(message);
            }
            for id in network.ids() {
                if id != leader {
                    network.sync(id, usize::MAX);
                }
            }
        }
        if network.leader() != Some(leader) {
            break;
        }
    }
    let next = network.leader().expect("it was handed over");
    assert_ne!(next, leader);
    assert!(network.propose(next, "goes on"));
}

#[test]
fn a_leader_whose_disk_is_no_slower_than_the_others_keeps_leadership() {
    let (mut network, leader) = founded(3, 3);
    network.propose(leader, "on no disk yet");
    for _ in 0..30 {
        for id in network.ids() {
            network.tick(id);
        }
        for _ in 0..5 {
            for message in std::mem::take(&mut network.messages) {
                network.deliver(message);
            }
        }
    }
    assert_eq!(network.leader(), Some(leader));
    assert_eq!(network.raft(leader).status().transfer, None);
}

#[test]
fn a_leader_that_has_to_stop_names_whoever_is_furthest() {
    let (mut network, leader) = founded(3, 3);
    network.raft(leader).abdicate();
    network.drain(leader);
    network.settle();
    assert!(network.leader().is_some_and(|next| next != leader));
}

#[test]
fn a_new_member_far_behind_is_sent_a_snapshot_and_then_entries() {
    let (mut network, leader) = founded(4, 3);
    for n in 0..30 {
        network.propose(leader, &format!("{n}"));
        network.settle();
    }
    network.compact(leader, 0);
    change(&mut network, leader, &[add(4)]);
    let status = network.raft(leader).status();
    let peer = status.peers.iter().find(|peer| peer.id == 4).unwrap();
    assert_eq!((peer.state, peer.matched), (ProgressState::Replicate, status.last_index));
}
