//! The network: TCP connections over links with latency, loss, and cuts.
//!
//! A connection is two ends. What an end sends arrives at the other in order, each segment after the link's latency; a lost one later, as
//! TCP would send it again. What arrives over a cut link, or at a machine without power, waits with everything behind it until the link is
//! mended, and some time more, as TCP's pauses between attempts grow. Connections do not wait for each other.
//!
//! A machine that lost its power knows nothing of its connections afterwards, and answers what still arrives for them with a reset; until
//! then the other side notices nothing.

use super::address::{Address, Port};
use super::{HostId, ObjectId, State};
use crate::trace::{Event, Passage, SegmentKind};
use squall_fiber::{Wake, Waker};
use squall_hook::Errno;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

pub(crate) type ConnectionId = u64;

/// How many bytes may be under way, or unread, in one direction.
const WINDOW_BYTES: usize = 256 << 10;
/// TCP's first pause before it sends something again, and before a connection is asked for again.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// A mended link has everything delivered after this at the latest.
const RESUME_MAX: Duration = Duration::from_secs(2);

/// One direction between two hosts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    /// What a segment typically takes.
    pub(crate) latency: Duration,
    /// The probability that a segment has to be sent again.
    pub(crate) loss: f64,
}

#[derive(Debug)]
pub(crate) enum Segment {
    /// Asks for a connection.
    Open,
    Accept,
    Data(Vec<u8>),
    Finish,
    Reset,
}

impl Segment {
    fn kind(&self) -> SegmentKind {
        match self {
            Segment::Open => SegmentKind::Open,
            Segment::Accept => SegmentKind::Accept,
            Segment::Data(_) => SegmentKind::Data,
            Segment::Finish => SegmentKind::Finish,
            Segment::Reset => SegmentKind::Reset,
        }
    }

    fn bytes(&self) -> u32 {
        if let Segment::Data(bytes) = self { bytes.len() as u32 } else { 0 }
    }
}

/// One side of a connection.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) host: HostId,
    /// Which of the host's lives it belongs to.
    boot: u32,
    pub(crate) address: Address,
    /// Bytes can be sent and received.
    pub(crate) open: bool,
    /// No program has it any more.
    closed: bool,
    /// What has arrived and was not read.
    pub(crate) unread: VecDeque<u8>,
    /// The other side sends no more.
    pub(crate) finished: bool,
    /// This side sends no more.
    pub(crate) sent_finish: bool,
    /// This side reads no more.
    pub(crate) deaf: bool,
    /// What a call is told next.
    pub(crate) error: Option<i32>,
    /// The connection has ended by a reset.
    pub(crate) broken: bool,
    /// Bytes that this side has sent and the other has not read.
    underway: usize,
    /// Nothing that this side sends may arrive before.
    next_arrival: u64,
    /// What could not be delivered *to* this side, and since when.
    stalled: VecDeque<Segment>,
    stalled_since: u64,
    pub(crate) waiters: Vec<Waker>,
}

impl End {
    fn new(host: HostId, boot: u32, address: Address) -> Self {
        Self {
            host,
            boot,
            address,
            open: false,
            closed: false,
            unread: VecDeque::new(),
            finished: false,
            sent_finish: false,
            deaf: false,
            error: None,
            broken: false,
            underway: 0,
            next_arrival: 0,
            stalled: VecDeque::new(),
            stalled_since: 0,
            waiters: Vec::new(),
        }
    }

    pub(crate) fn room(&self) -> usize {
        WINDOW_BYTES.saturating_sub(self.underway)
    }

    pub(crate) fn wake(&mut self) {
        for waiter in self.waiters.drain(..) {
            waiter.wake(Wake::Ready);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    /// The one that asked for it, and the one that was asked.
    pub(crate) ends: [End; 2],
    /// What was asked for.
    port: Port,
    /// Segments in the event queue.
    in_flight: u32,
}

/// A socket that waits for connections.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) backlog: VecDeque<ConnectionId>,
    pub(crate) limit: usize,
    pub(crate) waiters: Vec<Waker>,
}

impl State {
    pub(crate) fn link(&self, from: HostId, to: HostId) -> Link {
        if from == to {
            return Link { cut: false, latency: Duration::from_micros(30), loss: 0.0 };
        }
        self.links[from * self.hosts.len() + to]
    }

    pub(crate) fn end(&mut self, connection: ConnectionId, side: usize) -> Option<&mut End> {
        Some(&mut self.connections.get_mut(&connection)?.ends[side])
    }

    /// Asks for a connection from a host to an address.
    pub(crate) fn open_connection(&mut self, from: HostId, address: Address) -> Result<ConnectionId, Errno> {
        let (to, port, own) = match &address {
            Address::Inet(inet) => {
                let own_ip = if inet.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { self.hosts[from].ip };
                let to = match inet.ip().is_loopback() {
                    true => Some(from),
                    false => self.hosts.iter().position(|host| host.ip == *inet.ip()),
                };
                let own = Address::Inet(SocketAddrV4::new(own_ip, self.free_port(from, Port::Tcp)));
                (to.ok_or(Errno(libc::EHOSTUNREACH))?, Port::Tcp(inet.port()), own)
            }
            Address::Unix(path) => {
                (from, Port::Unix(self.hosts[from].disk.find(path)?), Address::unbound(true))
            }
        };
        let id = self.add_connection([(from, own), (to, address)], port);
        self.transmit(id, 0, Segment::Open);
        Ok(id)
    }

    fn add_connection(&mut self, ends: [(HostId, Address); 2], port: Port) -> ConnectionId {
        let id = self.next_connection;
        self.next_connection += 1;
        let ends = ends.map(|(host, address)| End::new(host, self.hosts[host].boot, address));
        self.connections.insert(id, Connection { ends, port, in_flight: 0 });
        id
    }

    /// A connection of a machine with itself that nobody had to accept.
    pub(crate) fn connect_within(&mut self, host: HostId) -> ConnectionId {
        let end = || (host, Address::unbound(true));
        let id = self.add_connection([end(), end()], Port::Unnamed(0));
        for side in 0..2 {
            if let Some(end) = self.end(id, side) {
                end.open = true;
            }
        }
        id
    }

    /// A port that nobody has, the next of a range.
    pub(crate) fn free_port(&mut self, host: HostId, kind: fn(u16) -> Port) -> u16 {
        loop {
            let port = self.hosts[host].next_port;
            self.hosts[host].next_port = if port == u16::MAX { 32_768 } else { port + 1 };
            if !self.listeners.contains_key(&(host, kind(port))) {
                return port;
            }
        }
    }

    /// Sends a segment from one side to the other.
    fn transmit(&mut self, id: ConnectionId, side: usize, segment: Segment) {
        let Some(connection) = self.connections.get(&id) else { return };
        let link = self.link(connection.ends[side].host, connection.ends[1 - side].host);
        let mut latency = self.random.network.skewed(link.latency);
        let mut pause = RETRANSMIT;
        while link.loss > 0.0 && self.random.network.chance(link.loss) && pause < RESUME_MAX {
            latency += pause;
            pause *= 2;
        }
        self.transmit_after(id, side, segment, latency);
    }

    fn transmit_after(&mut self, id: ConnectionId, side: usize, segment: Segment, latency: Duration) {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let end = &mut connection.ends[side];
        let arrival = (now + latency.as_nanos() as u64).max(end.next_arrival);
        end.next_arrival = arrival + 1;
        connection.in_flight += 1;
        let (kind, bytes) = (segment.kind(), segment.bytes());
        self.record_world(Event::Segment { connection: id, to: 1 - side, what: Passage::Sent, kind, bytes });
        self.schedule(arrival, super::Happening::Arrival { connection: id, to: 1 - side, segment });
    }

    /// A segment has come to the end of its way.
    pub(crate) fn arrive(&mut self, id: ConnectionId, to: usize, segment: Segment) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.in_flight -= 1;
        let (source, target) = (connection.ends[1 - to].host, connection.ends[to].host);
        let held_up = self.link(source, target).cut || !self.hosts[target].up;
        let now = self.now;
        let Some(end) = self.end(id, to) else { return };
        let stalls = held_up || !end.stalled.is_empty();
        let what = if stalls { Passage::Stalled } else { Passage::Arrived };
        let event = Event::Segment { connection: id, to, what, kind: segment.kind(), bytes: segment.bytes() };
        if stalls {
            if end.stalled.is_empty() {
                end.stalled_since = now;
            }
            end.stalled.push_back(segment);
            self.record_world(event);
            return;
        }
        self.record_world(event);
        self.deliver(id, to, segment);
        self.forget_if_over(id);
    }

    fn deliver(&mut self, id: ConnectionId, to: usize, segment: Segment) {
        let Some(connection) = self.connections.get(&id) else { return };
        let end = &connection.ends[to];
        let is_gone = end.closed || end.boot != self.hosts[end.host].boot;
        match segment {
            // A machine that was started again may well be listening.
            Segment::Open => self.welcome(id),
            Segment::Reset => self.break_end(id, to),
            _ if is_gone => self.transmit(id, to, Segment::Reset),
            Segment::Accept => {
                let Some(end) = self.end(id, to) else { return };
                end.open = true;
                end.wake();
            }
            Segment::Data(bytes) => {
                let Some(end) = self.end(id, to) else { return };
                // What nobody will read needs no room.
                if !end.deaf {
                    end.unread.extend(bytes);
                }
                end.wake();
            }
            Segment::Finish => {
                let Some(end) = self.end(id, to) else { return };
                end.finished = true;
                end.wake();
            }
        }
    }

    /// A host is asked for a connection.
    fn welcome(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (host, port) = (connection.ends[1].host, connection.port);
        let boot = self.hosts[host].boot;
        let object = self.listeners.get(&(host, port)).copied();
        let Some(listener) = object.and_then(|object| self.listener(object)) else {
            return self.transmit(id, 1, Segment::Reset);
        };
        if listener.backlog.len() >= listener.limit {
            // The kernel drops it, and the other side asks again.
            let retry = Duration::from_secs(1);
            return self.transmit_after(id, 0, Segment::Open, retry);
        }
        listener.backlog.push_back(id);
        for waiter in listener.waiters.drain(..) {
            waiter.wake(Wake::Ready);
        }
        let Some(end) = self.end(id, 1) else { return };
        (end.open, end.closed, end.boot) = (true, false, boot);
        self.transmit(id, 1, Segment::Accept);
    }

    fn break_end(&mut self, id: ConnectionId, side: usize) {
        let Some(end) = self.end(id, side) else { return };
        let errno = if end.open { libc::ECONNRESET } else { libc::ECONNREFUSED };
        end.error = Some(errno);
        end.broken = true;
        end.open = false;
        end.wake();
    }

    /// Sends as much of the bytes as there is room for; returns how much.
    pub(crate) fn send_bytes(&mut self, id: ConnectionId, side: usize, bytes: &[u8]) -> usize {
        let Some(end) = self.end(id, side) else { return 0 };
        let count = end.room().min(bytes.len());
        if count > 0 {
            end.underway += count;
            self.transmit(id, side, Segment::Data(bytes[..count].to_vec()));
        }
        count
    }

    /// The program has read so many bytes; the other side may send more.
    pub(crate) fn bytes_read(&mut self, id: ConnectionId, side: usize, count: usize) {
        if let Some(other) = self.end(id, 1 - side) {
            other.underway = other.underway.saturating_sub(count);
            other.wake();
        }
    }

    pub(crate) fn finish_sending(&mut self, id: ConnectionId, side: usize) {
        let Some(end) = self.end(id, side) else { return };
        if !end.sent_finish && !end.broken {
            end.sent_finish = true;
            end.wake();
            self.transmit(id, side, Segment::Finish);
        }
    }

    /// The last descriptor of a side was closed.
    pub(crate) fn close_end(&mut self, id: ConnectionId, side: usize, abruptly: bool) {
        let Some(end) = self.end(id, side) else { return };
        if end.closed {
            // Its machine has lost the power: nobody is told.
            return;
        }
        end.closed = true;
        end.wake();
        if end.broken {
        } else if abruptly || !end.unread.is_empty() || !end.open {
            end.broken = true;
            self.transmit(id, side, Segment::Reset);
        } else {
            self.finish_sending(id, side);
        }
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: ConnectionId) {
        let is_over = self.connections.get(&id).is_some_and(|connection| {
            let over = |end: &End| end.closed && end.stalled.is_empty();
            connection.in_flight == 0 && connection.ends.iter().all(over)
        });
        if is_over {
            self.connections.remove(&id);
        }
    }

    /// The power of a host has gone, and with it what it knew of its connections.
    pub(crate) fn forget_connections_of(&mut self, host: HostId) {
        self.listeners.retain(|(of, _), _| *of != host);
        for connection in self.connections.values_mut() {
            for end in connection.ends.iter_mut().filter(|end| end.host == host) {
                (end.closed, end.open) = (true, false);
                end.unread.clear();
            }
        }
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.forget_if_over(id));
    }

    /// Has what waits for the way between two hosts to be free sent again.
    pub(crate) fn resume_traffic(&mut self, is_mended: impl Fn(HostId, HostId) -> bool) {
        let mended: Vec<(ConnectionId, usize)> = self
            .connections
            .iter()
            .flat_map(|(id, connection)| [(*id, 0, connection), (*id, 1, connection)])
            .filter(|(_, to, connection)| {
                let [source, target] = [&connection.ends[1 - to], &connection.ends[*to]];
                !target.stalled.is_empty() && is_mended(source.host, target.host)
            })
            .map(|(id, to, _)| (id, to))
            .collect();
        for (id, to) in mended {
            let now = self.now;
            let Some(end) = self.end(id, to) else { continue };
            let outage = Duration::from_nanos(now - end.stalled_since).min(RESUME_MAX);
            let pause = self.random.network.duration(Duration::ZERO..outage);
            self.schedule(now + pause.as_nanos() as u64, super::Happening::Resumption { connection: id, to });
        }
    }

    /// What has waited is delivered, if the way is still free.
    pub(crate) fn resume(&mut self, id: ConnectionId, to: usize) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (source, target) = (connection.ends[1 - to].host, connection.ends[to].host);
        if self.link(source, target).cut || !self.hosts[target].up {
            return;
        }
        let Some(end) = self.end(id, to) else { return };
        for segment in core::mem::take(&mut end.stalled) {
            let (kind, bytes) = (segment.kind(), segment.bytes());
            self.record_world(Event::Segment { connection: id, to, what: Passage::Arrived, kind, bytes });
            self.deliver(id, to, segment);
        }
        self.forget_if_over(id);
    }

    /// The listener behind a socket, if it is one.
    pub(crate) fn listener(&mut self, object: ObjectId) -> Option<&mut Listener> {
        match &mut self.objects.get_mut(object)?.kind {
            super::Kind::Listener { listener, .. } => Some(listener),
            _ => None,
        }
    }
}
