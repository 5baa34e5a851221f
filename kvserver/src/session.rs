//! Sessions: what makes a request that a client repeats run once.
//!
//! A client that retries names itself by a random `client_id` and numbers its requests from 1, one
//! outstanding at a time. The table is part of the replicated state, so every replica decides alike, also
//! after a restart, a change of leader or from a snapshot:
//!
//! | request | answer |
//! |---|---|
//! | number above the last one | executed, and its replies kept |
//! | the last number again | the kept replies; not executed |
//! | a smaller number | [`SessionError::Stale`]; not executed |
//! | above 1 of an unknown session | [`SessionError::Expired`]; not executed |
//!
//! The table is bounded: beyond a number of sessions, a size of their replies, or an idle time, all measured
//! in log time, the least recently active session is forgotten. A request numbered 1 cannot be told from the
//! first of a new session then, so a client that must be exact even past that opens its session with an empty
//! batch as request 1: that is harmless to repeat, and every later request of a forgotten session is refused.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::codec;
use crate::resp::{Protocol, Reply};
use crate::store::SnapshotError;
use squall_raft::planted::{Mistake, planted};

/// What a kept reply is counted for beside its bytes.
const REPLY_OVERHEAD_BYTES: u64 = 64;

/// The replies of one request are never longer than this when encoded.
const REPLIES_BYTES_MAX: u64 = 16 << 30;

/// The bounds of the table. They decide what replicas remember, so they must be the same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// How many sessions are remembered.
    pub sessions_max: usize,
    /// How long an idle session is remembered, in milliseconds of log time.
    pub idle_ms_max: u64,
    /// How large the kept replies may be together, in bytes. The latest session's are kept in any case.
    pub reply_bytes_max: u64,
}

impl SessionLimits {
    /// 16,384 sessions, an hour, 64 MiB.
    pub const DEFAULT: SessionLimits = SessionLimits {
        sessions_max: 16_384,
        idle_ms_max: 60 * 60 * 1000,
        reply_bytes_max: 64 * 1024 * 1024,
    };
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A request that was not executed because of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A later request of the session was executed already. The client has gone on; nobody should wait for
    /// this.
    #[error("request {seq} of the session is stale: request {last_seq} was executed")]
    Stale {
        /// The number of the request.
        seq: u64,
        /// The last number executed.
        last_seq: u64,
    },
    /// The session was forgotten, or never existed. The request was not executed now; whether an earlier
    /// attempt was is no longer known.
    #[error("the session of request {seq} is not known; it has expired")]
    Expired {
        /// The number of the request.
        seq: u64,
    },
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Execute it, then [`Sessions::record`] its replies.
    Execute,
    /// It was executed before; these were the replies.
    Repeat(Vec<Reply>),
}

#[derive(Clone, Debug)]
struct Session {
    seq: u64,
    last_active_ms: u64,
    /// The session's place in the order of activity.
    turn: u64,
    replies: Arc<Vec<Reply>>,
    reply_bytes: u64,
}

/// The table of sessions.
#[derive(Debug)]
pub struct Sessions {
    limits: SessionLimits,
    by_client: BTreeMap<u128, Session>,
    /// Invariant: the clients of `by_client` by turn. Log time never goes back, so this is also by activity.
    by_turn: BTreeMap<u64, u128>,
    next_turn: u64,
    /// Invariant: the sum of the sessions' reply bytes.
    reply_bytes: u64,
}

impl Sessions {
    /// An empty table.
    pub fn new(limits: SessionLimits) -> Self {
        Self { limits, by_client: BTreeMap::new(), by_turn: BTreeMap::new(), next_turn: 0, reply_bytes: 0 }
    }

    /// How many sessions are remembered.
    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    /// Whether no session is remembered.
    pub fn is_empty(&self) -> bool {
        self.by_client.is_empty()
    }

    /// Decides about request `seq` of a client at log time `now_ms`.
    ///
    /// # Errors
    /// [`SessionError`]; the request must not be executed.
    pub fn admit(&mut self, client_id: u128, seq: u64, now_ms: u64) -> Result<Admission, SessionError> {
        self.forget_idle(now_ms);
        let Some(session) = self.by_client.get(&client_id) else {
            return if seq <= 1 { Ok(Admission::Execute) } else { Err(SessionError::Expired { seq }) };
        };
        if seq < session.seq && !planted(Mistake::StaleRequestRuns) {
            return Err(SessionError::Stale { seq, last_seq: session.seq });
        }
        if seq != session.seq || planted(Mistake::RepeatedRequestRuns) {
            return Ok(Admission::Execute);
        }
        let replies = session.replies.clone();
        self.put(client_id, seq, now_ms, replies.clone());
        Ok(Admission::Repeat(replies.to_vec()))
    }

    /// Keeps the replies of an executed request, and forgets the oldest sessions if that takes the table over
    /// a bound.
    pub fn record(&mut self, client_id: u128, seq: u64, now_ms: u64, replies: &[Reply]) {
        self.put(client_id, seq, now_ms, Arc::new(replies.to_vec()));
        while self.by_turn.len() > 1
            && (self.by_turn.len() > self.limits.sessions_max
                || self.reply_bytes > self.limits.reply_bytes_max)
        {
            self.forget_oldest();
        }
    }

    /// A view of the table as it is now, for another activity.
    pub(crate) fn view(&self) -> SessionsView {
        let in_turn = self.by_turn.values().map(|client_id| (*client_id, self.by_client[client_id].clone()));
        SessionsView(in_turn.collect())
    }

    pub(crate) fn read(limits: SessionLimits, input: &mut impl Read) -> Result<Self, SnapshotError> {
        let mut sessions = Self::new(limits);
        let mut last_active_ms = 0;
        for _ in 0..codec::read_varint(input)? {
            let mut client_id = [0; 16];
            input.read_exact(&mut client_id)?;
            let client_id = u128::from_le_bytes(client_id);
            let seq = codec::read_varint(input)?;
            let active_ms = codec::read_varint(input)?;
            if active_ms < last_active_ms {
                return Err(SnapshotError::Damaged("sessions out of order"));
            }
            last_active_ms = active_ms;
            let mut encoded = Bytes::from(codec::read_bytes(input, REPLIES_BYTES_MAX)?);
            let mut replies = Vec::new();
            while !encoded.is_empty() {
                let reply = Reply::decode(&mut encoded);
                replies.push(reply.map_err(|_| SnapshotError::Damaged("a malformed reply"))?);
            }
            if sessions.by_client.contains_key(&client_id) {
                return Err(SnapshotError::Damaged("a session occurs twice"));
            }
            sessions.put(client_id, seq, active_ms, Arc::new(replies));
        }
        Ok(sessions)
    }

    /// Puts a session at the end of the order.
    fn put(&mut self, client_id: u128, seq: u64, now_ms: u64, replies: Arc<Vec<Reply>>) {
        let reply_bytes = replies.iter().map(reply_bytes).sum();
        let turn = self.next_turn;
        self.next_turn += 1;
        let session = Session { seq, last_active_ms: now_ms, turn, replies, reply_bytes };
        if let Some(previous) = self.by_client.insert(client_id, session) {
            self.by_turn.remove(&previous.turn);
            self.reply_bytes -= previous.reply_bytes;
        }
        self.by_turn.insert(turn, client_id);
        self.reply_bytes += reply_bytes;
    }

    fn forget_idle(&mut self, now_ms: u64) {
        while let Some((_, client_id)) = self.by_turn.first_key_value()
            && now_ms.saturating_sub(self.by_client[client_id].last_active_ms) > self.limits.idle_ms_max
        {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.by_turn.pop_first().and_then(|(_, client_id)| self.by_client.remove(&client_id));
        self.reply_bytes -= oldest.map_or(0, |session| session.reply_bytes);
    }
}

/// The table as it was at one moment, in the order of activity.
#[derive(Clone, Debug)]
pub(crate) struct SessionsView(Vec<(u128, Session)>);

impl SessionsView {
    /// Writes the number of sessions, and for each: the client's id in 16 bytes, little-endian; the last
    /// request's number; the time of activity; and the replies in RESP3 with their length. Numbers are
    /// varints.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        codec::put_varint(&mut buffer, self.0.len() as u64);
        for (client_id, session) in &self.0 {
            buffer.extend_from_slice(&client_id.to_le_bytes());
            codec::put_varint(&mut buffer, session.seq);
            codec::put_varint(&mut buffer, session.last_active_ms);
            let mut replies = BytesMut::new();
            session.replies.iter().for_each(|reply| reply.encode(Protocol::Resp3, &mut replies));
            codec::put_bytes(&mut buffer, &replies);
            out.write_all(&buffer)?;
            buffer.clear();
        }
        out.write_all(&buffer)
    }
}

fn reply_bytes(reply: &Reply) -> u64 {
    let content = match reply {
        Reply::Status(text) | Reply::Error(text) => text.len() as u64,
        Reply::Bulk(bytes) => bytes.len() as u64,
        Reply::Array(items) => items.iter().map(reply_bytes).sum(),
        Reply::Map(pairs) => pairs.iter().map(|(key, value)| reply_bytes(key) + reply_bytes(value)).sum(),
        Reply::Integer(_) | Reply::Nil => 0,
    };
    content + REPLY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SessionLimits = SessionLimits { sessions_max: 3, idle_ms_max: 100, reply_bytes_max: 1000 };

    fn request(
        sessions: &mut Sessions,
        client_id: u128,
        seq: u64,
        now_ms: u64,
    ) -> Result<bool, SessionError> {
        let reply = || vec![Reply::Integer(seq as i64)];
        match sessions.admit(client_id, seq, now_ms)? {
            Admission::Execute => {
                sessions.record(client_id, seq, now_ms, &reply());
                Ok(true)
            }
            Admission::Repeat(replies) => {
                assert_eq!(replies, reply());
                Ok(false)
            }
        }
    }

    #[test]
    fn a_request_runs_once() {
        let mut sessions = Sessions::new(LIMITS);
        assert_eq!(request(&mut sessions, 1, 1, 0), Ok(true));
        assert_eq!(request(&mut sessions, 1, 1, 1), Ok(false));
        assert_eq!(request(&mut sessions, 1, 2, 2), Ok(true));
        assert_eq!(request(&mut sessions, 1, 1, 3), Err(SessionError::Stale { seq: 1, last_seq: 2 }));
        assert_eq!(request(&mut sessions, 1, 9, 4), Ok(true), "numbers may skip");
        assert_eq!(request(&mut sessions, 2, 1, 5), Ok(true), "clients are independent");
        assert_eq!(request(&mut sessions, 3, 2, 6), Err(SessionError::Expired { seq: 2 }));
    }

    #[test]
    fn the_least_recently_active_session_is_forgotten_first() {
        let mut sessions = Sessions::new(LIMITS);
        for client_id in 1..=3 {
            assert_eq!(request(&mut sessions, client_id, 1, 0), Ok(true));
        }
        // A repetition counts as activity.
        assert_eq!(request(&mut sessions, 1, 1, 0), Ok(false));
        assert_eq!(request(&mut sessions, 4, 1, 0), Ok(true));
        assert_eq!(sessions.len(), 3);
        assert_eq!(request(&mut sessions, 2, 2, 0), Err(SessionError::Expired { seq: 2 }));
        assert_eq!(request(&mut sessions, 1, 2, 0), Ok(true));
    }

    #[test]
    fn an_idle_session_is_forgotten() {
        let mut sessions = Sessions::new(LIMITS);
        request(&mut sessions, 1, 1, 0).unwrap();
        assert_eq!(request(&mut sessions, 1, 2, 100), Ok(true));
        assert_eq!(request(&mut sessions, 1, 3, 201), Err(SessionError::Expired { seq: 3 }));
        assert!(sessions.is_empty());
        assert_eq!(sessions.reply_bytes, 0);
    }

    #[test]
    fn large_replies_push_old_sessions_out_but_never_their_own() {
        let mut sessions = Sessions::new(LIMITS);
        request(&mut sessions, 1, 1, 0).unwrap();
        let large = [Reply::bulk([0; 2000])];
        sessions.record(2, 1, 0, &large);
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.admit(2, 1, 0), Ok(Admission::Repeat(large.to_vec())));
        request(&mut sessions, 3, 1, 0).unwrap();
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions.reply_bytes, REPLY_OVERHEAD_BYTES);
    }

    #[test]
    fn the_table_round_trips_with_its_order() {
        let mut sessions = Sessions::new(LIMITS);
        for client_id in [3, 1, 2, 1] {
            let seq = sessions.by_client.get(&client_id).map_or(1, |session| session.seq + 1);
            request(&mut sessions, client_id, seq, seq * 10).unwrap();
        }
        let mut bytes = Vec::new();
        sessions.view().write(&mut bytes).unwrap();
        let mut input = &bytes[..];
        let mut restored = Sessions::read(LIMITS, &mut input).unwrap();
        assert!(input.is_empty());
        let mut again = Vec::new();
        restored.view().write(&mut again).unwrap();
        assert_eq!(again, bytes);
        for sessions in [&mut sessions, &mut restored] {
            request(sessions, 9, 1, 20).unwrap();
            assert_eq!(request(sessions, 3, 2, 20), Err(SessionError::Expired { seq: 2 }));
            assert_eq!(request(sessions, 1, 2, 20), Ok(false));
        }
    }
}
