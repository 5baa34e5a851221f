//! The incremental parser of requests: arrays of bulk strings, and inline commands.
//!
//! The parser owns the connection's input buffer. A request's arguments are slices of that buffer, not
//! copies. No announced length is ever allocated: the buffer grows with the bytes that arrive, and an
//! argument that is legal but over the configured limit is skipped as it streams in, so that the connection
//! stays usable. The texts of protocol errors are Redis's; after one the connection cannot be resynchronised
//! and must close.

use std::io::{self, Read};
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

/// The longest bulk string Redis's protocol allows.
const BULK_BYTES_MAX: i64 = 512 * 1024 * 1024;
/// The most arguments in one request.
const ARGUMENTS_MAX: i64 = 1024 * 1024;
/// The longest line: an inline command or a length.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Before it has authenticated, a client may send no more than these.
const UNAUTHENTICATED_ARGUMENTS_MAX: i64 = 10;
const UNAUTHENTICATED_BULK_BYTES_MAX: i64 = 16 * 1024;
/// A read asks for this much at first, and doubles up to the second figure while the input keeps up.
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 256 * 1024;
/// An idle connection keeps a buffer of at most this size.
const IDLE_BUFFER_BYTES_MAX: usize = 64 * 1024;
/// What one argument costs beside its bytes: its place in the list. It counts towards the size of a request.
const ARGUMENT_OVERHEAD_BYTES: u64 = 64;

/// How large the parts of a request may be, in bytes. A request over a limit is refused, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest key.
    pub key_bytes_max: u64,
    /// The longest value, and the longest that appending may make.
    pub value_bytes_max: u64,
    /// The largest request: all its arguments together, each with an overhead of 64 bytes.
    pub request_bytes_max: u64,
}

impl Limits {
    /// Keys of 64 KiB, values of 64 MiB, and requests with room for one such value beside 1 MiB.
    pub const DEFAULT: Limits = Limits {
        key_bytes_max: 64 * 1024,
        value_bytes_max: 64 * 1024 * 1024,
        request_bytes_max: 65 * 1024 * 1024,
    };

    /// The longest argument of any kind.
    fn argument_bytes_max(&self) -> u64 {
        self.key_bytes_max.max(self.value_bytes_max)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The command's name and its arguments; never empty.
    Command(Vec<Bytes>),
    /// A well-formed request that was too large. Its bytes were skipped; it deserves an error reply.
    Refused(Refusal),
}

/// Why a request was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The command's name, empty when that itself was too long.
    pub name: Bytes,
    /// The argument that was too long (0 is the name), or `None` when it was the whole request.
    pub argument: Option<usize>,
    /// The size that was refused; for a whole request, its size up to the argument that was one too many.
    pub bytes: u64,
}

/// The client does not speak the protocol: after the error reply the connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A number of arguments that is malformed or too large.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// The length of an argument is malformed, negative or above 512 MiB.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// Something else stands where an argument should start.
    #[error("Protocol error: expected '$', got '{0}'")]
    ExpectedBulk(char),
    /// An argument is not followed by a line end.
    #[error("Protocol error: expected a line end after the bulk string")]
    ExpectedLineEnd,
    /// An inline command that does not end within 64 KiB.
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    /// A number of arguments that does not end within 64 KiB.
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    /// The length of an argument does not end within 64 KiB.
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    /// An inline command with an open quote, or with text right after a closing one.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// Too many arguments from a client that has not authenticated.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// Too long an argument from a client that has not authenticated.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
}

/// An array of bulk strings of which a part has arrived.
#[derive(Debug)]
struct Multibulk {
    /// How many arguments are still to come.
    remaining: usize,
    /// The arguments that have arrived whole, as positions in the buffer.
    arguments: Vec<Range<usize>>,
    /// The length of the argument whose bytes come next.
    bulk_bytes: Option<usize>,
    /// What the arguments so far count towards the limit on requests.
    request_bytes: u64,
    /// Set once a limit is exceeded: the rest of the request is skipped.
    refusal: Option<Refusal>,
    /// How many arguments, skipped or kept, were announced so far.
    announced: usize,
}

/// Turns the bytes of a connection into requests.
#[derive(Debug)]
pub struct RequestParser {
    buffer: BytesMut,
    /// Everything before this position in the buffer belongs to the request being parsed.
    position: usize,
    /// No line end was found before this position.
    scanned: usize,
    /// How many bytes of a refused argument are still to be skipped.
    skip: usize,
    multibulk: Option<Multibulk>,
    limits: Limits,
    authenticated: bool,
    read_bytes: usize,
}

impl RequestParser {
    /// A parser with an empty buffer, for a client that has authenticated or need not.
    pub fn new(limits: Limits) -> Self {
        Self {
            buffer: BytesMut::new(),
            position: 0,
            scanned: 0,
            skip: 0,
            multibulk: None,
            limits,
            authenticated: true,
            read_bytes: READ_BYTES_MIN,
        }
    }

    /// Says whether the client has authenticated; before that it gets only small requests through.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Reads once from `source` and returns how many bytes came; 0 is the end of the stream.
    ///
    /// # Errors
    /// Those of `source`.
    ///
    /// # Blocking
    /// As `source` does.
    pub fn read_from(&mut self, source: &mut impl Read) -> io::Result<usize> {
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.buffer = BytesMut::new();
        }
        let length = self.buffer.len();
        self.buffer.resize(length + self.read_bytes, 0);
        let result = source.read(&mut self.buffer[length..]);
        let received = *result.as_ref().unwrap_or(&0);
        self.buffer.truncate(length + received);
        self.read_bytes = match received {
            _ if received == self.read_bytes => (2 * self.read_bytes).min(READ_BYTES_MAX),
            _ if received < self.read_bytes / 4 => (self.read_bytes / 2).max(READ_BYTES_MIN),
            _ => self.read_bytes,
        };
        result
    }

    /// Adds bytes that were received by other means.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole request, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`ProtocolError`]; the parser is then of no further use.
    pub fn next_request(&mut self) -> Result<Option<Request>, ProtocolError> {
        loop {
            if let Some(multibulk) = self.multibulk.take() {
                return self.next_argument(multibulk);
            }
            match self.buffer.first() {
                None => return Ok(None),
                Some(b'*') => {
                    let Some(line) = self.take_line(ProtocolError::TooBigMultibulkCount)? else {
                        return Ok(None);
                    };
                    let count = parse_integer(&self.buffer[line.start + 1..line.end])
                        .filter(|count| *count <= ARGUMENTS_MAX)
                        .ok_or(ProtocolError::InvalidMultibulkLength)?;
                    if !self.authenticated && count > UNAUTHENTICATED_ARGUMENTS_MAX {
                        return Err(ProtocolError::UnauthenticatedMultibulkLength);
                    }
                    // An empty or null array is no request: Redis passes over it without a reply.
                    if count <= 0 {
                        self.discard();
                        continue;
                    }
                    self.multibulk = Some(Multibulk {
                        remaining: count as usize,
                        arguments: Vec::with_capacity((count as usize).min(16)),
                        bulk_bytes: None,
                        request_bytes: 0,
                        refusal: None,
                        announced: 0,
                    });
                }
                Some(_) => {
                    let Some(line) = self.take_line(ProtocolError::TooBigInline)? else { return Ok(None) };
                    let words = split_inline(&self.buffer[line]).ok_or(ProtocolError::UnbalancedQuotes)?;
                    self.discard();
                    if !words.is_empty() {
                        return Ok(Some(Request::Command(words)));
                    }
                }
            }
        }
    }

    /// Continues an array of bulk strings as far as the buffer reaches.
    fn next_argument(&mut self, mut multibulk: Multibulk) -> Result<Option<Request>, ProtocolError> {
        while multibulk.remaining > 0 {
            if self.skip > 0 {
                let skipped = self.skip.min(self.buffer.len());
                self.buffer.advance(skipped);
                self.skip -= skipped;
                if self.skip > 0 {
                    break;
                }
                multibulk.remaining -= 1;
                continue;
            }
            let Some(bulk_bytes) = multibulk.bulk_bytes else {
                if self.buffer.get(self.position).is_some_and(|byte| *byte != b'$') {
                    return Err(ProtocolError::ExpectedBulk(char::from(self.buffer[self.position])));
                }
                let Some(line) = self.take_line(ProtocolError::TooBigBulkCount)? else { break };
                let bulk_bytes = parse_integer(&self.buffer[line.start + 1..line.end])
                    .filter(|bytes| (0..=BULK_BYTES_MAX).contains(bytes))
                    .ok_or(ProtocolError::InvalidBulkLength)?;
                if !self.authenticated && bulk_bytes > UNAUTHENTICATED_BULK_BYTES_MAX {
                    return Err(ProtocolError::UnauthenticatedBulkLength);
                }
                self.begin_argument(&mut multibulk, bulk_bytes as usize);
                continue;
            };
            let end = self.position + bulk_bytes;
            let Some(line_end) = self.buffer.get(end..end + 2) else { break };
            if line_end != b"\r\n" {
                return Err(ProtocolError::ExpectedLineEnd);
            }
            multibulk.arguments.push(self.position..end);
            multibulk.bulk_bytes = None;
            multibulk.remaining -= 1;
            self.position = end + 2;
            self.scanned = self.position;
        }
        if multibulk.remaining > 0 {
            self.multibulk = Some(multibulk);
            return Ok(None);
        }
        let whole = self.buffer.split_to(self.position).freeze();
        self.position = 0;
        self.scanned = 0;
        Ok(Some(match multibulk.refusal {
            Some(refusal) => Request::Refused(refusal),
            None => {
                Request::Command(multibulk.arguments.into_iter().map(|range| whole.slice(range)).collect())
            }
        }))
    }

    /// Notes the announced length of the next argument, or gives the whole request up when it is too long.
    fn begin_argument(&mut self, multibulk: &mut Multibulk, bulk_bytes: usize) {
        let argument = multibulk.announced;
        multibulk.announced += 1;
        multibulk.request_bytes += bulk_bytes as u64 + ARGUMENT_OVERHEAD_BYTES;
        if multibulk.refusal.is_none() {
            let argument_too_long = bulk_bytes as u64 > self.limits.argument_bytes_max();
            if !argument_too_long && multibulk.request_bytes <= self.limits.request_bytes_max {
                multibulk.bulk_bytes = Some(bulk_bytes);
                return;
            }
            let name = multibulk.arguments.first().cloned().unwrap_or_default();
            multibulk.refusal = Some(Refusal {
                name: Bytes::copy_from_slice(&self.buffer[name]),
                argument: argument_too_long.then_some(argument),
                bytes: if argument_too_long { bulk_bytes as u64 } else { multibulk.request_bytes },
            });
            multibulk.arguments = Vec::new();
        }
        self.discard();
        self.skip = bulk_bytes + 2;
    }

    /// Drops what was consumed so far; positions in the buffer start anew.
    fn discard(&mut self) {
        self.buffer.advance(self.position.min(self.buffer.len()));
        self.position = 0;
        self.scanned = 0;
    }

    /// Consumes a line and returns where it stands, without its end; `None` when that has not arrived.
    /// `too_long` is the error for a line over the limit.
    fn take_line(&mut self, too_long: ProtocolError) -> Result<Option<Range<usize>>, ProtocolError> {
        let start = self.position;
        let from = self.scanned.max(start);
        match self.buffer[from..].iter().position(|byte| *byte == b'\n').map(|offset| from + offset) {
            Some(newline) if newline - start <= LINE_BYTES_MAX => {
                self.position = newline + 1;
                self.scanned = self.position;
                let end = if self.buffer[start..newline].ends_with(b"\r") { newline - 1 } else { newline };
                Ok(Some(start..end))
            }
            None if self.buffer.len() - start <= LINE_BYTES_MAX => {
                self.scanned = self.buffer.len();
                Ok(None)
            }
            _ => Err(too_long),
        }
    }
}

/// A decimal number in its one canonical form, as Redis demands: no plus sign, no leading zeros, no spaces.
pub(crate) fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.len() < 19 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Splits an inline command into words as a shell would: `"…"` with escapes, `'…'` literally but for `\'`.
/// `None` when a quote is not closed, or is closed in the middle of a word.
pub fn split_inline(line: &[u8]) -> Option<Vec<Bytes>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        while let Some((byte, tail)) = rest.split_first()
            && is_space(*byte)
        {
            rest = tail;
        }
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        loop {
            match *rest {
                [] => break,
                [byte, ..] if is_space(byte) => break,
                [quote @ (b'"' | b'\''), ref tail @ ..] => {
                    rest = take_quoted(quote, tail, &mut word)?;
                    if rest.first().is_some_and(|byte| !is_space(*byte)) {
                        return None;
                    }
                    break;
                }
                [byte, ref tail @ ..] => {
                    word.push(byte);
                    rest = tail;
                }
            }
        }
        words.push(Bytes::from(word));
    }
}

/// Takes the inside of a quotation and its closing quote off the front of `rest`.
fn take_quoted<'a>(quote: u8, mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, tail) = match *rest {
            [] => return None,
            [byte, ref tail @ ..] if byte == quote => return Some(tail),
            [b'\\', b'x', high, low, ref tail @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                (digit(high) << 4 | digit(low), tail)
            }
            [b'\\', escaped, ref tail @ ..] if quote == b'"' => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => other,
                };
                (byte, tail)
            }
            [b'\\', b'\'', ref tail @ ..] => (b'\'', tail),
            [byte, ref tail @ ..] => (byte, tail),
        };
        word.push(byte);
        rest = tail;
    }
}

/// What C's `isspace` says.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: Limits = Limits { key_bytes_max: 8, value_bytes_max: 16, request_bytes_max: 400 };

    /// Feeds `pieces` one after another and collects all requests and the error, if any.
    fn parse_pieces<'a>(
        limits: Limits,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Request>, Option<ProtocolError>) {
        let mut parser = RequestParser::new(limits);
        let mut requests = Vec::new();
        for piece in pieces {
            parser.feed(piece);
            loop {
                match parser.next_request() {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
        }
        (requests, None)
    }

    fn command(words: &[&str]) -> Request {
        Request::Command(words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
    }

    fn check(input: &[u8], expected: &[Request]) {
        assert_eq!(parse_pieces(SMALL, [input]), (expected.to_vec(), None), "in one piece");
        assert_eq!(parse_pieces(SMALL, input.chunks(1)), (expected.to_vec(), None), "byte by byte");
    }

    fn check_error(input: &[u8], expected: &str) {
        for (requests, error) in [parse_pieces(SMALL, [input]), parse_pieces(SMALL, input.chunks(1))] {
            assert_eq!(requests, [], "{input:?}");
            assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(expected));
        }
    }

    #[test]
    fn arrays_of_bulk_strings() {
        check(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", &[command(&["GET", "a"])]);
        check(b"*1\r\n$0\r\n\r\n", &[command(&[""])]);
        check(b"*1\r\n$4\r\n\r\n\r\n\r\n", &[command(&["\r\n\r\n"])]);
        check(b"*0\r\n*-1\r\n*1\r\n$4\r\nPING\r\n", &[command(&["PING"])]);
        check(
            b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\nECHO x\r\n",
            &[command(&["PING"]), command(&["QUIT"]), command(&["ECHO", "x"])],
        );
        check(b"*2\r\n$3\r\nGET\r\n$1\r\n", &[]);
    }

    #[test]
    fn inline_commands_and_their_quotes() {
        check(b"PING\r\n", &[command(&["PING"])]);
        check(b"  set\ta   b \n", &[command(&["set", "a", "b"])]);
        check(b"\r\n   \r\nPING\n", &[command(&["PING"])]);
        check(br#"set "a b" 'c "d"'"#, &[]);
        check(b"set \"a b\" 'c \"d\"'\n", &[command(&["set", "a b", "c \"d\""])]);
        check(b"echo \"\\x41\\n\\\"\\q\\x4\" '\\'\\n'\n", &[command(&["echo", "A\n\"qx4", "'\\n"])]);
        check(b"echo \"\"\n", &[command(&["echo", ""])]);
        for line in ["echo \"a\n", "echo 'a\n", "echo \"a\"b\n", "echo 'a'b\n", "echo \"a\\\n"] {
            check_error(line.as_bytes(), "Protocol error: unbalanced quotes in request");
        }
    }

    #[test]
    fn protocol_errors_have_the_texts_of_redis() {
        for length in ["-1", "536870913", "10737418240", "99999999999999999999", "1x", "", "+1", "01", " 1"] {
            let input = format!("*1\r\n${length}\r\n");
            check_error(input.as_bytes(), "Protocol error: invalid bulk length");
        }
        for count in ["1048577", "9223372036854775808", "x", "", "+1"] {
            check_error(format!("*{count}\r\n").as_bytes(), "Protocol error: invalid multibulk length");
        }
        check_error(b"*1\r\n:3\r\n", "Protocol error: expected '$', got ':'");
        check_error(b"*1\r\n$1\r\nabc\r\n", "Protocol error: expected a line end after the bulk string");
        check_error(&[b'a'; LINE_BYTES_MAX + 1], "Protocol error: too big inline request");
        check_error(&[b'*'; LINE_BYTES_MAX + 1], "Protocol error: too big mbulk count string");
        let count = [b"*1\r\n$".as_slice(), &[b'1'; LINE_BYTES_MAX]].concat();
        check_error(&count, "Protocol error: too big bulk count string");
    }

    #[test]
    fn an_unauthenticated_client_gets_little_through() {
        let error = |input: &[u8]| {
            let mut parser = RequestParser::new(Limits::DEFAULT);
            parser.set_authenticated(false);
            parser.feed(input);
            parser.next_request().unwrap_err()
        };
        assert_eq!(error(b"*11\r\n"), ProtocolError::UnauthenticatedMultibulkLength);
        assert_eq!(error(b"*2\r\n$16385\r\n"), ProtocolError::UnauthenticatedBulkLength);
    }

    #[test]
    fn a_request_over_a_limit_is_skipped_and_the_next_one_parsed() {
        let refused = |name: &'static str, argument, bytes| {
            Request::Refused(Refusal { name: Bytes::from(name), argument, bytes })
        };
        check(
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$17\r\n01234567890123456\r\nPING\r\n",
            &[refused("SET", Some(2), 17), command(&["PING"])],
        );
        check(
            b"*3\r\n$17\r\n01234567890123456\r\n$1\r\na\r\n$1\r\nb\r\nPING\r\n",
            &[refused("", Some(0), 17), command(&["PING"])],
        );
        let many = format!("*7\r\n{}PING\r\n", "$2\r\nab\r\n".repeat(7));
        check(many.as_bytes(), &[refused("ab", None, 7 * 66), command(&["PING"])]);
    }

    #[test]
    fn a_huge_announced_length_allocates_nothing() {
        let mut parser = RequestParser::new(Limits { value_bytes_max: 1 << 29, ..Limits::DEFAULT });
        parser.feed(b"*1048576\r\n$536870912\r\nabc");
        assert_eq!(parser.next_request(), Ok(None));
        assert!(parser.buffer.capacity() < 1024, "{}", parser.buffer.capacity());
    }

    #[test]
    fn reading_adapts_to_the_input_and_gives_memory_back() {
        let input = [b"*1\r\n$3000000\r\n".as_slice(), &vec![b'x'; 3_000_000], b"\r\n"].concat();
        let mut source = &input[..];
        let mut parser = RequestParser::new(Limits::DEFAULT);
        let mut reads = 0;
        let request = loop {
            reads += 1;
            assert_ne!(parser.read_from(&mut source).unwrap(), 0);
            if let Some(request) = parser.next_request().unwrap() {
                break request;
            }
        };
        assert!(matches!(request, Request::Command(words) if words[0].len() == 3_000_000));
        assert!(reads < 30, "{reads}");
        assert_eq!(parser.read_from(&mut source).unwrap(), 0);
        assert!(parser.buffer.capacity() <= 2 * READ_BYTES_MAX, "{}", parser.buffer.capacity());
    }

    #[test]
    fn integers_are_canonical() {
        for (text, number) in [
            ("0", 0),
            ("-1", -1),
            ("10", 10),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_integer(text.as_bytes()), Some(number));
        }
        for text in ["", "-", "-0", "00", "01", "+1", " 1", "1 ", "1.0", "a", "9223372036854775808", "0x1"] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
    }

    /// Bytes that are likely to come close to requests.
    fn nearly_requests() -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            prop::sample::select(vec![
                "*1\r\n", "*2\r\n", "*-1\r\n", "$3\r\n", "$0\r\n", "$20\r\n", "\r\n", "\n", "\"", "'", "\\x4"
            ])
            .prop_map(|word| word.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..24),
            prop::collection::vec("[a-z]{0,20}", 1..5).prop_map(|words| {
                let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
                words.iter().for_each(|word| bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes()));
                bytes
            }),
        ];
        prop::collection::vec(word, 0..12).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_requests(input in nearly_requests(), cuts in prop::collection::vec(0.0..1.0, 0..6)) {
            let whole = parse_pieces(SMALL, [&input[..]]);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut: &f64| (cut * input.len() as f64) as usize).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &input[cut[0]..cut[1]]);
            prop_assert_eq!(&parse_pieces(SMALL, pieces), &whole);
            prop_assert_eq!(&parse_pieces(SMALL, input.chunks(1)), &whole);
        }
    }
}
