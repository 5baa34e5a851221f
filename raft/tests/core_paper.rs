//! The Raft paper and dissertation, section by section, and the cases around them that other implementations got wrong.

mod support;

use bytes::Bytes;
use squall_raft::core::types::{Entry, EntryKind, HardState, NodeId, SnapshotMeta, Term};
use squall_raft::core::{Body, Config, Membership, Message, ProgressState, Raft, Ready, Role, StepError};
use support::Network;

fn network(size: u64) -> Network {
    Network::new(size, 7, |_| ())
}

fn entry(index: u64, term: Term) -> Entry {
    Entry { index, term, kind: EntryKind::Command, data: Bytes::from_static(b"x") }
}

/// A log from index 1 on.
fn entries(terms: &[Term]) -> Vec<Entry> {
    (1..).zip(terms).map(|(index, &term)| entry(index, term)).collect()
}

/// Node 1 of a group of three, in `term`, with a log of these terms.
fn lone(term: Term, terms: &[Term]) -> Raft {
    let hard_state = HardState { term, ..HardState::default() };
    let members = Membership::of_voters([1, 2, 3]);
    Raft::new(Config::new(1), hard_state, SnapshotMeta::default(), members, entries(terms)).unwrap()
}

fn message(from: NodeId, term: Term, body: Body) -> Message {
    Message { from, to: 1, incarnation: 0, term, body }
}

/// Everything the node does next, with its writes done.
fn run(raft: &mut Raft) -> Vec<Ready> {
    let mut all = Vec::new();
    while let Some(ready) = raft.ready() {
        if ready.seq != 0 {
            raft.persisted(ready.seq);
        }
        if let Some(last) = ready.committed.last() {
            raft.applied(last.index);
        }
        all.push(ready);
    }
    all
}

fn sent(readies: Vec<Ready>) -> Vec<Message> {
    readies.into_iter().flat_map(|r| r.messages.into_iter().chain(r.messages_after_persist)).collect()
}

fn answer(raft: &mut Raft, message: Message) -> Body {
    raft.step(message).unwrap();
    let mut replies = sent(run(raft));
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies.remove(0).body
}

fn lead(raft: &mut Raft) {
    while raft.soft_state().role != Role::PreCandidate {
        raft.tick(0);
    }
    run(raft);
    let term = raft.soft_state().term + 1;
    raft.step(message(2, term, Body::PreVoteReply { granted: true })).unwrap();
    run(raft);
    raft.step(message(2, term, Body::VoteReply { granted: true })).unwrap();
    assert_eq!(raft.soft_state().role, Role::Leader);
}

#[test]
fn section_5_1_a_stale_term_is_refused_and_told_the_current_one() {
    let mut raft = lone(5, &[1]);
    for (body, reply) in [
        (Body::Vote { last_index: 9, last_term: 4, transfer: false }, Body::VoteReply { granted: false }),
        (Body::PreVote { last_index: 9, last_term: 4 }, Body::PreVoteReply { granted: false }),
        (Body::Heartbeat { commit: 0, context: 0 }, Body::AppendAccepted { matched: 0 }),
    ] {
        raft.step(message(2, 4, body)).unwrap();
        let replies = sent(run(&mut raft));
        assert_eq!(replies, vec![Message { from: 1, to: 2, incarnation: 0, term: 5, body: reply }]);
    }
    assert_eq!(raft.soft_state().leader, None);
}

#[test]
fn section_5_1_a_leader_that_sees_a_higher_term_steps_down() {
    let mut raft = lone(1, &[]);
    lead(&mut raft);
    raft.step(message(3, 9, Body::AppendAccepted { matched: 0 })).unwrap();
    assert_eq!((raft.soft_state().role, raft.soft_state().term), (Role::Follower, 9));
}

#[test]
fn section_5_2_a_follower_that_hears_nothing_campaigns_within_two_timeouts() {
    for random in 0..20 {
        let mut raft = lone(1, &[]);
        let mut ticks = 0;
        while raft.soft_state().role == Role::Follower {
            raft.tick(random);
            ticks += 1;
        }
        assert_eq!(ticks, 10 + random % 10);
    }
}

#[test]
fn section_5_2_a_leader_that_keeps_talking_is_not_challenged() {
    let mut raft = lone(1, &[]);
    for _ in 0..50 {
        for _ in 0..9 {
            raft.tick(0);
        }
        raft.step(message(2, 1, Body::Heartbeat { commit: 0, context: 0 })).unwrap();
    }
    assert_eq!(raft.soft_state().role, Role::Follower);
}

#[test]
fn section_5_2_one_vote_per_term_also_across_a_restart() {
    let mut raft = lone(1, &[]);
    let ask = |from| message(from, 2, Body::Vote { last_index: 0, last_term: 0, transfer: false });
    assert_eq!(answer(&mut raft, ask(2)), Body::VoteReply { granted: true });
    assert_eq!(answer(&mut raft, ask(3)), Body::VoteReply { granted: false });
    assert_eq!(answer(&mut raft, ask(2)), Body::VoteReply { granted: true }, "the answer may have been lost");

    let hard_state = HardState { term: 2, vote: Some(2), commit: 0 };
    let members = Membership::of_voters([1, 2, 3]);
    let mut raft = Raft::new(Config::new(1), hard_state, SnapshotMeta::default(), members, vec![]).unwrap();
    assert_eq!(answer(&mut raft, ask(3)), Body::VoteReply { granted: false });
}

#[test]
fn section_5_2_a_granted_vote_waits_for_the_disk_and_a_refusal_does_not() {
    let mut raft = lone(1, &[1]);
    raft.step(message(2, 2, Body::Vote { last_index: 1, last_term: 1, transfer: false })).unwrap();
    let ready = raft.ready().unwrap();
    assert_eq!(ready.hard_state, Some(HardState { term: 2, vote: Some(2), commit: 0 }));
    assert!(ready.messages.is_empty());
    assert_eq!(ready.messages_after_persist[0].body, Body::VoteReply { granted: true });
    raft.step(message(3, 2, Body::Vote { last_index: 1, last_term: 1, transfer: false })).unwrap();
    assert_eq!(raft.ready().unwrap().messages[0].body, Body::VoteReply { granted: false });
}

#[test]
fn section_5_2_a_candidate_leads_only_when_its_own_vote_is_durable() {
    let mut raft = lone(1, &[]);
    while raft.soft_state().role != Role::PreCandidate {
        raft.tick(0);
    }
    run(&mut raft);
    raft.step(message(2, 2, Body::PreVoteReply { granted: true })).unwrap();
    let vote = raft.ready().unwrap();
    for peer in [2, 3] {
        raft.step(message(peer, 2, Body::VoteReply { granted: true })).unwrap();
    }
    assert_eq!(raft.soft_state().role, Role::Candidate);
    raft.persisted(vote.seq);
    assert_eq!(raft.soft_state().role, Role::Leader);
}

#[test]
fn section_5_2_a_candidate_that_meets_the_leader_of_its_term_follows_it() {
    let mut raft = lone(1, &[]);
    while raft.soft_state().role != Role::PreCandidate {
        raft.tick(0);
    }
    run(&mut raft);
    raft.step(message(2, 2, Body::PreVoteReply { granted: true })).unwrap();
    run(&mut raft);
    assert_eq!(raft.soft_state().role, Role::Candidate);
    raft.step(message(3, 2, Body::Heartbeat { commit: 0, context: 0 })).unwrap();
    assert_eq!((raft.soft_state().role, raft.soft_state().leader), (Role::Follower, Some(3)));
}

#[test]
fn section_5_3_an_append_is_acknowledged_only_after_it_is_durable() {
    let mut raft = lone(1, &[]);
    let append = Body::Append { prev_index: 0, prev_term: 0, entries: entries(&[1, 1]), commit: 2 };
    raft.step(message(2, 1, append.clone())).unwrap();
    let first = raft.ready().unwrap();
    assert_eq!(first.entries.len(), 2);
    assert!(first.messages.is_empty() && first.committed.is_empty());
    assert_eq!(first.messages_after_persist[0].body, Body::AppendAccepted { matched: 2 });

    // The same message again, while the disk still works on the first: its answer must wait, too.
    raft.step(message(2, 1, append)).unwrap();
    let second = raft.ready().unwrap();
    assert!(second.messages.is_empty() && second.entries.is_empty());
    assert!(second.seq > first.seq);
    raft.persisted(second.seq);
    assert_eq!(raft.ready().unwrap().committed.len(), 2);
}

#[test]
fn section_5_3_the_leader_sends_before_its_own_disk_is_done_and_counts_itself_after() {
    let mut raft = lone(1, &[]);
    lead(&mut raft);
    let opening = raft.ready().unwrap();
    assert_eq!((opening.entries.len(), opening.messages.len()), (1, 2));
    raft.step(message(2, 2, Body::AppendAccepted { matched: 1 })).unwrap();
    assert_eq!(raft.committed(), 0, "one of three disks");
    raft.persisted(opening.seq);
    assert_eq!(raft.committed(), 1);

    raft.propose(vec![Bytes::from_static(b"a")]).unwrap();
    let write = raft.ready().unwrap();
    for peer in [2, 3] {
        raft.step(message(peer, 2, Body::AppendAccepted { matched: 1 })).unwrap();
        raft.step(message(peer, 2, Body::AppendAccepted { matched: 2 })).unwrap();
    }
    assert_eq!(raft.committed(), 2, "the other two disks suffice");
    assert!(raft.ready().is_none_or(|r| r.committed.is_empty()), "but it applies only what it has itself");
    raft.persisted(write.seq);
    assert_eq!(raft.ready().unwrap().committed.len(), 1);
}

#[test]
fn section_5_3_a_gap_or_a_conflict_is_refused_with_a_hint_that_skips_terms() {
    // (log, prev_index, prev_term, expected hint)
    for (terms, prev_index, prev_term, hint) in [
        (&[1, 1][..], 9, 1, (2, 1)),
        (&[1, 1, 2, 2, 2], 5, 4, (5, 2)),
        (&[1, 1, 4, 4, 4], 5, 3, (2, 1)),
        (&[4, 4, 4], 3, 2, (0, 0)),
    ] {
        let mut raft = lone(5, terms);
        let append = Body::Append { prev_index, prev_term, entries: vec![], commit: 0 };
        let (hint_index, hint_term) = hint;
        let expected = Body::AppendRejected { rejected: prev_index, hint_index, hint_term };
        assert_eq!(answer(&mut raft, message(2, 5, append)), expected);
    }
}

#[test]
fn section_5_3_a_conflicting_suffix_is_replaced_and_a_shorter_old_append_is_not_a_reason_to_cut() {
    let mut raft = lone(5, &[1, 2, 2, 2]);
    let append = Body::Append { prev_index: 1, prev_term: 1, entries: vec![entry(2, 3)], commit: 0 };
    assert_eq!(answer(&mut raft, message(2, 5, append.clone())), Body::AppendAccepted { matched: 2 });
    assert_eq!((raft.status().last_index, raft.entry_term(2)), (2, Some(3)));

    let longer = vec![entry(2, 3), entry(3, 5)];
    let longer = Body::Append { prev_index: 1, prev_term: 1, entries: longer, commit: 0 };
    assert_eq!(answer(&mut raft, message(2, 5, longer)), Body::AppendAccepted { matched: 3 });
    // Late and repeated: cutting here would lose entry 3, which was acknowledged.
    assert_eq!(answer(&mut raft, message(2, 5, append)), Body::AppendAccepted { matched: 2 });
    assert_eq!(raft.status().last_index, 3);
}

#[test]
fn section_5_3_commit_reaches_no_further_than_what_this_append_proves() {
    let mut raft = lone(5, &[1, 2, 2, 2]);
    // The entries after 1 may be a dead leader's; the leader's own 2..4 would come with later messages.
    let append = Body::Append { prev_index: 1, prev_term: 1, entries: vec![], commit: 4 };
    assert_eq!(answer(&mut raft, message(2, 5, append)), Body::AppendAccepted { matched: 1 });
    assert_eq!(raft.committed(), 1);
}

/// Figure 7: six followers whose logs differ from the leader's in every way that elections can cause.
#[test]
fn figure_7_every_divergent_log_is_repaired() {
    let leader_log = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[Term]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for follower in followers {
        let mut network = network(3);
        for (id, log, term) in [(1, &leader_log[..], 7), (2, follower, 7), (3, &leader_log[..3], 1)] {
            network.crash(id, 0);
            let disk = &mut network.nodes.get_mut(&id).unwrap().disk;
            disk.hard_state.term = term;
            disk.entries = entries(log);
            network.restart(id);
        }
        network.elect_node(1);
        network.settle();
        network.check_logs();
        assert_eq!(network.raft(2).status().last_index, network.raft(1).status().last_index);
        assert!(network.agrees());
    }
}

#[test]
fn section_5_4_1_a_candidate_with_an_older_log_gets_no_vote() {
    // (own log, candidate's last index, candidate's last term, granted)
    for (terms, last_index, last_term, granted) in [
        (&[1][..], 1, 1, true),
        (&[1], 1, 2, true),
        (&[1, 1], 1, 1, false),
        (&[1], 2, 1, true),
        (&[1, 1], 1, 2, true),
        (&[2], 2, 1, false),
    ] {
        let mut raft = lone(3, terms);
        let pre_vote = message(2, 4, Body::PreVote { last_index, last_term });
        assert_eq!(answer(&mut raft, pre_vote), Body::PreVoteReply { granted });
        assert_eq!(raft.soft_state().term, 3, "a pre-vote changes nothing");
        let vote = message(2, 4, Body::Vote { last_index, last_term, transfer: false });
        assert_eq!(answer(&mut raft, vote), Body::VoteReply { granted });
    }
}

#[test]
fn figure_8_commits_only_own_term_by_count() {
    let mut raft = lone(2, &[1, 2]);
    lead(&mut raft);
    assert_eq!(raft.soft_state().term, 3);
    run(&mut raft);
    raft.step(message(2, 3, Body::AppendAccepted { matched: 2 })).unwrap();
    assert_eq!(raft.committed(), 0, "entry 2 is on a majority, but of an earlier term");
    raft.step(message(2, 3, Body::AppendAccepted { matched: 3 })).unwrap();
    assert_eq!(raft.committed(), 3);
}

#[test]
fn section_5_5_lost_and_repeated_messages_are_harmless() {
    let mut network = network(3);
    let leader = network.elect();
    network.settle();
    for round in 0..20 {
        network.propose(leader, &format!("{round}"));
        let messages = std::mem::take(&mut network.messages);
        for (at, message) in messages.into_iter().enumerate() {
            if at % 3 != 0 {
                network.deliver(message.clone());
                network.deliver(message);
            }
        }
        network.round();
    }
    for _ in 0..3 {
        network.round();
    }
    assert!(network.agrees());
    assert_eq!(network.leader(), Some(leader));
}

#[test]
fn section_7_a_follower_that_needs_compacted_entries_gets_the_snapshot() {
    let mut network = network(3);
    let leader = network.elect();
    let lagging = network.ids().into_iter().find(|&id| id != leader).unwrap();
    network.isolate(lagging);
    for n in 0..20 {
        network.propose(leader, &format!("{n}"));
        network.settle();
    }
    network.compact(leader, 2);
    assert!(network.raft(leader).status().first_index > 15);
    network.heal();
    for _ in 0..5 {
        network.round();
    }
    assert!(network.agrees());
    assert!(network.raft(lagging).status().snapshot.index > 0);
    let peers = network.raft(leader).status().peers;
    assert!(peers.iter().all(|peer| peer.state == ProgressState::Replicate));
}

#[test]
fn section_7_a_snapshot_of_what_the_log_already_has_only_commits() {
    let mut raft = lone(2, &[1, 1, 2]);
    let snapshot = Body::InstallSnapshot {
        snapshot: SnapshotMeta { index: 2, term: 1 },
        members: Membership::of_voters([1, 2, 3]),
    };
    assert_eq!(answer(&mut raft, message(2, 2, snapshot)), Body::AppendAccepted { matched: 2 });
    assert_eq!((raft.committed(), raft.status().last_index), (2, 3));
}

#[test]
fn section_7_entries_that_a_follower_is_about_to_get_are_kept_within_a_limit() {
    let mut network = network(3);
    let leader = network.elect();
    let lagging = 1 + leader % 3;
    network.propose(leader, "both have it");
    network.round();
    let has = network.raft(leader).committed();
    network.isolate(lagging);
    for _ in 0..20 {
        network.propose(leader, "0123456789");
    }
    network.settle();
    let last = network.raft(leader).committed();
    assert_eq!(last, has + 20);
    let keep_from =
        |network: &mut Network, lagging_bytes| network.raft(leader).keep_from(last, 2, 1000, lagging_bytes);
    assert_eq!(keep_from(&mut network, 1000), has + 1);
    assert_eq!(keep_from(&mut network, 100), last - 9, "a limit");
    assert_eq!(keep_from(&mut network, 0), last - 1, "as for everybody");
    // It is not heard from any more: it will need a snapshot.
    for _ in 0..15 {
        network.tick(leader);
        network.settle();
    }
    assert_eq!(keep_from(&mut network, 1000), last - 1);
}

#[test]
fn section_7_a_failed_snapshot_transfer_is_repeated() {
    let mut raft = lone(1, &[]);
    lead(&mut raft);
    run(&mut raft);
    for peer in [2, 3] {
        raft.step(message(peer, 2, Body::AppendAccepted { matched: 1 })).unwrap();
    }
    run(&mut raft);
    for _ in 0..5 {
        raft.propose(vec![Bytes::from_static(b"a")]).unwrap();
    }
    run(&mut raft);
    raft.step(message(3, 2, Body::AppendAccepted { matched: 6 })).unwrap();
    run(&mut raft);
    raft.compacted(SnapshotMeta { index: 6, term: 2 }, 7);
    let is_snapshot = |m: &Message| matches!(m.body, Body::InstallSnapshot { .. });
    let rejected = Body::AppendRejected { rejected: 6, hint_index: 1, hint_term: 2 };
    raft.step(message(2, 2, rejected)).unwrap();
    assert_eq!(sent(run(&mut raft)).iter().filter(|m| is_snapshot(m)).count(), 1);
    raft.report_snapshot(2, false);
    assert!(!sent(run(&mut raft)).iter().any(is_snapshot), "not before the next sign of life");
    raft.step(message(2, 2, Body::HeartbeatReply { context: 0 })).unwrap();
    assert_eq!(sent(run(&mut raft)).iter().filter(|m| is_snapshot(m)).count(), 1);
    raft.report_snapshot(2, true);
    raft.step(message(2, 2, Body::AppendAccepted { matched: 6 })).unwrap();
    assert_eq!(raft.status().peers[0].state, ProgressState::Replicate);
}

#[test]
fn dissertation_6_2_a_leader_without_a_quorum_steps_down() {
    let mut network = network(3);
    let leader = network.elect();
    network.isolate(leader);
    for _ in 0..20 {
        network.tick(leader);
    }
    assert_eq!(network.raft(leader).soft_state().role, Role::Follower);
}

#[test]
fn dissertation_6_4_reads_wait_for_an_entry_of_the_own_term_and_for_a_quorum() {
    let mut raft = lone(1, &[1]);
    lead(&mut raft);
    let opening = raft.ready().unwrap();
    raft.read_index(77).unwrap();
    raft.persisted(opening.seq);
    raft.step(message(2, 2, Body::HeartbeatReply { context: 0 })).unwrap();
    assert!(run(&mut raft).iter().all(|r| r.read_states.is_empty()), "its commit index may lag");

    raft.step(message(2, 2, Body::AppendAccepted { matched: 2 })).unwrap();
    let heartbeats = sent(run(&mut raft));
    let asked = heartbeats.iter().find_map(|m| match m.body {
        Body::Heartbeat { context, .. } => Some(context),
        _ => None,
    });
    let context = asked.expect("a round of heartbeats");
    raft.step(message(3, 2, Body::HeartbeatReply { context: context - 1 })).unwrap();
    assert!(run(&mut raft).iter().all(|r| r.read_states.is_empty()), "an answer from before the read");
    raft.step(message(3, 2, Body::HeartbeatReply { context })).unwrap();
    let reads: Vec<_> = run(&mut raft).into_iter().flat_map(|r| r.read_states).collect();
    assert_eq!(reads.iter().map(|r| (r.context, r.index)).collect::<Vec<_>>(), vec![(77, 2)]);
}

#[test]
fn dissertation_6_4_reads_that_start_together_share_one_round() {
    let mut network = network(3);
    let leader = network.elect();
    network.settle();
    let raft = network.raft(leader);
    for context in 0..100 {
        raft.read_index(context).unwrap();
    }
    let ready = raft.ready().unwrap();
    assert_eq!(ready.messages.len(), 2);
}

#[test]
fn dissertation_9_6_a_node_that_was_cut_off_disturbs_nobody_when_it_returns() {
    let mut network = network(3);
    let leader = network.elect();
    network.settle();
    let term = network.raft(leader).soft_state().term;
    let cut_off = network.ids().into_iter().find(|&id| id != leader).unwrap();
    network.isolate(cut_off);
    for _ in 0..100 {
        network.round();
    }
    network.heal();
    for _ in 0..20 {
        network.round();
    }
    assert_eq!((network.leader(), network.raft(leader).soft_state().term), (Some(leader), term));
}

/// The partial partition that stopped other systems for hours: the leader and one follower do not hear each other,
/// the third hears both. The cut-off follower must neither depose the leader nor raise the term.
#[test]
fn a_follower_that_cannot_hear_the_leader_does_not_depose_it() {
    let mut network = network(3);
    let leader = network.elect();
    network.settle();
    let term = network.raft(leader).soft_state().term;
    let deaf = network.ids().into_iter().find(|&id| id != leader).unwrap();
    network.cut.insert((leader, deaf));
    network.cut.insert((deaf, leader));
    for n in 0..60 {
        network.propose(leader, &format!("{n}"));
        network.round();
    }
    assert_eq!((network.leader(), network.raft(leader).soft_state().term), (Some(leader), term));
}

/// A leader that can send but not receive keeps its followers quiet; check-quorum makes it give up.
#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    let mut network = network(3);
    let old = network.elect();
    for id in network.ids() {
        network.cut.insert((id, old));
    }
    for _ in 0..60 {
        network.round();
    }
    let new = network.leader().unwrap();
    assert_ne!(new, old);
    assert!(network.propose(new, "x"));
    network.settle();
    assert!(network.commands(new).contains(&"x".to_owned()));
}

#[test]
fn a_group_of_one_elects_itself_commits_and_reads_alone() {
    let mut network = network(1);
    assert_eq!(network.elect(), 1);
    assert!(network.propose(1, "a"));
    assert_eq!(network.node(1).state.0, 1, "only the no-op: the disk is not done");
    network.settle();
    assert_eq!(network.node(1).state.0, 2);
    assert!(network.read(1));
    assert_eq!(network.node(1).reads_done, 1);
}

#[test]
fn appends_are_limited_in_bytes_and_in_flight() {
    let mut network = Network::new(2, 7, |config| {
        config.append_bytes_max = 10;
        config.inflight_messages_max = 3;
    });
    let leader = network.elect();
    network.settle();
    for _ in 0..50 {
        network.raft(leader).propose(vec![Bytes::from_static(b"1234")]).unwrap();
    }
    network.drain(leader);
    let sizes: Vec<usize> = network
        .messages
        .iter()
        .filter_map(|m| match &m.body {
            Body::Append { entries, .. } => Some(entries.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, vec![2, 2, 2]);
    network.settle();
    assert!(network.agrees());
}

#[test]
fn messages_that_no_working_peer_sends_are_refused_and_change_nothing() {
    let mut raft = lone(5, &[1, 2]);
    raft.step(message(2, 5, Body::Append { prev_index: 2, prev_term: 2, entries: vec![], commit: 2 }))
        .unwrap();
    run(&mut raft);
    let before = raft.status();
    let append = |prev_index, entries| Body::Append { prev_index, prev_term: 1, entries, commit: 0 };
    let malformed = |raft: &mut Raft, m| matches!(raft.step(m), Err(StepError::Malformed { from: 2, .. }));
    assert!(malformed(&mut raft, message(2, 5, append(1, vec![entry(3, 2)]))), "a hole");
    assert!(malformed(&mut raft, message(2, 5, append(1, vec![entry(2, 3), entry(3, 2)]))), "falling terms");
    assert!(malformed(&mut raft, message(2, 5, append(1, vec![entry(2, 6)]))), "an entry from the future");
    assert!(malformed(&mut raft, message(2, 5, append(u64::MAX, vec![entry(1, 1)]))));
    assert!(malformed(&mut raft, message(2, u64::MAX, Body::Heartbeat { commit: 0, context: 0 })));
    assert!(malformed(&mut raft, message(2, 0, Body::HeartbeatReply { context: 0 })));
    let snapshot = SnapshotMeta { index: u64::MAX, term: 1 };
    let members = Membership::of_voters([1, 2, 3]);
    assert!(malformed(&mut raft, message(2, 5, Body::InstallSnapshot { snapshot, members })));
    let (snapshot, members) = (SnapshotMeta { index: 9, term: 5 }, Membership::default());
    assert!(malformed(&mut raft, message(2, 5, Body::InstallSnapshot { snapshot, members })));
    let nonsense = Entry { kind: EntryKind::Members, ..entry(3, 5) };
    assert!(malformed(&mut raft, message(2, 5, append(2, vec![nonsense]))));

    let heartbeat = Body::Heartbeat { commit: 9, context: 0 };
    assert!(matches!(
        raft.step(message(2, 5, heartbeat.clone())),
        Err(StepError::LostEntries { commit: 9, .. })
    ));
    assert!(matches!(raft.step(message(3, 5, heartbeat.clone())), Err(StepError::TwoLeaders { .. })));
    assert!(matches!(raft.step(message(0, 5, heartbeat.clone())), Err(StepError::NotAPeer { from: 0 })));
    assert!(matches!(raft.step(message(1, 5, heartbeat.clone())), Err(StepError::NotAPeer { from: 1 })));
    let elsewhere = Message { from: 2, to: 3, incarnation: 0, term: 5, body: heartbeat };
    assert!(matches!(raft.step(elsewhere), Err(StepError::Misdelivered { to: 3, id: 1 })));
    assert_eq!(raft.status(), before);

    lead(&mut raft);
    let term = raft.soft_state().term;
    let ack = raft.step(message(2, term, Body::AppendAccepted { matched: 99 }));
    assert!(matches!(ack, Err(StepError::AckBeyondLog { matched: 99, .. })));
}

/// An operator has removed a node's data, as the errors of the log advise, and the leader has not changed since.
#[test]
fn a_node_that_lost_its_disk_is_brought_back_by_the_same_leader() {
    let mut network = network(3);
    let leader = network.elect();
    let wiped = network.ids().into_iter().find(|&id| id != leader).unwrap();
    for n in 0..10 {
        network.propose(leader, &format!("{n}"));
        network.settle();
    }
    network.crash(wiped, 0);
    network.nodes.get_mut(&wiped).unwrap().disk = Default::default();
    network.restart(wiped);
    network.tick(leader);
    let heartbeat = network.messages.iter().position(|m| m.to == wiped).unwrap();
    let heartbeat = network.messages.remove(heartbeat);
    let lost = network.raft(wiped).step(heartbeat).unwrap_err();
    assert!(matches!(lost, StepError::LostEntries { last_index: 0, .. }), "{lost}");
    network.drain(wiped);
    network.settle();
    network.round();
    assert!(network.agrees());
    assert_eq!(network.leader(), Some(leader));
}

#[test]
fn an_entry_that_is_committed_is_never_replaced() {
    let mut raft = lone(5, &[1, 2]);
    raft.step(message(2, 5, Body::Append { prev_index: 2, prev_term: 2, entries: vec![], commit: 2 }))
        .unwrap();
    run(&mut raft);
    // Its `prev_index` lies below the commit index, so it is answered without being looked at.
    let append = Body::Append { prev_index: 1, prev_term: 1, entries: vec![entry(2, 5)], commit: 0 };
    assert_eq!(answer(&mut raft, message(2, 5, append)), Body::AppendAccepted { matched: 2 });
    assert_eq!(raft.entry_term(2), Some(2));
}
