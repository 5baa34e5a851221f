//! The format of a log entry.
//!
//! ```text
//! version           u8       1
//! flags             u8       bit 0: a session follows; the others are 0
//! client id         16 bytes, little-endian; only with a session
//! seq               varint, at least 1; only with a session
//! now_ms            varint   the leader's time, below 2^62
//! value_bytes_max   varint   the leader's limit on what appending may make
//! commands          varint   their number, then for each:
//!   arguments       varint   their number, then for each: varint length, bytes
//! ```
//!
//! The log's own records carry a checksum, so this one has none.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec;

const VERSION: u8 = 1;
const HAS_SESSION: u8 = 1;
/// Leaves room to add any relative time to it without leaving the range of `i64`.
const NOW_MS_MAX: u64 = 1 << 62;

/// Why an entry could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// The format is of another release.
    #[error("log entry format {found} is not known; this release reads format {VERSION}")]
    UnknownVersion {
        /// The version found in the entry.
        found: u8,
    },
    /// The bytes are not an entry.
    #[error("malformed log entry: {0}")]
    Malformed(&'static str),
}

/// A batch of commands to be executed together, in order: what a log entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The client's id and the number of its request, from 1; `None` for a client that does not retry.
    pub session: Option<(u128, u64)>,
    /// The leader's time, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// The leader's limit on what appending may make, in bytes.
    pub value_bytes_max: u64,
    /// The commands with their arguments. They should have passed [`crate::command::validate`].
    pub commands: Vec<Vec<Bytes>>,
}

impl Proposal {
    /// A proposal that does nothing but carry the time, and so removes some expired keys.
    pub fn tick(now_ms: u64) -> Self {
        Self { session: None, now_ms, value_bytes_max: 0, commands: Vec::new() }
    }

    /// The bytes of the log entry. A time beyond 2^62 is lowered to that.
    pub fn encode(&self) -> Bytes {
        let arguments = self.commands.iter().flatten();
        let estimate =
            64 + 4 * self.commands.len() + arguments.map(|argument| argument.len() + 4).sum::<usize>();
        let mut out = BytesMut::with_capacity(estimate);
        out.put_u8(VERSION);
        out.put_u8(if self.session.is_some() { HAS_SESSION } else { 0 });
        if let Some((client_id, seq)) = self.session {
            out.put_u128_le(client_id);
            codec::put_varint(&mut out, seq);
        }
        codec::put_varint(&mut out, self.now_ms.min(NOW_MS_MAX));
        codec::put_varint(&mut out, self.value_bytes_max);
        codec::put_varint(&mut out, self.commands.len() as u64);
        for arguments in &self.commands {
            codec::put_varint(&mut out, arguments.len() as u64);
            arguments.iter().for_each(|argument| codec::put_bytes(&mut out, argument));
        }
        out.freeze()
    }

    /// Decodes a log entry. The arguments share its memory.
    ///
    /// # Errors
    /// [`ProposalError`] for anything that [`Proposal::encode`] does not produce.
    pub fn decode(entry: &Bytes) -> Result<Self, ProposalError> {
        let mut rest = entry.clone();
        if rest.len() < 2 {
            return Err(ProposalError::Malformed("too short"));
        }
        let found = rest.get_u8();
        if found != VERSION {
            return Err(ProposalError::UnknownVersion { found });
        }
        let session = match rest.get_u8() {
            0 => None,
            HAS_SESSION if rest.len() >= 16 => {
                let client_id = rest.get_u128_le();
                let seq = number(&mut rest)?;
                if seq == 0 {
                    return Err(ProposalError::Malformed("a request numbered 0"));
                }
                Some((client_id, seq))
            }
            HAS_SESSION => return Err(ProposalError::Malformed("too short")),
            _ => return Err(ProposalError::Malformed("unknown flags")),
        };
        let now_ms = number(&mut rest)?;
        if now_ms > NOW_MS_MAX {
            return Err(ProposalError::Malformed("a time out of range"));
        }
        let value_bytes_max = number(&mut rest)?;
        // The announced counts reserve nothing: each command and argument must be there to take memory.
        let mut commands = Vec::new();
        for _ in 0..number(&mut rest)? {
            let mut arguments = Vec::new();
            for _ in 0..number(&mut rest)? {
                arguments.push(
                    codec::take_bytes(&mut rest).ok_or(ProposalError::Malformed("a truncated argument"))?,
                );
            }
            commands.push(arguments);
        }
        if !rest.is_empty() {
            return Err(ProposalError::Malformed("bytes after the end"));
        }
        Ok(Self { session, now_ms, value_bytes_max, commands })
    }
}

fn number(rest: &mut Bytes) -> Result<u64, ProposalError> {
    codec::take_varint(rest).ok_or(ProposalError::Malformed("a malformed number"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proposals() -> impl Strategy<Value = Proposal> {
        let words =
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from), 0..4);
        let session = prop::option::of((any::<u128>(), 1_u64..));
        let commands = prop::collection::vec(words, 0..4);
        (session, 0..=NOW_MS_MAX, any::<u64>(), commands).prop_map(
            |(session, now_ms, value_bytes_max, commands)| Proposal {
                session,
                now_ms,
                value_bytes_max,
                commands,
            },
        )
    }

    proptest! {
        #[test]
        fn entries_round_trip(proposal in proposals()) {
            prop_assert_eq!(Proposal::decode(&proposal.encode()), Ok(proposal));
        }

        #[test]
        fn what_decodes_is_the_one_encoding_of_it(proposal in proposals(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut bytes = proposal.encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let bytes = Bytes::from(bytes);
            if let Ok(changed) = Proposal::decode(&bytes) {
                prop_assert_ne!(&changed, &proposal);
                prop_assert_eq!(changed.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_hostile_count_is_refused_without_an_allocation() {
        let mut entry = BytesMut::from(&[VERSION, 0, 0, 0][..]);
        codec::put_varint(&mut entry, u64::MAX);
        assert_eq!(Proposal::decode(&entry.freeze()), Err(ProposalError::Malformed("a malformed number")));
        assert_eq!(
            Proposal::decode(&Bytes::from_static(&[2, 0])),
            Err(ProposalError::UnknownVersion { found: 2 })
        );
    }
}
