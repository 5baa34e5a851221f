//! The frame: how bytes on a connection become requests, answers and heartbeats.
//!
//! Owns the layout, its encoder, and the reader that turns a byte stream back into frames. Knows nothing of
//! what a body means, of threads, or of sockets. Used by both ends of a connection, and by tests that play a
//! peer that misbehaves.
//!
//! # Layout
//!
//! A frame is a header of 36 bytes and a body of 0 to `body_bytes_max` bytes. Numbers are little-endian.
//!
//! | offset | bytes | field         | meaning                                                               |
//! |-------:|------:|---------------|-----------------------------------------------------------------------|
//! |      0 |     4 | `magic`       | the bytes `SQRP`                                                      |
//! |      4 |     1 | `version`     | 1; together with `magic` the only part that every version shares      |
//! |      5 |     1 | `kind`        | see [`Kind`]; the upper four bits are reserved for flags and zero     |
//! |      6 |     2 | `method`      | what is asked for, in requests and one-way messages; else 0           |
//! |      8 |     4 | `stream`      | ties an answer to its request, chosen by the requester; else 0        |
//! |     12 |     4 | `deadline_ms` | in requests: how long the answer is of use, from now; 0: no deadline  |
//! |     16 |     8 | `trace_id`    | follows a request through the cluster; 0: not traced                  |
//! |     24 |     4 | `body_bytes`  | length of the body                                                    |
//! |     28 |     4 | `body_crc`    | CRC32C of the body                                                    |
//! |     32 |     4 | `header_crc`  | CRC32C of the 32 bytes before it                                      |
//!
//! The header has a checksum of its own so that a length is believed only when it is what the peer wrote: a
//! single flipped bit must not make the reader wait for, or skip, megabytes. The body's checksum lies inside
//! the header's, so a body cannot pass under another frame's header. The deadline is relative because clocks
//! differ.
//!
//! After any error the frame boundary is lost for good; the connection has to be closed.

use std::io::{self, Read};

use bytes::Bytes;

use crate::error::CloseReason;
use crate::method::Method;

/// Length of a frame's header.
pub const HEADER_BYTES: usize = 36;
/// The version of the frame layout that this crate speaks.
pub const VERSION: u8 = 1;

const MAGIC: u32 = u32::from_le_bytes(*b"SQRP");
/// Bytes that `magic` and `version` take.
const PREFIX_BYTES: usize = 5;
/// Bytes of the header under its checksum.
const CHECKED_BYTES: usize = HEADER_BYTES - 4;

/// What is read at once at most while looking for frames. A body that fits in is read together with the
/// frames around it; a longer one is read straight into its own memory.
const READ_BYTES: usize = 16 * 1024;
/// The first step in which memory for a long body grows; then it doubles with what has arrived.
const BODY_STEP_BYTES: usize = 64 * 1024;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first frame in each direction: who is there. Body: `rpc::Hello`.
    Hello = 1,
    /// No new request will be served on this connection; instead of a hello: refused. Body: `rpc::Goaway`.
    Goaway = 2,
    /// "I am still here"; sent when there was nothing else to say. No body.
    Heartbeat = 3,
    /// Wants exactly one [`Kind::Response`] or [`Kind::Error`] of the same stream.
    Request = 4,
    /// The answer to a request.
    Response = 5,
    /// The failure of a request. Body: `rpc::Status`.
    Error = 6,
    /// A message that wants no answer.
    OneWay = 7,
}

impl Kind {
    fn from_wire(kind: u8) -> Result<Kind, CloseReason> {
        Ok(match kind {
            1 => Kind::Hello,
            2 => Kind::Goaway,
            3 => Kind::Heartbeat,
            4 => Kind::Request,
            5 => Kind::Response,
            6 => Kind::Error,
            7 => Kind::OneWay,
            _ => return Err(CloseReason::UnknownKind(kind)),
        })
    }
}

/// A frame's header, verified when it comes from [`FrameReader::read_header`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// What is asked for.
    pub method: Method,
    /// Ties an answer to its request.
    pub stream: u32,
    /// How long the answer is of use; 0: no deadline.
    pub deadline_ms: u32,
    /// Follows a request through the cluster; 0: not traced.
    pub trace_id: u64,
    /// Length of the body.
    pub body_bytes: u32,
    /// CRC32C of the body.
    pub body_crc: u32,
}

impl Header {
    /// The header in front of `body`, of the given kind, with all other fields zero.
    ///
    /// # Panics
    /// When the body is longer than 4 GiB; every sender checks its limit, which is lower, first.
    pub fn new(kind: Kind, body: &[u8]) -> Header {
        Header {
            kind,
            method: Method(0),
            stream: 0,
            deadline_ms: 0,
            trace_id: 0,
            body_bytes: u32::try_from(body.len()).expect("body_bytes_max is below 4 GiB"),
            body_crc: crc32c::crc32c(body),
        }
    }

    /// The header as it travels.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = VERSION;
        out[5] = self.kind as u8;
        out[6..8].copy_from_slice(&self.method.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.stream.to_le_bytes());
        out[12..16].copy_from_slice(&self.deadline_ms.to_le_bytes());
        out[16..24].copy_from_slice(&self.trace_id.to_le_bytes());
        out[24..28].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[28..32].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..CHECKED_BYTES]);
        out[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in `bytes`, fully verified except for the length limit.
    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, CloseReason> {
        check_prefix(bytes)?;
        let computed = crc32c::crc32c(&bytes[..CHECKED_BYTES]);
        let announced = u32::from_le_bytes(part(bytes, CHECKED_BYTES));
        if computed != announced {
            return Err(CloseReason::CorruptHeader { computed, announced });
        }
        Ok(Header {
            kind: Kind::from_wire(bytes[5])?,
            method: Method(u16::from_le_bytes(part(bytes, 6))),
            stream: u32::from_le_bytes(part(bytes, 8)),
            deadline_ms: u32::from_le_bytes(part(bytes, 12)),
            trace_id: u64::from_le_bytes(part(bytes, 16)),
            body_bytes: u32::from_le_bytes(part(bytes, 24)),
            body_crc: u32::from_le_bytes(part(bytes, 28)),
        })
    }
}

fn part<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Checks as much of magic and version as `bytes` holds.
fn check_prefix(bytes: &[u8]) -> Result<(), CloseReason> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(()) };
    let [magic @ .., version] = *prefix;
    let magic = u32::from_le_bytes(magic);
    if magic != MAGIC {
        return Err(CloseReason::BadMagic(magic));
    }
    if version != VERSION {
        return Err(CloseReason::UnknownVersion(version));
    }
    Ok(())
}

/// Reads frames from a byte stream: header, then body, in turns.
///
/// Memory: one buffer of 16 KiB, and the body being read, which grows with what arrives, whatever length was
/// announced. Each body has memory of its own, so one that is kept long does not keep its neighbours.
#[derive(Debug)]
pub struct FrameReader<R> {
    source: R,
    body_bytes_max: usize,
    buffer: Box<[u8]>,
    /// Invariant: `start <= end <= buffer.len()`; the bytes between have been read and not been consumed.
    start: usize,
    end: usize,
}

impl<R: Read> FrameReader<R> {
    /// A reader that refuses bodies longer than `body_bytes_max`.
    pub fn new(source: R, body_bytes_max: usize) -> FrameReader<R> {
        FrameReader { source, body_bytes_max, buffer: vec![0; READ_BYTES].into(), start: 0, end: 0 }
    }

    /// What the frames are read from.
    pub fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Changes the longest body that is accepted.
    pub fn set_body_bytes_max(&mut self, body_bytes_max: usize) {
        self.body_bytes_max = body_bytes_max;
    }

    /// Reads the next header.
    ///
    /// # Errors
    /// [`CloseReason::PeerClosed`] at the end of the stream, [`CloseReason::IdleTimeout`] when the source's
    /// read timeout expires; else what is wrong with the header.
    ///
    /// # Blocking
    /// Until the source has delivered a header.
    pub fn read_header(&mut self) -> Result<Header, CloseReason> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            if let Some(bytes) = unread.first_chunk::<HEADER_BYTES>() {
                let header = Header::decode(bytes)?;
                let announced = header.body_bytes as usize;
                if announced > self.body_bytes_max {
                    return Err(CloseReason::BodyTooLong { announced, limit: self.body_bytes_max });
                }
                self.start += HEADER_BYTES;
                return Ok(header);
            }
            // A client of another protocol may send a few bytes and then wait for an answer: tell now.
            check_prefix(unread)?;
            let got = unread.len();
            if self.fill()? == 0 {
                return Err(match got {
                    0 => CloseReason::PeerClosed,
                    _ => CloseReason::Truncated { got, expected: HEADER_BYTES },
                });
            }
        }
    }

    /// Reads the body that follows `header`, the last one read.
    ///
    /// # Errors
    /// [`CloseReason::CorruptBody`], [`CloseReason::Truncated`], or what the source failed with.
    ///
    /// # Blocking
    /// Until the source has delivered the body.
    pub fn read_body(&mut self, header: &Header) -> Result<Bytes, CloseReason> {
        let expected = header.body_bytes as usize;
        let body =
            if expected <= READ_BYTES { self.read_short(expected)? } else { self.read_long(expected)? };
        let computed = crc32c::crc32c(&body);
        if computed != header.body_crc {
            return Err(CloseReason::CorruptBody { computed, announced: header.body_crc });
        }
        Ok(body)
    }

    fn read_short(&mut self, expected: usize) -> Result<Bytes, CloseReason> {
        while self.end - self.start < expected {
            let got = self.end - self.start;
            if self.fill()? == 0 {
                return Err(CloseReason::Truncated { got, expected });
            }
        }
        let body = Bytes::copy_from_slice(&self.buffer[self.start..self.start + expected]);
        self.start += expected;
        Ok(body)
    }

    fn read_long(&mut self, expected: usize) -> Result<Bytes, CloseReason> {
        let mut body = Vec::new();
        let buffered = (self.end - self.start).min(expected);
        body.extend_from_slice(&self.buffer[self.start..self.start + buffered]);
        self.start += buffered;
        let mut got = buffered;
        while got < expected {
            if got == body.len() {
                let step = got.max(BODY_STEP_BYTES).min(expected - got);
                // Exactly, so that a body that is kept long does not keep the slack of amortised growth.
                body.reserve_exact(step);
                body.resize(got + step, 0);
            }
            match read_some(&mut self.source, &mut body[got..])? {
                0 => return Err(CloseReason::Truncated { got, expected }),
                n => got += n,
            }
        }
        Ok(Bytes::from(body))
    }

    /// Reads what is there, at least one byte, into the free part of the buffer; 0 at the end of the stream.
    fn fill(&mut self) -> Result<usize, CloseReason> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let n = read_some(&mut self.source, &mut self.buffer[self.end..])?;
        self.end += n;
        Ok(n)
    }
}

fn read_some(source: &mut impl Read, into: &mut [u8]) -> Result<usize, CloseReason> {
    loop {
        match source.read(into) {
            Ok(n) => return Ok(n),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                // Which of the two a read timeout gives depends on the platform.
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(CloseReason::IdleTimeout),
                kind => return Err(CloseReason::Io(kind)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    /// Delivers `data` in pieces of the given sizes, over and over.
    struct Pieces<'a> {
        data: &'a [u8],
        sizes: Vec<usize>,
        turn: usize,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.sizes[self.turn % self.sizes.len()].min(into.len()).min(self.data.len());
            self.turn += 1;
            into[..n].copy_from_slice(&self.data[..n]);
            self.data = &self.data[n..];
            Ok(n)
        }
    }

    fn read_all(source: impl Read) -> (Vec<(Header, Bytes)>, CloseReason) {
        let mut reader = FrameReader::new(source, LIMIT);
        let mut frames = Vec::new();
        loop {
            let frame =
                reader.read_header().and_then(|header| reader.read_body(&header).map(|body| (header, body)));
            match frame {
                Ok(frame) => frames.push(frame),
                Err(reason) => return (frames, reason),
            }
        }
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut header = Header::new(Kind::Request, body);
        header.method = Method::KV_EXECUTE;
        header.stream = 7;
        header.deadline_ms = 1_000;
        header.trace_id = 0x0123_4567_89ab_cdef;
        [&header.encode(), body].concat()
    }

    fn any_header() -> impl Strategy<Value = (Header, Vec<u8>)> {
        let fields = (1..=7u8, any::<u16>(), any::<u32>(), any::<u32>(), any::<u64>());
        let body = prop_oneof![
            4 => proptest::collection::vec(any::<u8>(), 0..200),
            1 => proptest::collection::vec(any::<u8>(), READ_BYTES - 50..READ_BYTES + 50),
            1 => proptest::collection::vec(any::<u8>(), 100_000..200_000),
        ];
        (fields, body).prop_map(|((kind, method, stream, deadline_ms, trace_id), body)| {
            let kind = Kind::from_wire(kind).expect("1..=7 are kinds");
            let header =
                Header { method: Method(method), stream, deadline_ms, trace_id, ..Header::new(kind, &body) };
            (header, body)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_survive_the_wire_however_they_are_cut(
            frames in proptest::collection::vec(any_header(), 0..6),
            sizes in proptest::collection::vec(1..40_000usize, 1..5),
        ) {
            let wire: Vec<u8> =
                frames.iter().flat_map(|(header, body)| [&header.encode(), &body[..]].concat()).collect();
            let (read, end) = read_all(Pieces { data: &wire, sizes, turn: 0 });
            let read: Vec<_> = read.into_iter().map(|(header, body)| (header, body.to_vec())).collect();
            prop_assert_eq!(read, frames);
            prop_assert_eq!(end, CloseReason::PeerClosed);
        }

        #[test]
        fn arbitrary_bytes_never_panic(wire in proptest::collection::vec(any::<u8>(), 0..300)) {
            read_all(&wire[..]);
        }

        #[test]
        fn arbitrary_headers_with_a_valid_prefix_and_checksum_never_panic(mut bytes in any::<[u8; 32]>()) {
            bytes[..4].copy_from_slice(b"SQRP");
            bytes[4] = VERSION;
            let crc = crc32c::crc32c(&bytes).to_le_bytes();
            read_all(&[&bytes[..], &crc].concat()[..]);
        }
    }

    #[test]
    fn a_frame_cut_at_any_byte_is_truncated() {
        let wire = frame(b"a body");
        for cut in 1..wire.len() {
            let (frames, end) = read_all(&wire[..cut]);
            assert!(frames.is_empty());
            assert!(matches!(end, CloseReason::Truncated { .. }), "cut at {cut}: {end}");
        }
    }

    #[test]
    fn every_flipped_bit_is_rejected() {
        let wire = frame(b"a body");
        for bit in 0..wire.len() * 8 {
            let mut wire = wire.clone();
            wire[bit / 8] ^= 1 << (bit % 8);
            let (frames, end) = read_all(&wire[..]);
            assert!(frames.is_empty(), "bit {bit}");
            assert!(end.is_misbehaviour(), "bit {bit}: {end}");
        }
    }

    #[test]
    fn an_over_long_body_is_refused_by_its_header_alone() {
        let mut header = Header::new(Kind::Request, b"");
        header.body_bytes = u32::MAX;
        let (_, end) = read_all(&header.encode()[..]);
        assert_eq!(end, CloseReason::BodyTooLong { announced: u32::MAX as usize, limit: LIMIT });
    }

    #[test]
    fn memory_grows_with_what_arrives_not_with_what_is_announced() {
        /// Gives a byte at a time and notes how much room it was ever offered.
        struct Trickle {
            data: Vec<u8>,
            given: usize,
            room_max: usize,
        }
        impl Read for Trickle {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.room_max = self.room_max.max(into.len());
                let n = self.data[self.given..].len().min(1);
                into[..n].copy_from_slice(&self.data[self.given..self.given + n]);
                self.given += n;
                Ok(n)
            }
        }
        let mut header = Header::new(Kind::Request, b"");
        header.body_bytes = u32::MAX;
        let data = [&header.encode()[..], &[0; 100]].concat();
        let mut reader = FrameReader::new(Trickle { data, given: 0, room_max: 0 }, usize::MAX);
        let header = reader.read_header().expect("below the limit");
        let end = reader.read_body(&header).expect_err("only 100 bytes came");
        assert_eq!(end, CloseReason::Truncated { got: 100, expected: u32::MAX as usize });
        assert!(reader.source_mut().room_max <= BODY_STEP_BYTES);
    }

    #[test]
    fn another_protocol_is_told_apart_before_a_whole_header_came() {
        struct ThenSilent<'a>(&'a [u8]);
        impl Read for ThenSilent<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(into) }
            }
        }
        assert!(matches!(read_all(ThenSilent(b"*1\r\n$4\r\nPING\r\n")).1, CloseReason::BadMagic(_)));
        assert_eq!(read_all(ThenSilent(b"SQRP\x02")).1, CloseReason::UnknownVersion(2));
        assert_eq!(read_all(ThenSilent(b"SQRP")).1, CloseReason::IdleTimeout);
    }

    #[test]
    fn unknown_kinds_and_reserved_flags_are_refused() {
        for kind in [0u8, 8, 0x14, 0xff] {
            let mut wire = Header::new(Kind::Request, b"").encode();
            wire[5] = kind;
            let crc = crc32c::crc32c(&wire[..CHECKED_BYTES]);
            wire[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(read_all(&wire[..]).1, CloseReason::UnknownKind(kind));
        }
    }
}
