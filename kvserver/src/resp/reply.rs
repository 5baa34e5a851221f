//! Replies: their value, their encoding in RESP2 and RESP3, and the decoding of the latter.
//!
//! Between nodes, in the session table and in snapshots a reply travels as RESP3, which loses nothing; a
//! connection encodes it in the protocol its client chose.

use std::borrow::Cow;
use std::io::{self, Write};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Nesting beyond this is refused when decoding. No command of this server comes near it.
const DEPTH_MAX: usize = 8;

/// The version of the protocol a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// RESP2, in which every connection starts.
    #[default]
    Resp2,
    /// RESP3, chosen with `HELLO 3`: maps and a null of its own.
    Resp3,
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A short status such as `OK`.
    Status(Cow<'static, str>),
    /// An error: a code in capitals, a space, and the text.
    Error(Cow<'static, str>),
    /// A number.
    Integer(i64),
    /// A binary-safe string.
    Bulk(Bytes),
    /// The absence of a value.
    Nil,
    /// A list of replies.
    Array(Vec<Reply>),
    /// Pairs of keys and values; a flat array in RESP2.
    Map(Vec<(Reply, Reply)>),
}

/// The bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed reply: {0}")]
pub struct DecodeError(&'static str);

impl Reply {
    /// The status `OK`.
    pub const OK: Reply = Reply::Status(Cow::Borrowed("OK"));

    /// An error with a fixed text.
    pub const fn error(text: &'static str) -> Reply {
        Reply::Error(Cow::Borrowed(text))
    }

    /// A bulk string copied from `bytes`.
    pub fn bulk(bytes: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(Bytes::copy_from_slice(bytes.as_ref()))
    }

    /// A bulk string, or nil for `None`.
    pub fn bulk_or_nil(bytes: Option<Bytes>) -> Reply {
        bytes.map_or(Reply::Nil, Reply::Bulk)
    }

    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// Writes the reply in `protocol`.
    ///
    /// # Errors
    /// Those of `out`.
    ///
    /// # Blocking
    /// As `out` does. Large bulk strings are written in one piece straight from the stored value.
    pub fn write_to(&self, protocol: Protocol, out: &mut impl Write) -> io::Result<()> {
        match self {
            Reply::Status(text) => write_line(out, b'+', text),
            Reply::Error(text) => write_line(out, b'-', text),
            Reply::Integer(number) => write_number(out, b':', *number),
            Reply::Bulk(bytes) => {
                write_number(out, b'$', bytes.len() as i64)?;
                out.write_all(bytes)?;
                out.write_all(b"\r\n")
            }
            Reply::Nil => out.write_all(match protocol {
                Protocol::Resp2 => b"$-1\r\n".as_slice(),
                Protocol::Resp3 => b"_\r\n".as_slice(),
            }),
            Reply::Array(items) => {
                write_number(out, b'*', items.len() as i64)?;
                items.iter().try_for_each(|item| item.write_to(protocol, out))
            }
            Reply::Map(pairs) => {
                match protocol {
                    Protocol::Resp2 => write_number(out, b'*', 2 * pairs.len() as i64)?,
                    Protocol::Resp3 => write_number(out, b'%', pairs.len() as i64)?,
                }
                pairs.iter().try_for_each(|(key, value)| {
                    key.write_to(protocol, out)?;
                    value.write_to(protocol, out)
                })
            }
        }
    }

    /// Appends the reply to `out` in `protocol`.
    pub fn encode(&self, protocol: Protocol, out: &mut BytesMut) {
        self.write_to(protocol, &mut out.writer()).expect("writing to memory cannot fail");
    }

    /// Takes one reply in RESP3 (or RESP2) off the front of `input`. Bulk strings share its memory.
    ///
    /// # Errors
    /// [`DecodeError`] when the front of the input is not a whole reply; `input` is then in an unspecified
    /// position.
    pub fn decode(input: &mut Bytes) -> Result<Reply, DecodeError> {
        Self::decode_nested(input, 0)
    }

    fn decode_nested(input: &mut Bytes, depth: usize) -> Result<Reply, DecodeError> {
        if depth > DEPTH_MAX {
            return Err(DecodeError("nested too deeply"));
        }
        let end = input.windows(2).position(|pair| pair == b"\r\n").ok_or(DecodeError("no end of line"))?;
        let line = input.split_to(end);
        input.advance(2);
        let (kind, rest) = line.split_first().ok_or(DecodeError("an empty line"))?;
        let text = || std::str::from_utf8(rest).map_err(|_| DecodeError("text that is not UTF-8"));
        let number = || text()?.parse::<i64>().map_err(|_| DecodeError("a malformed number"));
        // An element takes at least three bytes, so the input's length bounds what a count may reserve.
        let count = |bytes_each: usize, input: &Bytes| match usize::try_from(number()?) {
            Ok(count) if count <= input.len() / bytes_each => Ok(count),
            _ => Err(DecodeError("a count beyond the input")),
        };
        match kind {
            b'+' => Ok(Reply::Status(Cow::Owned(text()?.to_owned()))),
            b'-' => Ok(Reply::Error(Cow::Owned(text()?.to_owned()))),
            b':' => Ok(Reply::Integer(number()?)),
            b'_' if rest.is_empty() => Ok(Reply::Nil),
            b'$' | b'*' if rest == b"-1" => Ok(Reply::Nil),
            b'$' => {
                let length = count(1, input)?;
                let bytes = input.split_to(length);
                if !input.starts_with(b"\r\n") {
                    return Err(DecodeError("a bulk string without an end"));
                }
                input.advance(2);
                Ok(Reply::Bulk(bytes))
            }
            b'*' => {
                let items = count(3, input)?;
                (0..items)
                    .map(|_| Self::decode_nested(input, depth + 1))
                    .collect::<Result<_, _>>()
                    .map(Reply::Array)
            }
            b'%' => (0..count(6, input)?)
                .map(|_| Ok((Self::decode_nested(input, depth + 1)?, Self::decode_nested(input, depth + 1)?)))
                .collect::<Result<_, _>>()
                .map(Reply::Map),
            _ => Err(DecodeError("an unknown type")),
        }
    }
}

/// Writes a type byte and a line. A line break inside, which may stem from a client's bytes quoted in an
/// error, becomes a space: it would let that client forge replies.
fn write_line(out: &mut impl Write, kind: u8, text: &str) -> io::Result<()> {
    out.write_all(&[kind])?;
    if text.contains(['\r', '\n']) {
        out.write_all(text.replace(['\r', '\n'], " ").as_bytes())?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    out.write_all(b"\r\n")
}

/// Writes a type byte and a decimal number, without the formatting machinery: it runs once or twice per
/// reply.
fn write_number(out: &mut impl Write, kind: u8, number: i64) -> io::Result<()> {
    // The kind, a sign, nineteen digits and the line's end.
    let mut buffer = [0_u8; 23];
    let mut start = buffer.len() - 2;
    buffer[start..].copy_from_slice(b"\r\n");
    let mut rest = number.unsigned_abs();
    loop {
        start -= 1;
        buffer[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        start -= 1;
        buffer[start] = b'-';
    }
    start -= 1;
    buffer[start] = kind;
    out.write_all(&buffer[start..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(reply: &Reply, resp2: &str, resp3: &str) {
        let encoded = |protocol| {
            let mut out = BytesMut::new();
            reply.encode(protocol, &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(encoded(Protocol::Resp2), resp2);
        assert_eq!(encoded(Protocol::Resp3), resp3);
        assert_eq!(Reply::decode(&mut Bytes::from(resp3.to_owned())), Ok(reply.clone()));
    }

    #[test]
    fn each_kind_in_both_protocols() {
        check(&Reply::OK, "+OK\r\n", "+OK\r\n");
        check(&Reply::error("ERR no"), "-ERR no\r\n", "-ERR no\r\n");
        check(&Reply::Integer(0), ":0\r\n", ":0\r\n");
        check(&Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n");
        check(&Reply::Integer(i64::MAX), ":9223372036854775807\r\n", ":9223372036854775807\r\n");
        check(&Reply::bulk("a\r\nb"), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n");
        check(&Reply::bulk(""), "$0\r\n\r\n", "$0\r\n\r\n");
        check(&Reply::Nil, "$-1\r\n", "_\r\n");
        check(&Reply::Array(vec![]), "*0\r\n", "*0\r\n");
        check(
            &Reply::Map(vec![(Reply::bulk("k"), Reply::Array(vec![Reply::Nil]))]),
            "*2\r\n$1\r\nk\r\n*1\r\n$-1\r\n",
            "%1\r\n$1\r\nk\r\n*1\r\n_\r\n",
        );
    }

    #[test]
    fn a_line_break_cannot_be_smuggled_into_a_line() {
        let mut out = BytesMut::new();
        Reply::Error("ERR a\r\n+OK".into()).encode(Protocol::Resp2, &mut out);
        assert_eq!(out, "-ERR a  +OK\r\n");
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            "[ -~]{0,12}".prop_map(|text| Reply::Status(text.into())),
            "[ -~]{0,12}".prop_map(|text| Reply::Error(text.into())),
            any::<i64>().prop_map(Reply::Integer),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Reply::bulk),
            Just(Reply::Nil),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Reply::Array),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Reply::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn resp3_round_trips(reply in any_reply()) {
            let mut out = BytesMut::new();
            reply.encode(Protocol::Resp3, &mut out);
            out.put_slice(b"rest");
            let mut input = out.freeze();
            prop_assert_eq!(Reply::decode(&mut input), Ok(reply));
            prop_assert_eq!(&input[..], b"rest");
        }

        #[test]
        fn decoding_arbitrary_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Reply::decode(&mut Bytes::from(bytes));
        }
    }

    #[test]
    fn hostile_replies_are_refused() {
        for bytes in ["", "+OK", "$5\r\nabc", "*1000000000\r\n", "%9\r\n:1\r\n", "$-2\r\n", ":x\r\n", "!\r\n"]
        {
            assert!(Reply::decode(&mut Bytes::from(bytes)).is_err(), "{bytes:?}");
        }
        let nested = "*1\r\n".repeat(100_000) + ":1\r\n";
        assert_eq!(Reply::decode(&mut Bytes::from(nested)), Err(DecodeError("nested too deeply")));
    }
}
