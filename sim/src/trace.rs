//! What happened, in order: a digest of every event, and for people a timeline of some or all of them.

use core::fmt;
use core::hash::{Hash, Hasher};
use std::time::Duration;

/// Something that happened in a simulation. Whatever can differ between two runs must be in here, and nothing that may: no address, no
/// number that the process has counted before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// Of so many fibers that were ready this one was chosen.
    Pick { runnable: usize, index: usize },
    /// Time passed with nothing to do.
    Sleep { nanos: u64 },
    /// A fiber made a call; what the call was about, and its result or error.
    Call { process: usize, call: Call, about: u64, result: Result<u64, i32> },
    /// A part of a connection's stream was sent, arrived, or waits for a link to be mended.
    Segment { connection: u64, to: usize, what: Passage, kind: SegmentKind, bytes: u32 },
    /// A fault or another thing that the scenario did: the digest of its description.
    Note { digest: u64 },
}

/// The calls of an operating system that can be told apart in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Accept,
    Bind,
    Close,
    Connect,
    Control,
    Entries,
    Listen,
    Lock,
    MakeDirectory,
    Open,
    Option,
    Peer,
    Poll,
    Random,
    Read,
    ReadAt,
    Receive,
    Refused,
    Remove,
    Rename,
    Resolve,
    Seek,
    Send,
    SetLength,
    Shutdown,
    Sleep,
    Socket,
    Status,
    Sync,
    Write,
    WriteAt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Passage {
    Sent,
    Arrived,
    Stalled,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SegmentKind {
    Open,
    Accept,
    Data,
    Finish,
    Reset,
    Datagram,
}

/// A line of a run's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Since the beginning.
    pub at: Duration,
    /// Where; empty for the world itself.
    pub host: String,
    /// What.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6} {:<10} {}", self.at.as_secs_f64(), self.host, self.text)
    }
}

/// The record of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    digest: Digest,
    events: u64,
    /// Notes and log lines.
    lines: Vec<Line>,
    /// Every event becomes a line.
    detailed: bool,
}

/// A 64-bit digest that is the same in every process, unlike those of std's maps.
#[derive(Debug, Default, Clone, Copy)]
struct Digest(u64);

impl Digest {
    fn mix(&mut self, word: u64) {
        // A multiplication carries upwards only; the shift brings the upper bits back down.
        let product = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = product ^ (product >> 29);
    }
}

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        self.mix(bytes.len() as u64);
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The digest of some bytes, the same in every process.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut digest = Digest::default();
    digest.write(bytes);
    digest.finish()
}

impl Trace {
    pub(crate) fn new(detailed: bool) -> Self {
        Self { digest: Digest::default(), events: 0, lines: Vec::new(), detailed }
    }

    pub(crate) fn record(&mut self, now: u64, host: &str, event: Event) {
        self.events += 1;
        self.digest.mix(now);
        event.hash(&mut self.digest);
        if self.detailed {
            self.push(now, host, format!("{event:?}"));
        }
    }

    /// For people, and for the digest.
    pub(crate) fn note(&mut self, now: u64, host: &str, text: String) {
        self.record(now, host, Event::Note { digest: digest(text.as_bytes()) });
        self.push(now, host, text);
    }

    fn push(&mut self, now: u64, host: &str, text: String) {
        self.lines.push(Line { at: Duration::from_nanos(now), host: host.to_owned(), text });
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub(crate) fn take_lines(&mut self) -> Vec<Line> {
        core::mem::take(&mut self.lines)
    }
}
