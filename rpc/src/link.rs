//! The sending half of a connection, the same on both ends: a queue of frames bounded in bytes, and the
//! activity that writes whatever the queue holds in one go.
//!
//! Owns the order of frames on the wire, back-pressure, heartbeats, and the reason a connection ended for.
//! Knows nothing of requests and answers.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::error::{CloseReason, RpcError};
use crate::frame::{HEADER_BYTES, Header, Kind};
use crate::metrics::{RpcMetrics, add};
use crate::stream::{TimedStream, write_all};

/// Bodies up to this length are copied next to their headers; copying is then cheaper than one more part of a
/// vectored write. Longer ones are written from where they lie.
const COPIED_BODY_BYTES_MAX: usize = 8 << 10;
/// What a queued frame takes beside its body. Counted, because a queue of empty bodies takes memory, too.
pub(crate) const OUTGOING_BYTES: usize = size_of::<Outgoing>();
/// Room for so many frames is kept for the next burst; more is given back.
const FRAMES_KEPT: usize = 1_024;
/// Gathered bytes are written once there are this many, though more frames may wait.
const GATHERED_BYTES_MAX: usize = 256 << 10;

/// A frame that waits to be written.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Complete but for `deadline_ms`.
    header: Header,
    body: Bytes,
    /// When it is of no use any more. What is left is put into the header as late as possible, so that time
    /// in the queue counts.
    deadline: Option<Instant>,
}

impl Outgoing {
    pub(crate) fn new(header: Header, body: Bytes, deadline: Option<Instant>) -> Outgoing {
        Outgoing { header, body, deadline }
    }

    /// The memory it takes while it waits.
    fn bytes(&self) -> usize {
        OUTGOING_BYTES + self.body.len()
    }

    /// Sets the header's deadline; false when it has passed and the frame must not be sent.
    fn stamp(&mut self, now: Instant) -> bool {
        let Some(deadline) = self.deadline else { return true };
        let left = deadline.saturating_duration_since(now);
        // Rounded up: 0 on the wire means no deadline at all.
        self.header.deadline_ms = u32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        !left.is_zero()
    }
}

/// Which frame of a link this is, counted from 0 in the order of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushError {
    Full { queued: usize, limit: usize },
    TimedOut,
    Closed(CloseReason),
}

#[derive(Debug)]
struct Queue {
    frames: VecDeque<Outgoing>,
    /// Bytes of the frames above and of those that the writer has taken and not yet written.
    bytes: usize,
    /// Frames ever queued.
    pushed: u64,
    /// Frames the writer has ever taken; those may have reached the peer.
    taken: u64,
    /// Set once connected; before, frames merely queue.
    stream: Option<TimedStream>,
    closed: bool,
    /// Whether anybody waits on `work` or `room`: notifying costs a system call even when nobody does.
    writer_waits: bool,
    pushers_wait: usize,
}

/// One connection's sending half, and its end.
#[derive(Debug)]
pub(crate) struct Link {
    queue: Mutex<Queue>,
    /// The writer waits here for frames.
    work: Condvar,
    /// Pushers wait here for room.
    room: Condvar,
    bytes_max: usize,
    /// Set once, by [`Link::close`].
    reason: OnceLock<CloseReason>,
}

impl Link {
    pub(crate) fn new(bytes_max: usize) -> Link {
        let queue = Queue {
            frames: VecDeque::new(),
            bytes: 0,
            pushed: 0,
            taken: 0,
            stream: None,
            closed: false,
            writer_waits: false,
            pushers_wait: 0,
        };
        Link {
            queue: Mutex::new(queue),
            work: Condvar::new(),
            room: Condvar::new(),
            bytes_max,
            reason: OnceLock::new(),
        }
    }

    /// Gives the link its connection.
    pub(crate) fn attach(&self, stream: TimedStream) {
        let mut queue = self.lock();
        // Closed while the connection was being made: `close` found no stream to end.
        if queue.closed {
            stream.shutdown();
        }
        queue.stream = Some(stream);
    }

    /// Ends the connection. The first reason is kept; returns it.
    pub(crate) fn close(&self, reason: CloseReason) -> CloseReason {
        let reason = *self.reason.get_or_init(|| reason);
        let mut queue = self.lock();
        queue.closed = true;
        if let Some(stream) = &queue.stream {
            stream.shutdown();
        }
        drop(queue);
        self.work.notify_all();
        self.room.notify_all();
        reason
    }

    /// Why the link was closed, if it was.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.reason.get().copied()
    }

    /// Queues a frame, or says at once that there is no room.
    pub(crate) fn push(&self, frame: Outgoing) -> Result<Ticket, PushError> {
        let queue = self.lock();
        if !self.has_room(&queue, &frame) && !queue.closed {
            return Err(PushError::Full { queued: queue.bytes, limit: self.bytes_max });
        }
        self.push_locked(queue, frame)
    }

    /// Queues a frame as soon as there is room.
    ///
    /// # Blocking
    /// Until there is room, the link is closed, or `deadline` passes.
    pub(crate) fn push_wait(&self, frame: Outgoing, deadline: Option<Instant>) -> Result<Ticket, PushError> {
        let mut queue = self.lock();
        while !self.has_room(&queue, &frame) && !queue.closed {
            queue.pushers_wait += 1;
            let (guard, expired) = wait_until(&self.room, queue, deadline);
            queue = guard;
            queue.pushers_wait -= 1;
            if expired {
                return Err(PushError::TimedOut);
            }
        }
        self.push_locked(queue, frame)
    }

    fn has_room(&self, queue: &Queue, frame: &Outgoing) -> bool {
        queue.bytes + frame.bytes() <= self.bytes_max
    }

    fn push_locked(&self, mut queue: MutexGuard<'_, Queue>, frame: Outgoing) -> Result<Ticket, PushError> {
        if queue.closed {
            // `close` sets the reason before it closes the queue.
            return Err(PushError::Closed(self.close_reason().unwrap_or(CloseReason::Local)));
        }
        let ticket = Ticket(queue.pushed);
        queue.pushed += 1;
        queue.bytes += frame.bytes();
        queue.frames.push_back(frame);
        let wake = std::mem::take(&mut queue.writer_waits);
        drop(queue);
        if wake {
            self.work.notify_one();
        }
        Ok(ticket)
    }

    /// Whether the frame was handed to the network. After the link is closed the answer does not change any
    /// more.
    pub(crate) fn was_taken(&self, ticket: Ticket) -> bool {
        ticket.0 < self.lock().taken
    }

    /// The writer's whole life: writes what is queued, as it is queued, and heartbeats in between, until the
    /// link is closed. Closes it when writing fails.
    ///
    /// # Blocking
    /// Until the link is closed.
    pub(crate) fn run_writer(
        &self,
        stream: &TimedStream,
        heartbeat_interval: Duration,
        metrics: &RpcMetrics,
    ) {
        let mut frames = VecDeque::new();
        while self.take(&mut frames, heartbeat_interval) {
            if let Err(reason) = self.write(stream, &mut frames, metrics) {
                self.close(reason);
                return;
            }
        }
    }

    /// Swaps everything queued into `frames`, which is empty; false when the link is closed. When nothing is
    /// queued for the whole interval, a heartbeat is.
    fn take(&self, frames: &mut VecDeque<Outgoing>, heartbeat_interval: Duration) -> bool {
        let heartbeat_at = Instant::now() + heartbeat_interval;
        let mut queue = self.lock();
        while queue.frames.is_empty() && !queue.closed {
            queue.writer_waits = true;
            let (guard, expired) = wait_until(&self.work, queue, Some(heartbeat_at));
            queue = guard;
            queue.writer_waits = false;
            if expired && queue.frames.is_empty() {
                let heartbeat = Outgoing::new(Header::new(Kind::Heartbeat, b""), Bytes::new(), None);
                queue.bytes += heartbeat.bytes();
                queue.pushed += 1;
                queue.frames.push_back(heartbeat);
            }
        }
        if queue.closed {
            return false;
        }
        queue.taken += queue.frames.len() as u64;
        std::mem::swap(&mut queue.frames, frames);
        true
    }

    fn write(
        &self,
        stream: &TimedStream,
        frames: &mut VecDeque<Outgoing>,
        metrics: &RpcMetrics,
    ) -> Result<(), CloseReason> {
        let mut now = Instant::now();
        let mut gathered = Vec::new();
        // Bytes of the queue that the next write gives back; more than are gathered when frames expired.
        let mut done = 0;
        while let Some(mut frame) = frames.pop_front() {
            done += frame.bytes();
            let in_place = frame.body.len() > COPIED_BODY_BYTES_MAX;
            if frame.stamp(now) {
                add(&metrics.frames_out, 1);
                add(&metrics.bytes_out, HEADER_BYTES + frame.body.len());
                gathered.extend_from_slice(&frame.header.encode());
                if !in_place {
                    gathered.extend_from_slice(&frame.body);
                    frame.body = Bytes::new();
                }
            } else {
                frame.body = Bytes::new();
            }
            if frames.is_empty() || gathered.len() >= GATHERED_BYTES_MAX || !frame.body.is_empty() {
                add(&metrics.writes, write_all(stream, &[&gathered, &frame.body])?);
                gathered.clear();
                drop(frame);
                self.written(std::mem::take(&mut done));
                // The write may have waited for the peer, and the deadlines have not.
                now = Instant::now();
            }
        }
        frames.shrink_to(FRAMES_KEPT);
        Ok(())
    }

    /// Gives bytes that are written, or will never be, back to the pushers.
    fn written(&self, bytes: usize) {
        let mut queue = self.lock();
        queue.bytes -= bytes;
        if queue.pushers_wait > 0 {
            self.room.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nothing panics while it holds the queue")
    }
}

/// Waits for a notification; true when `deadline` has passed instead.
pub(crate) fn wait_until<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> (MutexGuard<'a, T>, bool) {
    const INVARIANT: &str = "nothing panics while it holds a lock of this crate";
    let Some(deadline) = deadline else { return (condvar.wait(guard).expect(INVARIANT), false) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return (guard, true);
    }
    let (guard, wait) = condvar.wait_timeout(guard, left).expect(INVARIANT);
    // That nothing is sent after its deadline hangs on this verdict, so it is the clock's, not the wait's.
    (guard, wait.timed_out() && Instant::now() >= deadline)
}

/// The error of a frame that was not queued.
impl From<PushError> for RpcError {
    fn from(error: PushError) -> RpcError {
        match error {
            PushError::Full { queued, limit } => RpcError::Full { queued, limit },
            PushError::TimedOut => RpcError::DeadlineExceeded { sent: false },
            PushError::Closed(reason) => RpcError::disconnected(reason, false),
        }
    }
}
