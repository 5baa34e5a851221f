//! Datagrams: UDP between hosts, and Unix sockets within one.
//!
//! A datagram of UDP takes its own way: it may come late, after one that was sent later, twice, or not at all, over a link that loses
//! something or is cut. Nobody is told. Those within a machine arrive, at once and in order.

use super::address::{Address, Port};
use super::{Happening, HostId, Kind, ObjectId, Queue, State, Stop};
use crate::trace::{Event, Passage, SegmentKind};
use squall_fiber::{Wake, Waker};
use squall_hook::Errno;
use std::collections::VecDeque;
use std::net::SocketAddrV4;

/// What waits to be read at most, beyond which more is dropped, or the sender of the same machine waits.
const INBOX_MAX: usize = 256;
/// A datagram's content at most, as IPv4 has it.
const BYTES_MAX: usize = 65_507;

/// A socket for datagrams.
#[derive(Debug)]
pub(crate) struct Datagrams {
    pub(crate) unix: bool,
    pub(crate) port: Option<Port>,
    pub(crate) address: Address,
    /// Where what is sent without an address goes, and from where alone something is taken.
    pub(crate) peer: Option<Destination>,
    pub(crate) inbox: VecDeque<(Address, Vec<u8>)>,
    pub(crate) waiters: Vec<Waker>,
}

/// Where a datagram goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) host: HostId,
    pub(crate) port: Port,
    pub(crate) address: Address,
}

impl Datagrams {
    pub(crate) fn new(unix: bool) -> Self {
        Self {
            unix,
            port: None,
            address: Address::unbound(unix),
            peer: None,
            inbox: VecDeque::new(),
            waiters: Vec::new(),
        }
    }
}

impl State {
    pub(crate) fn datagrams(&mut self, object: ObjectId) -> Option<&mut Datagrams> {
        match &mut self.objects.get_mut(object)?.kind {
            Kind::Datagrams(socket) => Some(socket),
            _ => None,
        }
    }

    /// Who has an address, seen from a host.
    pub(crate) fn destination(&self, from: HostId, address: Address) -> Result<Destination, Errno> {
        let (host, port) = match &address {
            Address::Inet(inet) if inet.ip().is_loopback() => (from, Port::Udp(inet.port())),
            Address::Inet(inet) => {
                let host = self.hosts.iter().position(|host| host.ip == *inet.ip());
                (host.ok_or(Errno(libc::ENETUNREACH))?, Port::Udp(inet.port()))
            }
            Address::Unix(path) => (from, Port::Unix(self.hosts[from].disk.find(path)?)),
        };
        Ok(Destination { host, port, address })
    }

    /// Sends a datagram from a socket on a host.
    pub(crate) fn send_datagram(
        &mut self,
        host: HostId,
        object: ObjectId,
        bytes: &[u8],
        to: Option<Destination>,
    ) -> Result<usize, Stop> {
        if bytes.len() > BYTES_MAX {
            return Err(Errno(libc::EMSGSIZE).into());
        }
        let Some(socket) = self.datagrams(object) else { return Err(Errno::NOTSOCK.into()) };
        let Some(to) = to.or_else(|| socket.peer.clone()) else {
            return Err(Errno(if socket.unix { libc::ENOTCONN } else { libc::EDESTADDRREQ }).into());
        };
        if socket.unix {
            let from = socket.address.clone();
            let target = self.listeners.get(&(to.host, to.port)).copied();
            let Some(inbox) = target.and_then(|target| self.datagrams(target)) else {
                return Err(Errno(libc::ECONNREFUSED).into());
            };
            if inbox.inbox.len() >= INBOX_MAX {
                return Err(target.map_or(Errno::AGAIN.into(), |target| Stop::Wait(Queue::Datagrams(target))));
            }
            inbox.inbox.push_back((from, bytes.to_vec()));
            inbox.waiters.drain(..).for_each(|waiter| {
                waiter.wake(Wake::Ready);
            });
            return Ok(bytes.len());
        }
        if socket.port.is_none() {
            self.name_datagrams(host, object, 0)?;
        }
        let link = self.link(host, to.host);
        let Some(Datagrams { address: Address::Inet(own), .. }) = self.datagrams(object) else {
            return Err(Errno::INVAL.into());
        };
        let own = *own;
        let loops = matches!(&to.address, Address::Inet(inet) if inet.ip().is_loopback());
        let ip = match own.ip() {
            ip if !ip.is_unspecified() => *ip,
            _ if loops => core::net::Ipv4Addr::LOCALHOST,
            _ => self.hosts[host].ip,
        };
        let from = SocketAddrV4::new(ip, own.port());
        let lost = link.cut || (link.loss > 0.0 && self.random.network.chance(link.loss));
        let copies = match lost {
            true => 0,
            false => 1 + usize::from(link.loss > 0.0 && self.random.network.chance(link.loss / 4.0)),
        };
        self.record_datagram(to.host, if lost { Passage::Lost } else { Passage::Sent }, bytes.len());
        for _ in 0..copies {
            let at = self.now + self.random.network.skewed(link.latency).as_nanos() as u64;
            let (to, port, bytes) = (to.host, to.port, bytes.to_vec());
            self.schedule(at, Happening::Datagram { from, to, port, bytes });
        }
        Ok(bytes.len())
    }

    /// A datagram has come to the end of its way.
    pub(crate) fn arrive_datagram(&mut self, from: SocketAddrV4, to: HostId, port: Port, bytes: Vec<u8>) {
        let object = self.listeners.get(&(to, port)).copied().filter(|_| self.hosts[to].up);
        let taken = object.and_then(|object| self.datagrams(object)).is_some_and(|socket| {
            let from = Address::Inet(from);
            let wanted = socket.peer.as_ref().is_none_or(|peer| peer.address == from);
            let takes = wanted && socket.inbox.len() < INBOX_MAX;
            if takes {
                socket.inbox.push_back((from, bytes.clone()));
                socket.waiters.drain(..).for_each(|waiter| {
                    waiter.wake(Wake::Ready);
                });
            }
            takes
        });
        self.record_datagram(to, if taken { Passage::Arrived } else { Passage::Lost }, bytes.len());
    }

    fn record_datagram(&mut self, to: HostId, what: Passage, bytes: usize) {
        let kind = SegmentKind::Datagram;
        self.record_world(Event::Segment { connection: u64::MAX, to, what, kind, bytes: bytes as u32 });
    }

    /// Gives a UDP socket a port; 0 for any.
    pub(crate) fn name_datagrams(&mut self, host: HostId, object: ObjectId, port: u16) -> Result<(), Errno> {
        let port = match port {
            0 => self.free_port(host, Port::Udp),
            port if self.listeners.contains_key(&(host, Port::Udp(port))) => {
                return Err(Errno(libc::EADDRINUSE));
            }
            port => port,
        };
        let Some(socket) = self.datagrams(object) else { return Err(Errno::NOTSOCK) };
        if let Address::Inet(address) = &mut socket.address {
            address.set_port(port);
        }
        socket.port = Some(Port::Udp(port));
        self.listeners.insert((host, Port::Udp(port)), object);
        Ok(())
    }
}
