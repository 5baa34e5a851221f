//! What a leader knows of one peer, and how much it may send. Owns no log and sends nothing.

use std::collections::VecDeque;

use super::types::Index;

/// How a leader treats a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressState {
    /// Where the logs agree is not known: one append at a time, until one is accepted.
    Probe,
    /// The logs agree: appends are sent ahead of their acknowledgements, as the window allows.
    Replicate,
    /// A snapshot is under way, nothing else is sent.
    Snapshot {
        /// The snapshot's index.
        index: Index,
    },
}

/// A leader's view of one peer.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// The last index known to be equal and durable on the peer.
    pub matched: Index,
    /// The next index to send. Invariant: `next > matched`.
    pub next: Index,
    pub state: ProgressState,
    /// Whether anything was heard from it since the last quorum check.
    pub recent_active: bool,
    /// The incarnation that its last answer came from; 0 before it has answered.
    pub incarnation: u64,
    /// The latest ReadIndex round it has answered.
    pub read_round: u64,
    /// The commit index that was last sent to it.
    pub commit_sent: Index,
    /// Send an append even if it is empty: the peer lags and an earlier one may be lost.
    pub resend: bool,
    /// In `Probe`: a probe is out; wait for its answer or the next heartbeat's.
    probe_sent: bool,
    inflight: Inflight,
}

impl Progress {
    pub fn new(next: Index, messages_max: usize, bytes_max: usize) -> Progress {
        Progress {
            matched: 0,
            next,
            state: ProgressState::Probe,
            recent_active: false,
            incarnation: 0,
            read_round: 0,
            commit_sent: 0,
            resend: false,
            probe_sent: false,
            inflight: Inflight { sent: VecDeque::new(), bytes: 0, messages_max, bytes_max },
        }
    }

    /// Whether nothing may be sent now.
    pub fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe => self.probe_sent,
            ProgressState::Replicate => self.inflight.is_full(),
            ProgressState::Snapshot { .. } => true,
        }
    }

    /// An append up to `last` with `bytes` of commands left; `last` is `next - 1` for an empty one.
    pub fn sent_append(&mut self, last: Index, bytes: usize) {
        self.resend = false;
        match self.state {
            ProgressState::Probe => self.probe_sent = true,
            ProgressState::Replicate if last >= self.next => {
                self.next = last + 1;
                self.inflight.add(last, bytes);
            }
            _ => {}
        }
    }

    pub fn sent_snapshot(&mut self, index: Index) {
        self.reset(ProgressState::Snapshot { index });
    }

    /// The peer has everything up to `matched`. `first_index` is the first entry the leader still has. Returns
    /// whether that is news.
    #[must_use]
    pub fn accepted(&mut self, matched: Index, first_index: Index) -> bool {
        let news = matched > self.matched;
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched + 1);
        match self.state {
            ProgressState::Probe => self.become_replicate(),
            ProgressState::Replicate => self.inflight.free_up_to(matched),
            // The snapshot arrived, or the peer caught up by other means: either way the log serves it again.
            ProgressState::Snapshot { .. } if self.matched + 1 >= first_index => self.become_replicate(),
            ProgressState::Snapshot { .. } => {}
        }
        news
    }

    /// The peer refused an append after `rejected`; the logs cannot agree beyond `agree_max`. Returns false
    /// for a stale refusal.
    #[must_use]
    pub fn refused(&mut self, rejected: Index, agree_max: Index) -> bool {
        match self.state {
            ProgressState::Snapshot { .. } => false,
            // Beyond doubt an old answer. Any other may be, too, but costs only a probe.
            ProgressState::Replicate if rejected <= self.matched && agree_max >= self.matched => false,
            ProgressState::Replicate => {
                self.become_probe();
                true
            }
            // Only one probe is out at a time, so an answer to any other is an old one.
            ProgressState::Probe if rejected + 1 != self.next => false,
            ProgressState::Probe => {
                // Below what it had acknowledged: the peer has lost its disk and starts anew. (Or this is a repeated
                // old answer; then its next acknowledgement restores the number. Nothing is uncommitted by it.)
                self.matched = self.matched.min(agree_max);
                self.next = rejected.min(agree_max + 1).max(self.matched + 1);
                self.probe_sent = false;
                true
            }
        }
    }

    /// A heartbeat was answered: whatever was under way has arrived by now or is lost.
    pub fn heard_heartbeat(&mut self, last_index: Index) {
        self.recent_active = true;
        self.probe_sent = false;
        if self.inflight.is_full() {
            // Else a window whose acknowledgements were all lost would stay shut for ever.
            self.inflight.free_first();
        }
        if self.matched < last_index {
            self.resend = true;
        }
    }

    /// A message to the peer was dropped on this side.
    pub fn unreachable(&mut self) {
        if self.state == ProgressState::Replicate {
            self.become_probe();
        }
    }

    /// The transfer of the snapshot ended. Then the peer's own acknowledgement, or the next heartbeat's,
    /// reopens the flow: a probe right away might overtake the installation and ask for the snapshot again.
    pub fn snapshot_ended(&mut self, ok: bool) {
        if let ProgressState::Snapshot { index } = self.state {
            self.reset(ProgressState::Probe);
            self.next = if ok { self.next.max(index + 1) } else { self.matched + 1 };
            self.probe_sent = true;
        }
    }

    fn become_probe(&mut self) {
        self.reset(ProgressState::Probe);
        self.next = self.matched + 1;
    }

    fn become_replicate(&mut self) {
        self.reset(ProgressState::Replicate);
        self.next = self.matched + 1;
    }

    fn reset(&mut self, state: ProgressState) {
        self.state = state;
        self.probe_sent = false;
        self.resend = false;
        self.commit_sent = 0;
        self.inflight.clear();
    }
}

/// The window of unacknowledged appends, in messages and bytes.
#[derive(Debug, Clone)]
struct Inflight {
    /// The last index and the bytes of each message, oldest first.
    sent: VecDeque<(Index, usize)>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
}

impl Inflight {
    fn is_full(&self) -> bool {
        self.sent.len() >= self.messages_max || self.bytes >= self.bytes_max
    }

    fn add(&mut self, last: Index, bytes: usize) {
        self.sent.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn free_up_to(&mut self, index: Index) {
        while self.sent.front().is_some_and(|&(last, _)| last <= index) {
            self.free_first();
        }
    }

    fn free_first(&mut self) {
        if let Some((_, bytes)) = self.sent.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn clear(&mut self) {
        self.sent.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_waits_for_its_answer_or_a_heartbeat() {
        let mut peer = Progress::new(5, 2, 100);
        peer.sent_append(9, 10);
        assert!(peer.is_paused());
        assert_eq!(peer.next, 5);
        peer.heard_heartbeat(9);
        assert!(!peer.is_paused());
        assert!(peer.resend);
    }

    #[test]
    fn the_window_closes_on_messages_and_on_bytes_and_opens_with_acknowledgements() {
        let mut peer = Progress::new(1, 2, 100);
        assert!(!peer.accepted(0, 1));
        peer.sent_append(1, 1);
        assert!(!peer.is_paused());
        peer.sent_append(2, 1);
        assert!(peer.is_paused());
        assert!(peer.accepted(1, 1));
        assert!(!peer.is_paused());
        peer.sent_append(3, 100);
        assert!(peer.is_paused());
        assert!(peer.accepted(3, 1));
        assert!(!peer.is_paused());
    }

    #[test]
    fn a_window_whose_acknowledgements_were_lost_reopens_by_heartbeats() {
        let mut peer = Progress::new(1, 1, 100);
        assert!(!peer.accepted(0, 1));
        peer.sent_append(1, 1);
        assert!(peer.is_paused());
        peer.heard_heartbeat(1);
        assert!(!peer.is_paused());
    }

    #[test]
    fn a_stale_refusal_changes_nothing() {
        let mut peer = Progress::new(10, 2, 100);
        assert!(!peer.refused(3, 0));
        assert!(peer.refused(9, 4));
        assert_eq!(peer.next, 5);
        assert!(peer.accepted(4, 1));
        assert!(!peer.refused(3, 4), "replicating, and 4 is known to match");
        assert!(peer.refused(7, 0));
        assert_eq!((peer.state, peer.next), (ProgressState::Probe, 5));
    }

    #[test]
    fn a_peer_that_lost_what_it_acknowledged_starts_anew() {
        let mut peer = Progress::new(10, 2, 100);
        assert!(peer.accepted(9, 1));
        assert!(peer.refused(9, 0));
        assert_eq!((peer.state, peer.matched, peer.next), (ProgressState::Probe, 9, 10));
        assert!(peer.refused(9, 0));
        assert_eq!((peer.matched, peer.next), (0, 1));
    }

    #[test]
    fn a_snapshot_pauses_until_it_ended_or_the_peer_caught_up() {
        let mut peer = Progress::new(3, 2, 100);
        peer.sent_snapshot(20);
        peer.heard_heartbeat(30);
        assert!(peer.is_paused());
        assert!(!peer.refused(2, 0));
        peer.snapshot_ended(false);
        assert_eq!((peer.state, peer.next), (ProgressState::Probe, 1));

        peer.sent_snapshot(20);
        peer.snapshot_ended(true);
        assert_eq!(peer.next, 21);
        assert!(peer.is_paused());
        assert!(peer.accepted(20, 15));
        assert_eq!((peer.state, peer.next), (ProgressState::Replicate, 21));

        peer.sent_snapshot(40);
        assert!(peer.accepted(25, 30), "news, but the log starts at 30");
        assert_eq!(peer.state, ProgressState::Snapshot { index: 40 });
    }
}
