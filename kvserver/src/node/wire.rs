//! Raft's messages on the wire: translation between `squall_raft`'s types and the protobuf ones. Nothing
//! else.

use squall_raft::core::types::{Entry, EntryKind, SnapshotMeta};
use squall_raft::core::{Body, Message};
use squall_rpc::proto::raft as wire;
use squall_rpc::proto::raft::message::Body as WireBody;

/// A message as it is sent.
pub(super) fn to_wire(message: Message) -> wire::Message {
    let Message { from, to, incarnation, term, body } = message;
    let vote = |last_index, last_term, transfer| wire::VoteRequest { last_index, last_term, transfer };
    let body = match body {
        Body::PreVote { last_index, last_term } => WireBody::PreVote(vote(last_index, last_term, false)),
        Body::PreVoteReply { granted } => WireBody::PreVoteReply(wire::VoteReply { granted }),
        Body::Vote { last_index, last_term, transfer } => {
            WireBody::Vote(vote(last_index, last_term, transfer))
        }
        Body::VoteReply { granted } => WireBody::VoteReply(wire::VoteReply { granted }),
        Body::Append { prev_index, prev_term, entries, commit } => WireBody::Append(wire::Append {
            prev_index,
            prev_term,
            entries: entries.into_iter().map(entry_to_wire).collect(),
            commit,
        }),
        Body::AppendAccepted { matched } => WireBody::AppendAccepted(wire::AppendAccepted { matched }),
        Body::AppendRejected { rejected, hint_index, hint_term } => {
            WireBody::AppendRejected(wire::AppendRejected { rejected, hint_index, hint_term })
        }
        Body::Heartbeat { commit, context } => WireBody::Heartbeat(wire::Heartbeat { commit, context }),
        Body::HeartbeatReply { context } => WireBody::HeartbeatReply(wire::HeartbeatReply { context }),
        // Its members are in the file, without which it says nothing.
        Body::InstallSnapshot { snapshot, .. } => WireBody::InstallSnapshot(meta_to_wire(snapshot)),
        Body::TimeoutNow => WireBody::TimeoutNow(wire::TimeoutNow {}),
        Body::Refused { members_index } => WireBody::Refused(wire::Refused { members_index }),
    };
    wire::Message { from, to, term, body: Some(body), incarnation }
}

/// A message that arrived; `None` if a peer of another release sent what this one does not know, or a snapshot without its file.
pub(super) fn from_wire(message: wire::Message) -> Option<Message> {
    let wire::Message { from, to, term, body, incarnation } = message;
    let body = match body? {
        WireBody::PreVote(vote) => Body::PreVote { last_index: vote.last_index, last_term: vote.last_term },
        WireBody::PreVoteReply(reply) => Body::PreVoteReply { granted: reply.granted },
        WireBody::Vote(wire::VoteRequest { last_index, last_term, transfer }) => {
            Body::Vote { last_index, last_term, transfer }
        }
        WireBody::VoteReply(reply) => Body::VoteReply { granted: reply.granted },
        WireBody::Append(append) => Body::Append {
            prev_index: append.prev_index,
            prev_term: append.prev_term,
            entries: append.entries.into_iter().map(entry_from_wire).collect::<Option<_>>()?,
            commit: append.commit,
        },
        WireBody::AppendAccepted(accepted) => Body::AppendAccepted { matched: accepted.matched },
        WireBody::AppendRejected(rejected) => Body::AppendRejected {
            rejected: rejected.rejected,
            hint_index: rejected.hint_index,
            hint_term: rejected.hint_term,
        },
        WireBody::Heartbeat(beat) => Body::Heartbeat { commit: beat.commit, context: beat.context },
        WireBody::HeartbeatReply(reply) => Body::HeartbeatReply { context: reply.context },
        WireBody::InstallSnapshot(_) => return None,
        WireBody::TimeoutNow(_) => Body::TimeoutNow,
        WireBody::Refused(refused) => Body::Refused { members_index: refused.members_index },
    };
    Some(Message { from, to, incarnation, term, body })
}

/// A snapshot's position as it is sent.
pub(super) fn meta_to_wire(meta: SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta { index: meta.index, term: meta.term }
}

/// A snapshot's position that arrived.
pub(super) fn meta_from_wire(meta: wire::SnapshotMeta) -> SnapshotMeta {
    SnapshotMeta { index: meta.index, term: meta.term }
}

fn entry_to_wire(entry: Entry) -> wire::Entry {
    let kind = match entry.kind {
        EntryKind::Command => wire::EntryKind::Command,
        EntryKind::Noop => wire::EntryKind::Noop,
        EntryKind::Members => wire::EntryKind::Members,
    };
    wire::Entry { index: entry.index, term: entry.term, kind: kind.into(), data: entry.data }
}

fn entry_from_wire(entry: wire::Entry) -> Option<Entry> {
    let kind = match wire::EntryKind::try_from(entry.kind).ok()? {
        wire::EntryKind::Command => EntryKind::Command,
        wire::EntryKind::Noop => EntryKind::Noop,
        wire::EntryKind::Members => EntryKind::Members,
    };
    Some(Entry { index: entry.index, term: entry.term, kind, data: entry.data })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn every_message_survives_the_wire() {
        let entry = |index, kind| Entry { index, term: 4, kind, data: Bytes::from_static(b"data") };
        let bodies = [
            Body::PreVote { last_index: 1, last_term: 2 },
            Body::PreVoteReply { granted: true },
            Body::Vote { last_index: 3, last_term: 4, transfer: true },
            Body::VoteReply { granted: false },
            Body::Append {
                prev_index: 5,
                prev_term: 4,
                entries: vec![
                    entry(6, EntryKind::Command),
                    entry(7, EntryKind::Noop),
                    entry(8, EntryKind::Members),
                ],
                commit: 5,
            },
            Body::AppendAccepted { matched: 7 },
            Body::AppendRejected { rejected: 5, hint_index: 3, hint_term: 2 },
            Body::Heartbeat { commit: 9, context: 10 },
            Body::HeartbeatReply { context: 10 },
            Body::TimeoutNow,
            Body::Refused { members_index: 12 },
        ];
        for body in bodies {
            let message = Message { from: 1, to: 2, incarnation: 5, term: 4, body };
            assert_eq!(from_wire(to_wire(message.clone())), Some(message));
        }
    }

    #[test]
    fn what_a_newer_release_says_is_not_guessed_at() {
        let message = wire::Message { from: 1, to: 2, term: 3, body: None, incarnation: 0 };
        assert_eq!(from_wire(message), None);
        let entry = wire::Entry { index: 1, term: 1, kind: 99, data: Bytes::new() };
        let append = wire::Append { prev_index: 0, prev_term: 0, entries: vec![entry], commit: 0 };
        let message =
            wire::Message { from: 1, to: 2, term: 3, body: Some(WireBody::Append(append)), incarnation: 0 };
        assert_eq!(from_wire(message), None);
    }
}
