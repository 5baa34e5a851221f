//! What the scenarios share: identities, a handler with a few useful methods, and a peer that writes raw
//! bytes.

#![allow(dead_code, reason = "each scenario uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use squall_rpc::frame::{FrameReader, Header, Kind};
use squall_rpc::proto::rpc::Hello;
use squall_rpc::{
    CallContext, Client, ClientConfig, Handler, LocalIdentity, Method, Server, ServerConfig, Status,
    StatusCode,
};

/// Only ever reached when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const CLUSTER: [u8; 16] = [9; 16];

pub fn node(node_id: u64) -> LocalIdentity {
    LocalIdentity { cluster_id: CLUSTER, node_id }
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Answers the body.
pub const ECHO: Method = Method(100);
/// Waits until [`TestHandler::open`] is called, then answers the body.
pub const WAIT: Method = Method(101);
/// Panics.
pub const PANIC: Method = Method(102);
/// Answers with the milliseconds left until the deadline, as text.
pub const TIME_LEFT: Method = Method(103);
/// Answers with as many bytes as the body says.
pub const BYTES: Method = Method(104);

#[derive(Default)]
pub struct TestHandler {
    gate: Mutex<bool>,
    opened: Condvar,
    /// Calls that wait at the gate or have waited there.
    pub waited: AtomicUsize,
    pub notified: Mutex<Vec<Bytes>>,
}

impl TestHandler {
    pub fn new() -> Arc<TestHandler> {
        Arc::default()
    }

    /// Lets everything that waits, and everything later, through.
    pub fn open(&self) {
        *self.gate.lock().expect("gate") = true;
        self.opened.notify_all();
    }

    fn wait_until_open(&self) {
        self.waited.fetch_add(1, Ordering::SeqCst);
        let mut gate = self.gate.lock().expect("gate");
        while !*gate {
            gate = self.opened.wait(gate).expect("gate");
        }
    }
}

impl Handler for TestHandler {
    fn call(&self, context: &CallContext, body: Bytes) -> Result<Bytes, Status> {
        match context.method {
            ECHO => Ok(body),
            WAIT => {
                self.wait_until_open();
                Ok(body)
            }
            PANIC => panic!("as asked"),
            TIME_LEFT => {
                let deadline =
                    context.deadline.ok_or_else(|| Status::new(StatusCode::BadRequest, "no deadline"))?;
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                Ok(Bytes::from(left.as_millis().to_string()))
            }
            BYTES => {
                let text = String::from_utf8_lossy(&body);
                let n: usize = text.parse().map_err(|_| Status::new(StatusCode::BadRequest, "no number"))?;
                Ok(Bytes::from(vec![b'x'; n]))
            }
            other => Err(Status::new(StatusCode::Unimplemented, other.to_string())),
        }
    }

    fn notify(&self, context: &CallContext, body: Bytes) {
        match context.method {
            WAIT => self.wait_until_open(),
            PANIC => panic!("as asked"),
            _ => {}
        }
        self.notified.lock().expect("notified").push(body);
    }
}

pub fn serve(config: ServerConfig) -> (Server, Arc<TestHandler>) {
    let handler = TestHandler::new();
    let server = Server::bind(loopback(), config, node(1), handler.clone()).expect("a free port");
    (server, handler)
}

pub fn connect(server: &Server) -> Client {
    Client::new(server.local_addr(), ClientConfig::default(), node(2)).expect("valid settings")
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn frame(header: Header, body: &[u8]) -> Vec<u8> {
    [&header.encode(), body].concat()
}

pub fn hello_of(identity: LocalIdentity) -> Vec<u8> {
    let hello = Hello {
        cluster_id: Bytes::copy_from_slice(&identity.cluster_id),
        node_id: identity.node_id,
        protocol_version: 1,
        protocol_version_min: 1,
        idle_timeout_ms: 0,
    };
    let body = hello.encode_to_vec();
    frame(Header::new(Kind::Hello, &body), &body)
}

/// A peer that says what the test wants, however wrong.
pub struct RawPeer {
    pub stream: TcpStream,
    reader: FrameReader<TcpStream>,
}

impl RawPeer {
    pub fn new(stream: TcpStream) -> RawPeer {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let reader = FrameReader::new(stream.try_clone().expect("clone"), 1 << 20);
        RawPeer { stream, reader }
    }

    pub fn connect(addr: SocketAddr) -> RawPeer {
        RawPeer::new(TcpStream::connect(addr).expect("connect"))
    }

    /// Connected and admitted.
    pub fn admitted(addr: SocketAddr) -> RawPeer {
        let mut peer = RawPeer::connect(addr);
        peer.send(&hello_of(node(3)));
        let (header, _) = peer.receive();
        assert_eq!(header.kind, Kind::Hello);
        peer
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write");
    }

    pub fn receive(&mut self) -> (Header, Bytes) {
        let header = self.reader.read_header().expect("a frame");
        let body = self.reader.read_body(&header).expect("its body");
        (header, body)
    }

    /// Waits until the other side has closed the connection.
    pub fn wait_closed(&mut self) {
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                    return;
                }
            }
        }
    }
}
