//! The listener of the Redis protocol: one activity accepts, one serves each connection.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::clients::lock;
use super::{BacklogWriter, FrontEnd, protected_mode_refusal};

/// How long to wait after a failed accept: the usual cause, too many open files, does not pass at once.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long, and for how many bytes, a connection that the server ends is still read from.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long connections may take to end by themselves when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A running listener. Dropping it does not stop it; see [`RedisServer::stop`].
#[derive(Debug)]
pub struct RedisServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    accepting: bool,
    next: u64,
    connections: BTreeMap<u64, Arc<TcpStream>>,
}

impl RedisServer {
    /// Starts to accept connections on `listener`.
    ///
    /// # Errors
    /// If the listener has no address or no activity can be started.
    pub fn start(listener: TcpListener, front_end: Arc<FrontEnd>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        lock(&shared.state).accepting = true;
        let accepting = shared.clone();
        crate::spawn("redis-accept", move || {
            accept_all(&listener, &front_end, &accepting);
            // Closed before the end is told, so that nobody can connect after `stop`.
            drop(listener);
            lock(&accepting.state).accepting = false;
            accepting.changed.notify_all();
        })?;
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, ends all connections and waits until they have ended. Requests that have arrived are
    /// answered, except to a client that keeps sending, or does not read its answers, for more than five
    /// seconds.
    ///
    /// # Blocking
    /// For those seconds at most, and until the backend has answered what it was asked.
    pub fn stop(&self) {
        let mut state = lock(&self.shared.state);
        state.stopping = true;
        for stream in state.connections.values() {
            // Ends the wait for the next request. An error means that the connection is gone already.
            let _ = stream.shutdown(Shutdown::Read);
        }
        if state.accepting {
            // Ends the wait for the next connection.
            drop(state);
            let _ = TcpStream::connect_timeout(&self.wake_address(), Duration::from_secs(1));
            state = lock(&self.shared.state);
        }
        let busy = |state: &mut State| state.accepting || !state.connections.is_empty();
        let waited = self.shared.changed.wait_timeout_while(state, STOP_GRACE, busy);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        for stream in state.connections.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(self.shared.changed.wait_while(state, busy).unwrap_or_else(PoisonError::into_inner));
    }

    /// The listener's address as seen from this machine.
    fn wake_address(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }
}

fn accept_all(listener: &TcpListener, front_end: &Arc<FrontEnd>, shared: &Arc<Shared>) {
    let mut failing = false;
    loop {
        let accepted = listener.accept();
        if lock(&shared.state).stopping {
            return;
        }
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                accept(stream, peer, front_end, shared);
            }
            Err(error) => {
                // One line for a series of failures: they come in storms.
                if !failing {
                    log::warn!("accepting a Redis connection: {error}");
                }
                failing = true;
                std::thread::sleep(ACCEPT_RETRY);
            }
        }
    }
}

/// Starts to serve a connection, or refuses it with a message.
fn accept(stream: TcpStream, peer: SocketAddr, front_end: &Arc<FrontEnd>, shared: &Arc<Shared>) {
    let stream = Arc::new(stream);
    let id = {
        let mut state = lock(&shared.state);
        let id = state.next;
        state.next += 1;
        state.connections.insert(id, stream.clone());
        id
    };
    let connections = lock(&shared.state).connections.len();
    let options = front_end.options();
    let refusal = match protected_mode_refusal(peer.ip(), options.password.is_some()) {
        None if connections > options.connections_max => Some("-ERR max number of clients reached\r\n"),
        refusal => refusal,
    };
    let (front_end, ending) = (front_end.clone(), shared.clone());
    let serve = move || {
        let result = match refusal {
            Some(refusal) => (&*stream).write_all(refusal.as_bytes()),
            None => serve(&stream, peer, &front_end),
        };
        if let Err(error) = result {
            log::debug!("connection of Redis client {peer}: {error}");
        }
        linger(&stream);
        lock(&ending.state).connections.remove(&id);
        ending.changed.notify_all();
    };
    if let Err(error) = crate::spawn(format!("redis-{peer}"), serve) {
        log::warn!("no activity can be started for Redis client {peer}: {error}");
        lock(&shared.state).connections.remove(&id);
    }
}

fn serve(stream: &Arc<TcpStream>, peer: SocketAddr, front_end: &FrontEnd) -> io::Result<()> {
    // Replies are written in whole bursts, so waiting for more to send could only delay them.
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let mut writer = BacklogWriter::new(stream.clone(), front_end.options().output_bytes_max)?;
    let result = front_end.serve(&mut &**stream, &mut writer, peer, local);
    writer.finish();
    result
}

/// Ends a connection so that the last reply arrives: closing a socket with unread input resets the
/// connection, and a reset discards what the peer has not read yet, such as the error that explains it.
fn linger(stream: &TcpStream) {
    let give_up_at = Instant::now() + LINGER;
    let mut discarded = 0;
    let mut buffer = [0; 4096];
    // Errors mean that the connection is gone, which is what is wanted.
    let ended = stream.shutdown(Shutdown::Write).and_then(|()| stream.set_read_timeout(Some(LINGER)));
    while ended.is_ok() && discarded < LINGER_BYTES_MAX && Instant::now() < give_up_at {
        match (&mut &*stream).read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(received) => discarded += received,
        }
    }
}
