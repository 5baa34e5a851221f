//! The serving side: accepts connections, reads requests, has a [`Handler`] answer them.
//!
//! Owns the listener, an activity per connection and one per request, and the limits that keep one peer from
//! taking everything. Does not know what any method means.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;

use crate::config::ServerConfig;
use crate::error::{CloseReason, RpcError, Status, StatusCode};
use crate::frame::{FrameReader, HEADER_BYTES, Header, Kind};
use crate::handshake::{self, LocalIdentity, Opening, PeerIdentity, Refusal};
use crate::link::{Link, Outgoing, wait_until};
use crate::method::Method;
use crate::metrics::{RpcMetrics, add, count};
use crate::proto::rpc::Goaway;
use crate::proto::rpc::goaway::Code;
use crate::spawn::spawn;
use crate::stream::TimedStream;

/// Beyond `connections_max`, so many connections get a polite refusal at once; more are dropped.
const REFUSALS_MAX: usize = 64;
/// Pause after a failed accept: out of descriptors, it would fail again at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long an attempt to wake the accepting activity may take, and the pause before the next.
const WAKE_TIMEOUT: Duration = Duration::from_millis(50);

/// What a request comes with.
#[derive(Debug, Clone, Copy)]
pub struct CallContext {
    /// Who asks.
    pub peer: PeerIdentity,
    /// What for.
    pub method: Method,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Follows the request through the cluster; 0: not traced.
    pub trace_id: u64,
}

/// What a server does with what it is asked. Shared by all its connections.
pub trait Handler: Send + Sync {
    /// Whether to talk to this peer, which is of the right cluster and version; asked once per connection.
    /// The error is told to the peer's operator.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, peer: &PeerIdentity) -> Result<(), String> {
        let _ = peer;
        Ok(())
    }

    /// Serves a request, in an activity of its own: it may block, and should give up at the deadline, because
    /// [`Server::shutdown`] waits for it. A panic becomes [`StatusCode::Failed`].
    ///
    /// # Errors
    /// What the caller is told. The code promises whether anything was executed.
    fn call(&self, context: &CallContext, body: Bytes) -> Result<Bytes, Status>;

    /// Takes a one-way message. Those of one connection come one by one, in the order they were sent, and
    /// nothing else is read from it meanwhile: be quick. A panic loses the message.
    fn notify(&self, context: &CallContext, body: Bytes);
}

/// A listening server. Dropping it stops it without waiting; [`Server::shutdown`] does it in order.
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    addr: SocketAddr,
    config: ServerConfig,
    local: LocalIdentity,
    handler: Arc<dyn Handler>,
    state: Mutex<State>,
    /// Notified when a connection's activity ends and when the server stops.
    changed: Condvar,
}

struct State {
    stopping: bool,
    /// The accepting activity runs, and the port is taken.
    accepting: bool,
    /// Every connection whose activity runs.
    connections: BTreeMap<u64, Arc<Connection>>,
    connections_ever: u64,
}

impl Server {
    /// Listens on `addr` (port 0: any free one) and serves until it is shut down.
    ///
    /// # Errors
    /// [`RpcError::BadConfig`], [`RpcError::Bind`].
    pub fn bind(
        addr: SocketAddr,
        config: ServerConfig,
        local: LocalIdentity,
        handler: Arc<dyn Handler>,
    ) -> Result<Server, RpcError> {
        config.validate()?;
        let bind_error = |error: io::Error| RpcError::Bind { addr, kind: error.kind() };
        let listener = TcpListener::bind(addr).map_err(bind_error)?;
        let addr = listener.local_addr().map_err(bind_error)?;
        let state =
            State { stopping: false, accepting: true, connections: BTreeMap::new(), connections_ever: 0 };
        let shared = Arc::new(Shared {
            addr,
            config,
            local,
            handler,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let accepting = {
            let shared = shared.clone();
            move || shared.accept(listener)
        };
        spawn("rpc-accept", accepting).map_err(bind_error)?;
        Ok(Server { shared })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// What happened so far.
    pub fn metrics(&self) -> &RpcMetrics {
        &self.shared.config.metrics
    }

    /// Connections being served now.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }

    /// Stops: accepts no more, tells every peer to go elsewhere, refuses new requests. A peer closes its
    /// connection when its requests in progress are answered; what is left after `drain_timeout` is cut off.
    /// A second call waits for the first one's work.
    ///
    /// # Blocking
    /// Until every handler has returned and every activity of this server has ended.
    pub fn shutdown(&self) {
        let connections = self.shared.stop();
        for connection in &connections {
            connection.say_goodbye();
        }
        let deadline = Instant::now() + self.shared.config.drain_timeout;
        self.shared.stop_accepting();
        self.shared.wait_ended(Some(deadline));
        for connection in &connections {
            connection.link.close(CloseReason::Local);
        }
        self.shared.wait_ended(None);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for connection in self.shared.stop() {
            connection.link.close(CloseReason::Local);
        }
        self.shared.wake_accept();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the server's state")
    }

    /// From now on no connection is added; returns those that are there.
    fn stop(&self) -> Vec<Arc<Connection>> {
        let mut state = self.lock();
        state.stopping = true;
        let connections = state.connections.values().cloned().collect();
        drop(state);
        self.changed.notify_all();
        connections
    }

    /// # Blocking
    /// Until the accepting activity has ended.
    fn stop_accepting(&self) {
        let mut state = self.lock();
        while state.accepting {
            drop(state);
            self.wake_accept();
            state = self.lock();
            if state.accepting {
                state = wait_until(&self.changed, state, Some(Instant::now() + WAKE_TIMEOUT)).0;
            }
        }
    }

    /// # Blocking
    /// Until every connection has ended or the deadline passes.
    fn wait_ended(&self, deadline: Option<Instant>) {
        let mut state = self.lock();
        let mut expired = false;
        while !state.connections.is_empty() && !expired {
            (state, expired) = wait_until(&self.changed, state, deadline);
        }
    }

    /// Makes a blocked accept return, by the one means that std has for it: a connection.
    fn wake_accept(&self) {
        let ip = match self.addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        // When it fails, accept was woken by somebody else, or the next attempt will do.
        let _ = TcpStream::connect_timeout(&SocketAddr::new(ip, self.addr.port()), WAKE_TIMEOUT);
    }

    /// The accepting activity.
    fn accept(self: &Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = listener.accept();
            let mut state = self.lock();
            if state.stopping {
                break;
            }
            match accepted {
                Ok((stream, addr)) => self.start(&mut state, stream, addr),
                Err(error) => {
                    log::warn!("rpc: cannot accept a connection on {}: {error}", self.addr);
                    let _ = wait_until(&self.changed, state, Some(Instant::now() + ACCEPT_RETRY));
                }
            }
        }
        // The port first: whoever sees the end of `accepting` may bind it again.
        drop(listener);
        self.lock().accepting = false;
        self.changed.notify_all();
    }

    fn start(self: &Arc<Self>, state: &mut State, stream: TcpStream, addr: SocketAddr) {
        let config = &self.config;
        let present = state.connections.len();
        if present >= config.connections_max.saturating_add(REFUSALS_MAX) {
            config.metrics.count_closed(CloseReason::PeerRefused(Code::TooManyConnections));
            log::debug!("rpc: dropping a connection from {addr}: {present} are open");
            return;
        }
        let stream = match TimedStream::new(stream, config.idle_timeout, config.write_stall_timeout) {
            Ok(stream) => stream,
            Err(reason) => {
                config.metrics.count_closed(reason);
                return;
            }
        };
        let connection = Arc::new(Connection {
            addr,
            link: Link::new(config.queue_bytes_max),
            in_flight: InFlight::default(),
            greeted: AtomicBool::new(false),
            going_away: AtomicBool::new(false),
        });
        connection.link.attach(stream.clone());
        let id = state.connections_ever;
        let activity = {
            let (shared, connection) = (self.clone(), connection.clone());
            let over_limit = present >= config.connections_max;
            move || shared.run(id, &connection, stream, over_limit)
        };
        match spawn("rpc-server", activity) {
            Ok(_) => {
                state.connections_ever += 1;
                state.connections.insert(id, connection);
            }
            Err(error) => {
                config.metrics.count_closed(CloseReason::Io(error.kind()));
                log::warn!("rpc: cannot serve a connection from {addr}: {error}");
            }
        }
    }

    /// A connection's activity.
    fn run(self: &Arc<Self>, id: u64, connection: &Arc<Connection>, stream: TimedStream, over_limit: bool) {
        let end = self.serve(connection, stream, over_limit);
        let reason = connection.link.close(end);
        self.config.metrics.count_closed(reason);
        let level = match reason {
            CloseReason::Local | CloseReason::PeerClosed => log::Level::Debug,
            _ if reason.is_misbehaviour() => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(level, "rpc: connection from {} ended: {reason}", connection.addr);
        drop(connection.in_flight.wait_for(|count| count.requests == 0));
        self.lock().connections.remove(&id);
        self.changed.notify_all();
    }

    fn serve(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        stream: TimedStream,
        over_limit: bool,
    ) -> CloseReason {
        let mut reader = FrameReader::new(stream.clone(), self.config.body_bytes_max);
        let (peer, heartbeat_interval) = match self.shake_hands(&stream, &mut reader, connection, over_limit)
        {
            Ok(admitted) => admitted,
            Err(reason) => return reason,
        };
        count(&self.config.metrics.connections_opened);
        let writer = {
            let (connection, metrics) = (connection.clone(), self.config.metrics.clone());
            move || connection.link.run_writer(&stream, heartbeat_interval, &metrics)
        };
        let writer = match spawn("rpc-server-writer", writer) {
            Ok(writer) => writer,
            Err(error) => return CloseReason::Io(error.kind()),
        };
        let reason = connection.link.close(self.read_requests(connection, peer, &mut reader));
        writer.join().expect("the writer does not panic");
        reason
    }

    fn shake_hands(
        &self,
        stream: &TimedStream,
        reader: &mut FrameReader<TimedStream>,
        connection: &Connection,
        over_limit: bool,
    ) -> Result<(PeerIdentity, Duration), CloseReason> {
        let deadline = Instant::now() + self.config.handshake_timeout;
        let hello = match handshake::receive_opening(reader, deadline, self.config.body_bytes_max)? {
            Opening::Hello(hello) => hello,
            Opening::Goaway(goaway) => return Err(CloseReason::Refused(goaway.code())),
        };
        let judged = handshake::judge(&self.local, &hello, connection.addr).and_then(|peer| {
            if over_limit {
                let message =
                    format!("{} connections are open (connections_max)", self.config.connections_max);
                return Err(Refusal::new(Code::TooManyConnections, message));
            }
            catch_unwind(AssertUnwindSafe(|| self.handler.admit(&peer)))
                .unwrap_or_else(|_| {
                    count(&self.config.metrics.handler_panics);
                    Err("admission failed".into())
                })
                .map_err(|message| Refusal::new(Code::NotAdmitted, message))?;
            Ok(peer)
        });
        match judged {
            Ok(peer) => {
                connection.greeted.store(true, Ordering::Relaxed);
                handshake::send_hello(stream, &self.local, self.config.idle_timeout)?;
                Ok((peer, handshake::heartbeat_interval(&hello)))
            }
            Err(refusal) => {
                log::warn!("rpc: refusing {}: {}", connection.addr, refusal.message);
                handshake::send_goaway(stream, &refusal)?;
                Err(CloseReason::PeerRefused(refusal.code))
            }
        }
    }

    fn read_requests(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        peer: PeerIdentity,
        reader: &mut FrameReader<TimedStream>,
    ) -> CloseReason {
        loop {
            if let Err(reason) = self.read_request(connection, peer, reader) {
                return reason;
            }
        }
    }

    fn read_request(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        peer: PeerIdentity,
        reader: &mut FrameReader<TimedStream>,
    ) -> Result<(), CloseReason> {
        let metrics = &self.config.metrics;
        let header = reader.read_header()?;
        // Room first, the body after: what is not let in stays in the network's buffers.
        let permit = (header.kind == Kind::Request)
            .then(|| Permit::wait_for(connection, header.body_bytes as usize, &self.config));
        let body = reader.read_body(&header)?;
        count(&metrics.frames_in);
        add(&metrics.bytes_in, HEADER_BYTES + body.len());
        let deadline = (header.deadline_ms > 0)
            .then(|| Instant::now() + Duration::from_millis(header.deadline_ms.into()));
        let context = CallContext { peer, method: header.method, deadline, trace_id: header.trace_id };
        match (header.kind, permit) {
            (Kind::Request, Some(permit)) => self.start_request(permit, header, context, body),
            (Kind::OneWay, _) => {
                if catch_unwind(AssertUnwindSafe(|| self.handler.notify(&context, body))).is_err() {
                    count(&metrics.handler_panics);
                }
            }
            (Kind::Heartbeat, _) => {}
            (Kind::Goaway, _) => {
                let goaway = Goaway::decode(body).map_err(|_| CloseReason::BadMessage(header.kind))?;
                return Err(CloseReason::Refused(goaway.code()));
            }
            (kind, _) => return Err(CloseReason::UnexpectedFrame(kind)),
        }
        Ok(())
    }

    fn start_request(self: &Arc<Self>, permit: Permit, header: Header, context: CallContext, body: Bytes) {
        let connection = permit.connection.clone();
        if connection.going_away.load(Ordering::Relaxed) {
            let refusal = Status::new(StatusCode::ShuttingDown, "this node is shutting down");
            self.answer(&connection, header, Err(refusal));
            return;
        }
        let activity = {
            let shared = self.clone();
            move || {
                let result = shared.execute(&context, body);
                shared.answer(&permit.connection, header, result);
            }
        };
        if let Err(error) = spawn("rpc-request", activity) {
            let refusal = Status::new(StatusCode::Overloaded, format!("cannot start a request: {error}"));
            self.answer(&connection, header, Err(refusal));
        }
    }

    fn execute(&self, context: &CallContext, body: Bytes) -> Result<Bytes, Status> {
        if context.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Status::new(StatusCode::Expired, "the deadline passed before the request was begun"));
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.handler.call(context, body)));
        let limit = self.config.body_bytes_max;
        match result {
            Ok(Ok(answer)) if answer.len() > limit => {
                let message =
                    format!("answer of {} bytes, the limit is {limit} (body_bytes_max)", answer.len());
                Err(Status::new(StatusCode::Failed, message))
            }
            Ok(result) => result,
            Err(_) => {
                count(&self.config.metrics.handler_panics);
                Err(Status::new(StatusCode::Failed, "the handler panicked"))
            }
        }
    }

    /// Queues the answer, waiting for room: a peer that does not read its answers gets no more requests
    /// served.
    fn answer(&self, connection: &Connection, request: Header, result: Result<Bytes, Status>) {
        count(&self.config.metrics.requests_served);
        let (kind, body) = match result {
            Ok(body) => (Kind::Response, body),
            Err(status) => {
                count(&self.config.metrics.requests_failed);
                (Kind::Error, crate::proto::encode(&status.to_wire()))
            }
        };
        let header = Header {
            method: request.method,
            stream: request.stream,
            trace_id: request.trace_id,
            ..Header::new(kind, &body)
        };
        // Fails only when the connection is gone, and with it whoever waits for the answer.
        let _ = connection.link.push_wait(Outgoing::new(header, body, None), None);
    }
}

/// One connection from a peer.
struct Connection {
    addr: SocketAddr,
    link: Link,
    in_flight: InFlight,
    /// This side has said hello, or is about to: from then on the peer may send requests.
    greeted: AtomicBool,
    /// The peer has been told to go elsewhere; new requests are refused.
    going_away: AtomicBool,
}

impl Connection {
    fn say_goodbye(&self) {
        self.going_away.store(true, Ordering::Relaxed);
        if !self.greeted.load(Ordering::Relaxed) {
            // It cannot have asked for anything, so it need not be waited for.
            self.link.close(CloseReason::Local);
            return;
        }
        let goaway = handshake::goaway(&Refusal::new(Code::ShuttingDown, "this node is shutting down"));
        let body = crate::proto::encode(&goaway);
        let frame = Outgoing::new(Header::new(Kind::Goaway, &body), body, None);
        // A peer whose queue is full learns it from the end of the connection.
        let _ = self.link.push(frame);
    }
}

/// The requests of one connection that are being served.
#[derive(Default)]
struct InFlight {
    count: Mutex<InFlightCount>,
    changed: Condvar,
}

#[derive(Default)]
struct InFlightCount {
    requests: usize,
    bytes: usize,
    /// Whether anybody waits: notifying costs a system call even when nobody does.
    waiting: usize,
}

impl InFlight {
    /// # Blocking
    /// Until what is in flight is `acceptable`. That comes in any case, since handlers return.
    fn wait_for(&self, acceptable: impl Fn(&InFlightCount) -> bool) -> MutexGuard<'_, InFlightCount> {
        let mut count = self.lock();
        while !acceptable(&count) {
            count.waiting += 1;
            count = wait_until(&self.changed, count, None).0;
            count.waiting -= 1;
        }
        count
    }

    fn lock(&self) -> MutexGuard<'_, InFlightCount> {
        self.count.lock().expect("nothing panics while it holds the count")
    }
}

/// The right of one request to be served, given back when it is dropped.
struct Permit {
    connection: Arc<Connection>,
    bytes: usize,
}

impl Permit {
    /// # Blocking
    /// Until the connection's requests in flight leave room for one more.
    fn wait_for(connection: &Arc<Connection>, bytes: usize, config: &ServerConfig) -> Permit {
        let mut count = connection.in_flight.wait_for(|count| {
            // A request longer than the limit is let in alone; else it would wait for ever.
            let fits = count.requests == 0 || count.bytes.saturating_add(bytes) <= config.bytes_in_flight_max;
            count.requests < config.requests_in_flight_max && fits
        });
        count.requests += 1;
        count.bytes += bytes;
        drop(count);
        Permit { connection: connection.clone(), bytes }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut count = self.connection.in_flight.lock();
        count.requests -= 1;
        count.bytes -= self.bytes;
        if count.waiting > 0 {
            self.connection.in_flight.changed.notify_all();
        }
    }
}
