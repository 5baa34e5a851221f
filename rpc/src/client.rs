//! The calling side: a [`Client`] stands for one peer, however often the connections to it break.
//!
//! Owns connecting, reconnecting and the table of calls that wait for answers. A connection is made when
//! somebody wants to say something, by an activity of its own that then reads the answers until the
//! connection ends; there is nothing to keep running for a peer that nobody talks to.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;

use crate::config::{ClientConfig, TIMEOUT_CEILING};
use crate::error::{CloseReason, RpcError, Status};
use crate::frame::{FrameReader, HEADER_BYTES, Header, Kind};
use crate::handshake::{self, LocalIdentity, Opening, Refusal};
use crate::link::{Link, Outgoing, wait_until};
use crate::method::Method;
use crate::metrics::{RpcMetrics, add, count};
use crate::proto;
use crate::proto::rpc::goaway::Code;
use crate::spawn::spawn;
use crate::stream::TimedStream;

/// One peer, as its callers see it. Shared by reference or in an `Arc`; dropping it closes it without
/// waiting.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    config: ClientConfig,
    local: LocalIdentity,
    slots: Box<[Slot]>,
    /// Whose turn it is to carry the next call.
    turn: AtomicUsize,
}

/// A place in the pool, taken by one connection after the other.
#[derive(Debug)]
struct Slot {
    state: Mutex<SlotState>,
    /// Notified when a connection ends, and when the client is closed.
    changed: Condvar,
}

#[derive(Debug)]
struct SlotState {
    phase: Phase,
    /// Attempts since the last connection that lasted.
    failures: u32,
    /// Every connection whose activity runs: the live one, and those that a goaway took out of use.
    running: Vec<Arc<Connection>>,
}

#[derive(Debug)]
enum Phase {
    /// Nobody asked for a connection since the last one ended.
    Idle,
    /// Being connected, or connected.
    Live(Arc<Connection>),
    /// No attempt before `until`, because the last one failed.
    Backoff { until: Instant, cause: CloseReason },
    /// For good.
    Closed,
}

impl Client {
    /// A client of the peer at `addr`. Nothing is connected yet.
    ///
    /// # Errors
    /// [`RpcError::BadConfig`].
    pub fn new(addr: SocketAddr, config: ClientConfig, local: LocalIdentity) -> Result<Client, RpcError> {
        config.validate()?;
        let slots = (0..config.connections)
            .map(|_| {
                let state = SlotState { phase: Phase::Idle, failures: 0, running: Vec::new() };
                Slot { state: Mutex::new(state), changed: Condvar::new() }
            })
            .collect();
        let shared = Arc::new(Shared { addr, config, local, slots, turn: AtomicUsize::new(0) });
        Ok(Client { shared })
    }

    /// The peer's address.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// What happened so far.
    pub fn metrics(&self) -> &RpcMetrics {
        &self.shared.config.metrics
    }

    /// Asks the peer to do `method` and returns its answer. `timeout` bounds everything, connecting included,
    /// and the peer is told what is left of it. `trace_id` travels along; 0: none.
    ///
    /// # Errors
    /// Any but [`RpcError::BadConfig`], [`RpcError::Bind`], [`RpcError::Full`] and [`RpcError::GivenUp`];
    /// [`RpcError::definitely_not_executed`] says which of them leave the outcome open.
    ///
    /// # Blocking
    /// Until the answer, an error, or the timeout.
    pub fn call(
        &self,
        method: Method,
        body: Bytes,
        timeout: Duration,
        trace_id: u64,
    ) -> Result<Bytes, RpcError> {
        self.call_if_wanted(method, body, timeout, trace_id, None)
    }

    /// Like [`Client::call`], but gives up once `is_wanted`, asked every fifty milliseconds, is false: for a caller who may
    /// learn elsewhere that this peer is not the one to ask any more. A peer that froze, or that the network no longer
    /// reaches, says nothing, and only the timeouts would end the wait.
    ///
    /// # Errors
    /// Those of [`Client::call`], and [`RpcError::GivenUp`].
    ///
    /// # Blocking
    /// As [`Client::call`].
    pub fn call_while(
        &self,
        method: Method,
        body: Bytes,
        timeout: Duration,
        trace_id: u64,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Bytes, RpcError> {
        self.call_if_wanted(method, body, timeout, trace_id, Some(is_wanted))
    }

    fn call_if_wanted(
        &self,
        method: Method,
        body: Bytes,
        timeout: Duration,
        trace_id: u64,
        is_wanted: Option<&dyn Fn() -> bool>,
    ) -> Result<Bytes, RpcError> {
        let shared = &self.shared;
        RpcError::check_body(body.len(), shared.config.body_bytes_max)?;
        count(&shared.config.metrics.calls);
        let deadline = Instant::now() + timeout.min(TIMEOUT_CEILING);
        let header = Header { method, trace_id, ..Header::new(Kind::Request, &body) };
        let slot = shared.slot_for_calls();
        let patience = shared.config.wait_while_unavailable.then_some(deadline);
        loop {
            let connection = shared.connection(slot, patience)?;
            let result = connection.call(header, body.clone(), deadline, is_wanted);
            match result {
                // Its place in the pool is taken by another from now on.
                Err(RpcError::NotSent(GOING_AWAY)) if connection.is_going_away() => {}
                Err(RpcError::NotSent(_)) if patience.is_some() && Instant::now() < deadline => {}
                Err(RpcError::DeadlineExceeded { .. }) => {
                    count(&shared.config.metrics.calls_expired);
                    return result;
                }
                _ => return result,
            }
        }
    }

    /// Sends the peer a message that wants no answer. Messages arrive in the order of these calls, or not at
    /// all: what is queued when a connection ends is lost.
    ///
    /// # Errors
    /// All mean that it was not sent: [`RpcError::Full`] when the peer takes less than it is given,
    /// [`RpcError::Unavailable`] between attempts to connect, [`RpcError::NotSent`],
    /// [`RpcError::BodyTooLong`], [`RpcError::Closed`].
    ///
    /// # Blocking
    /// Never.
    pub fn notify(&self, method: Method, body: Bytes) -> Result<(), RpcError> {
        let shared = &self.shared;
        RpcError::check_body(body.len(), shared.config.body_bytes_max)?;
        let header = Header { method, ..Header::new(Kind::OneWay, &body) };
        let pushed = shared
            .connection(NOTIFICATION_SLOT, None)
            .and_then(|connection| Ok(connection.link.push(Outgoing::new(header, body, None))?));
        if pushed.is_err() {
            count(&shared.config.metrics.notifications_refused);
        }
        pushed.map(drop)
    }

    /// Ends all connections. Calls in progress fail; later ones fail with [`RpcError::Closed`].
    ///
    /// # Blocking
    /// Until every activity of this client has ended; one that is connecting ends after `connect_timeout` at
    /// the latest.
    pub fn close(&self) {
        self.shared.close();
        for slot in &self.shared.slots {
            let mut state = slot.lock();
            while !state.running.is_empty() {
                state = wait_until(&slot.changed, state, None).0;
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// How a connection ends whose peer is shutting down.
const GOING_AWAY: CloseReason = CloseReason::Refused(Code::ShuttingDown);
/// How often a call that may be given up asks whether it is still wanted.
const WANTED_INTERVAL: Duration = Duration::from_millis(50);
/// All one-way messages go through the same connection: that is what keeps them in order.
const NOTIFICATION_SLOT: usize = 0;

impl Shared {
    fn slot_for_calls(&self) -> usize {
        match self.slots.len() {
            1 => 0,
            n => 1 + self.turn.fetch_add(1, Ordering::Relaxed) % (n - 1),
        }
    }

    fn close(&self) {
        for slot in &self.slots {
            let mut state = slot.lock();
            state.phase = Phase::Closed;
            let running = state.running.clone();
            drop(state);
            slot.changed.notify_all();
            for connection in running {
                connection.link.close(CloseReason::Local);
            }
        }
    }

    /// The connection of a slot, being made if there is none. What is queued on it while it is being made
    /// goes out as soon as it stands.
    ///
    /// # Blocking
    /// Never without `patience`; with it, until then, while no attempt to connect is due.
    fn connection(
        self: &Arc<Self>,
        index: usize,
        patience: Option<Instant>,
    ) -> Result<Arc<Connection>, RpcError> {
        let slot = &self.slots[index];
        let mut state = slot.lock();
        loop {
            match state.phase {
                Phase::Closed => return Err(RpcError::Closed),
                Phase::Live(ref connection) if !connection.is_going_away() => match patience {
                    // It broke and is about to give up its place; whoever has time waits for the next.
                    Some(deadline)
                        if connection.link.close_reason().is_some() && Instant::now() < deadline =>
                    {
                        state = wait_until(&slot.changed, state, patience).0;
                    }
                    _ => return Ok(connection.clone()),
                },
                Phase::Backoff { until, cause } => {
                    let retry_after = until.saturating_duration_since(Instant::now());
                    match patience {
                        _ if retry_after.is_zero() => break,
                        Some(deadline) if Instant::now() < deadline => {
                            state = wait_until(&slot.changed, state, Some(until.min(deadline))).0;
                        }
                        _ => return Err(RpcError::Unavailable { retry_after, cause }),
                    }
                }
                Phase::Live(_) | Phase::Idle => break,
            }
        }
        let connection = Arc::new(Connection::new(self.config.queue_bytes_max));
        let activity = {
            let (shared, connection) = (self.clone(), connection.clone());
            move || shared.run(index, &connection)
        };
        if let Err(error) = spawn("rpc-client", activity) {
            let (retry_after, cause) = (self.config.backoff_min, CloseReason::Io(error.kind()));
            return Err(RpcError::Unavailable { retry_after, cause });
        }
        state.running.push(connection.clone());
        state.phase = Phase::Live(connection.clone());
        Ok(connection)
    }

    /// A connection's activity: connects, reads until the end, cleans up.
    fn run(&self, index: usize, connection: &Arc<Connection>) {
        let began = Instant::now();
        let end = self.converse(connection);
        let reason = connection.link.close_reason().unwrap_or(end.reason);
        self.config.metrics.count_closed(reason);

        let slot = &self.slots[index];
        let mut state = slot.lock();
        // The slot first: a caller that is told of the end and tries again at once must not meet this
        // connection.
        if matches!(&state.phase, Phase::Live(live) if Arc::ptr_eq(live, connection)) {
            if connection.was_opened() && began.elapsed() >= self.config.backoff_max {
                state.failures = 0;
                state.phase = Phase::Idle;
            } else {
                // A peer that accepts connections only to drop them must not be dialled in a tight loop,
                // either.
                state.failures = state.failures.saturating_add(1);
                let until = Instant::now() + self.backoff(state.failures);
                state.phase = Phase::Backoff { until, cause: reason };
            }
        }
        let failures = state.failures;
        drop(state);
        self.log_end(reason, &end.words, failures);
        connection.end(reason);

        slot.lock().running.retain(|running| !Arc::ptr_eq(running, connection));
        slot.changed.notify_all();
    }

    fn log_end(&self, reason: CloseReason, words: &str, failures: u32) {
        let level = match reason {
            CloseReason::Local => log::Level::Debug,
            _ if reason.is_misbehaviour() => log::Level::Warn,
            CloseReason::Refused(_) | CloseReason::PeerRefused(_) if failures <= 1 => log::Level::Warn,
            // A peer that is down is news once, not at each attempt.
            _ if failures <= 1 => log::Level::Info,
            _ => log::Level::Debug,
        };
        // The words are the peer's; escaped, they cannot pose as lines of this log.
        let (colon, words) = (if words.is_empty() { "" } else { ": " }, words.escape_debug());
        log::log!(level, "rpc: connection to {} ended: {reason}{colon}{words}", self.addr);
    }

    /// The pause after the `failures`-th failure in a row.
    fn backoff(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let pause = self.config.backoff_min.saturating_mul(1 << doublings).min(self.config.backoff_max);
        let mut random = [0; 4];
        // Without randomness the pause is merely not jittered.
        let _ = getrandom::fill(&mut random);
        let fraction = f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX);
        pause.mul_f64(1.0 - fraction / 2.0)
    }

    /// Connects, introduces itself, reads answers; returns why it ended.
    fn converse(&self, connection: &Arc<Connection>) -> End {
        let (mut reader, heartbeat_interval) = match self.connect(connection) {
            Ok(opened) => opened,
            Err(end) => return end,
        };
        count(&self.config.metrics.connections_opened);
        connection.opened.store(true, Ordering::Relaxed);
        let writer = {
            let (connection, metrics) = (connection.clone(), self.config.metrics.clone());
            let stream = reader.source_mut().clone();
            move || connection.link.run_writer(&stream, heartbeat_interval, &metrics)
        };
        let writer = match spawn("rpc-client-writer", writer) {
            Ok(writer) => writer,
            Err(error) => return CloseReason::Io(error.kind()).into(),
        };
        let reason = connection.link.close(self.read_answers(connection, &mut reader));
        writer.join().expect("the writer does not panic");
        reason.into()
    }

    fn connect(&self, connection: &Connection) -> Result<(FrameReader<TimedStream>, Duration), End> {
        let config = &self.config;
        let io_reason = |error: std::io::Error| CloseReason::Io(error.kind());
        let stream = TcpStream::connect_timeout(&self.addr, config.connect_timeout).map_err(io_reason)?;
        // Connecting to a local port on which nobody listens can pick that very port as the local end and so
        // succeed, with itself; the port would then be in use when the real peer starts.
        if stream.local_addr().map_err(io_reason)? == self.addr {
            return Err(CloseReason::Io(std::io::ErrorKind::ConnectionRefused).into());
        }
        let stream = TimedStream::new(stream, config.idle_timeout, config.write_stall_timeout)?;
        connection.link.attach(stream.clone());

        let deadline = Instant::now() + config.handshake_timeout;
        handshake::send_hello(&stream, &self.local, config.idle_timeout)?;
        let mut reader = FrameReader::new(stream.clone(), config.body_bytes_max);
        let hello = match handshake::receive_opening(&mut reader, deadline, config.body_bytes_max)? {
            Opening::Hello(hello) => hello,
            Opening::Goaway(goaway) => {
                return Err(End { reason: CloseReason::Refused(goaway.code()), words: goaway.message });
            }
        };
        let judged = handshake::judge(&self.local, &hello, self.addr).and_then(|peer| {
            match self.config.expected_node_id {
                Some(expected) if expected != peer.node_id => Err(Refusal::new(
                    Code::WrongNode,
                    format!("node {expected} was expected, not {}", peer.node_id),
                )),
                _ => Ok(()),
            }
        });
        if let Err(refusal) = judged {
            handshake::send_goaway(&stream, &refusal)?;
            return Err(End { reason: CloseReason::PeerRefused(refusal.code), words: refusal.message });
        }
        Ok((reader, handshake::heartbeat_interval(&hello)))
    }

    fn read_answers(&self, connection: &Connection, reader: &mut FrameReader<TimedStream>) -> CloseReason {
        loop {
            let frame = reader.read_header().and_then(|header| Ok((header, reader.read_body(&header)?)));
            let (header, body) = match frame {
                Ok(frame) => frame,
                Err(reason) => return reason,
            };
            let metrics = &self.config.metrics;
            count(&metrics.frames_in);
            add(&metrics.bytes_in, HEADER_BYTES + body.len());
            let answer = match header.kind {
                Kind::Heartbeat => continue,
                Kind::Goaway => {
                    log::debug!("rpc: {} is going away", self.addr);
                    connection.go_away();
                    continue;
                }
                Kind::Response => Ok(body),
                Kind::Error => match proto::rpc::Status::decode(body) {
                    Ok(status) => Err(Status::from_wire(status)),
                    Err(_) => return CloseReason::BadMessage(header.kind),
                },
                Kind::Hello | Kind::Request | Kind::OneWay => {
                    return CloseReason::UnexpectedFrame(header.kind);
                }
            };
            if !connection.answer(header.stream, answer) {
                count(&metrics.answers_late);
            }
        }
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().expect("nothing panics while it holds a slot")
    }
}

/// How a connection or an attempt ended.
struct End {
    reason: CloseReason,
    /// What the side that refused says about it; may be empty.
    words: String,
}

impl From<CloseReason> for End {
    fn from(reason: CloseReason) -> End {
        End { reason, words: String::new() }
    }
}

/// One connection to the peer, from the wish to have it to its end.
#[derive(Debug)]
struct Connection {
    link: Link,
    calls: Mutex<Calls>,
    /// Both sides have said hello.
    opened: AtomicBool,
}

#[derive(Debug)]
struct Calls {
    /// Invariant: empty once `ended` is set, so no call waits for a connection that is gone.
    waiting: BTreeMap<u32, Arc<Waiter>>,
    last_stream: u32,
    /// The peer takes no new requests on this connection; when the last call has left, this side closes it.
    /// The peer waits for that before it closes it itself, so that no request crosses its end on the wire and
    /// leaves its caller in doubt.
    going_away: bool,
    ended: Option<CloseReason>,
}

impl Connection {
    fn new(queue_bytes_max: usize) -> Connection {
        Connection {
            link: Link::new(queue_bytes_max),
            calls: Mutex::new(Calls {
                waiting: BTreeMap::new(),
                last_stream: 0,
                going_away: false,
                ended: None,
            }),
            opened: AtomicBool::new(false),
        }
    }

    fn was_opened(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    fn is_going_away(&self) -> bool {
        self.lock().going_away
    }

    fn go_away(&self) {
        let mut calls = self.lock();
        calls.going_away = true;
        self.close_if_left(&calls);
    }

    fn close_if_left(&self, calls: &Calls) {
        if calls.going_away && calls.waiting.is_empty() {
            self.link.close(GOING_AWAY);
        }
    }

    /// Takes a call out of the table, if it is still in.
    fn leave(&self, stream: u32) -> Option<Arc<Waiter>> {
        let mut calls = self.lock();
        let waiter = calls.waiting.remove(&stream);
        self.close_if_left(&calls);
        waiter
    }

    fn call(
        &self,
        header: Header,
        body: Bytes,
        deadline: Instant,
        is_wanted: Option<&dyn Fn() -> bool>,
    ) -> Result<Bytes, RpcError> {
        let waiter = Arc::new(Waiter::default());
        let stream = self.begin(&waiter).map_err(|reason| RpcError::disconnected(reason, false))?;
        let frame = Outgoing::new(Header { stream, ..header }, body, Some(deadline));
        let ticket = self.link.push_wait(frame, Some(deadline)).inspect_err(|_| {
            self.leave(stream);
        })?;
        let outcome = loop {
            let ask_again_at = is_wanted.map(|_| Instant::now() + WANTED_INTERVAL);
            let until = ask_again_at.map_or(deadline, |at| at.min(deadline));
            if let Some(outcome) = waiter.wait(until) {
                break Some(outcome);
            }
            if until == deadline {
                break None;
            }
            if !is_wanted.is_none_or(|is_wanted| is_wanted()) {
                self.leave(stream);
                return Err(RpcError::GivenUp);
            }
        };
        match outcome {
            Some(Outcome::Answer(answer)) => Ok(answer?),
            Some(Outcome::Ended(reason)) => Err(RpcError::disconnected(reason, self.link.was_taken(ticket))),
            None => {
                self.leave(stream);
                // The writer drops a frame whose deadline has passed, so what it has not taken by now stays
                // unsent.
                Err(RpcError::DeadlineExceeded { sent: self.link.was_taken(ticket) })
            }
        }
    }

    /// Enters a call into the table; returns its stream id.
    fn begin(&self, waiter: &Arc<Waiter>) -> Result<u32, CloseReason> {
        let mut calls = self.lock();
        if let Some(reason) = calls.ended {
            return Err(reason);
        }
        // Ids come round after 4 billion calls; one that is still waiting by then keeps its own, and 0 means
        // none.
        let mut stream = calls.last_stream.wrapping_add(1);
        while stream == 0 || calls.waiting.contains_key(&stream) {
            stream = stream.wrapping_add(1);
        }
        calls.last_stream = stream;
        calls.waiting.insert(stream, waiter.clone());
        Ok(stream)
    }

    /// Gives an answer to its call; false when nobody waits for it.
    fn answer(&self, stream: u32, answer: Result<Bytes, Status>) -> bool {
        self.leave(stream).is_some_and(|waiter| {
            waiter.wake(Outcome::Answer(answer));
            true
        })
    }

    /// Closes the connection and fails every call that waits.
    fn end(&self, reason: CloseReason) {
        let reason = self.link.close(reason);
        let mut calls = self.lock();
        calls.ended = Some(reason);
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        for waiter in waiting.into_values() {
            waiter.wake(Outcome::Ended(reason));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("nothing panics while it holds the calls")
    }
}

/// How a wait ended.
#[derive(Debug)]
enum Outcome {
    Answer(Result<Bytes, Status>),
    Ended(CloseReason),
}

/// Where one call waits.
#[derive(Debug, Default)]
struct Waiter {
    outcome: Mutex<Option<Outcome>>,
    ready: Condvar,
}

impl Waiter {
    fn wake(&self, outcome: Outcome) {
        *self.lock() = Some(outcome);
        self.ready.notify_one();
    }

    /// The outcome, or nothing when the deadline passes first.
    fn wait(&self, deadline: Instant) -> Option<Outcome> {
        let mut outcome = self.lock();
        loop {
            if outcome.is_some() {
                return outcome.take();
            }
            let (guard, expired) = wait_until(&self.ready, outcome, Some(deadline));
            outcome = guard;
            if expired {
                return outcome.take();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().expect("nothing panics while it holds an outcome")
    }
}
