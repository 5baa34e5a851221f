//! The Redis front end over real sockets, with one state machine behind a mutex in place of a cluster.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use squall_kvserver::history::{Compacted, Filter, History, Page};
use squall_kvserver::machine::{KvMachine, MachineOptions, Proposal};
use squall_kvserver::resp::{
    Backend, BackendError, ClientSession, FrontEnd, FrontEndOptions, Limits, RedisServer, Reply, ServerInfo,
};
use squall_kvserver::session::SessionLimits;

/// Only keeps a broken test from hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// A whole Redis in one process: what a node does, without replication.
struct SingleNode(Mutex<KvMachine>, History);

impl Backend for SingleNode {
    fn execute(
        &self,
        _session: &mut ClientSession,
        batch: Vec<Vec<Bytes>>,
        read_only: bool,
    ) -> Result<Vec<Reply>, BackendError> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let mut machine = self.0.lock().unwrap();
        if read_only {
            return Ok(machine.query(now_ms, &batch));
        }
        let value_bytes_max = Limits::DEFAULT.value_bytes_max;
        let proposal = Proposal { session: None, now_ms, value_bytes_max, commands: batch };
        let result = machine.apply(&proposal.encode());
        self.1.record(machine.take_changes());
        result.map_err(|error| BackendError::Refused(error.to_string()))
    }

    fn changes(
        &self,
        seen: u64,
        filter: &Filter,
        count_max: usize,
        wait: Duration,
    ) -> Result<Page, Compacted> {
        self.1.read(seen, filter, count_max, wait)
    }

    fn info(&self) -> ServerInfo {
        ServerInfo { machine: self.0.lock().unwrap().stats(0), ..ServerInfo::default() }
    }
}

fn start(options: FrontEndOptions) -> RedisServer {
    let machine = KvMachine::new(MachineOptions { hash_key: 1, sessions: SessionLimits::DEFAULT });
    let front_end = FrontEnd::new(Arc::new(SingleNode(Mutex::new(machine), History::new(1 << 20))), options);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    RedisServer::start(listener, Arc::new(front_end)).unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `request` and checks that exactly `expected` comes back.
fn exchange(stream: &mut TcpStream, request: &[u8], expected: &str) {
    stream.write_all(request).unwrap();
    let mut received = vec![0; expected.len()];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(String::from_utf8_lossy(&received), expected);
}

/// Reads what is left until the server ends the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn what_one_client_writes_another_reads() {
    let server = start(FrontEndOptions::default());
    let (mut a, mut b) = (connect(server.address()), connect(server.address()));
    exchange(&mut a, b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nx\r\n\0y\r\n", "+OK\r\n");
    exchange(&mut b, b"get a\r\n", "$5\r\nx\r\n\0y\r\n");
    exchange(&mut b, b"set t 1 px 1\r\nset u 1 px 100000\r\n", "+OK\r\n+OK\r\n");
    std::thread::sleep(Duration::from_millis(5));
    exchange(&mut a, b"mget t u\r\nttl u\r\n", "*2\r\n$-1\r\n$1\r\n1\r\n:100\r\n");
    server.stop();
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let server = start(FrontEndOptions::default());
    let mut stream = connect(server.address());
    stream.set_nodelay(true).unwrap();
    for byte in b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n12\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    exchange(&mut stream, b"", "+OK\r\n:13\r\n");
    server.stop();
}

#[test]
fn clients_count_together() {
    let server = start(FrontEndOptions::default());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut stream = connect(server.address());
                let mut replies = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut last = 0;
                for _ in 0..20 {
                    stream.write_all(&b"incr n\r\n".repeat(10)).unwrap();
                    for reply in replies.by_ref().take(10) {
                        let count: u64 = reply.unwrap()[1..].parse().unwrap();
                        assert!(count > last, "{count} after {last}");
                        last = count;
                    }
                }
            });
        }
    });
    exchange(&mut connect(server.address()), b"get n\r\n", "$4\r\n3200\r\n");
    server.stop();
}

/// A client may write all of a long pipeline before it reads the first reply. Neither side may wait forever,
/// though the replies are far more than the sockets hold.
#[test]
fn a_pipeline_that_is_read_only_after_it_is_written() {
    const REQUESTS: usize = 20_000;
    let server = start(FrontEndOptions::default());
    let mut stream = connect(server.address());
    let value = "v".repeat(2048);
    exchange(&mut stream, format!("set {} {value}\r\n", "k".repeat(500)).as_bytes(), "+OK\r\n");
    stream.write_all(format!("get {}\r\n", "k".repeat(500)).repeat(REQUESTS).as_bytes()).unwrap();
    let reply = format!("$2048\r\n{value}\r\n");
    let mut received = vec![0; reply.len()];
    for _ in 0..REQUESTS {
        stream.read_exact(&mut received).unwrap();
        assert_eq!(received, reply.as_bytes());
    }
    exchange(&mut stream, b"ping\r\nquit\r\n", "+PONG\r\n+OK\r\n");
    assert_eq!(rest(stream), "");
    server.stop();
}

#[test]
fn impossible_lengths_are_told_and_hurt_nobody_else() {
    let server = start(FrontEndOptions::default());
    let mut other = connect(server.address());
    exchange(&mut other, b"set a 1\r\n", "+OK\r\n");
    for (request, error) in [
        ("*2\r\n$3\r\nGET\r\n$10737418240\r\n", "invalid bulk length"),
        ("*2\r\n$3\r\nGET\r\n$-5\r\n", "invalid bulk length"),
        ("*2\r\n$3\r\nGET\r\n$536870913\r\n", "invalid bulk length"),
        ("*9999999\r\n", "invalid multibulk length"),
        ("*1\r\nPING\r\n", "expected '$', got 'P'"),
    ] {
        let mut stream = connect(server.address());
        // More than the server will look at, so that it ends the connection with input unread.
        let request = [request.as_bytes(), &[b'x'; 300_000]].concat();
        stream.write_all(&request).unwrap();
        assert_eq!(rest(stream), format!("-ERR Protocol error: {error}\r\n"));
        exchange(&mut other, b"get a\r\n", "$1\r\n1\r\n");
    }
    server.stop();
}

#[test]
fn a_value_over_the_limit_is_refused_and_the_connection_goes_on() {
    let server = start(FrontEndOptions::default());
    let mut stream = connect(server.address());
    const BYTES: usize = 64 * 1024 * 1024 + 1;
    stream.write_all(format!("*3\r\n$3\r\nSET\r\n$1\r\na\r\n${BYTES}\r\n").as_bytes()).unwrap();
    let piece = vec![b'x'; 1 << 16];
    let mut left = BYTES;
    while left > 0 {
        let length = left.min(piece.len());
        stream.write_all(&piece[..length]).unwrap();
        left -= length;
    }
    let expected = "-ERR value is 67108865 bytes, the limit is 67108864 (value_bytes_max)\r\n$-1\r\n";
    exchange(&mut stream, b"\r\nget a\r\n", expected);
    let request = format!("*2\r\n$3\r\nGET\r\n$65537\r\n{}\r\nping\r\n", "k".repeat(65537));
    exchange(
        &mut stream,
        request.as_bytes(),
        "-ERR key is 65537 bytes, the limit is 65536 (key_bytes_max)\r\n+PONG\r\n",
    );
    server.stop();
}

#[test]
fn a_client_that_disappears_in_the_middle_of_a_request_changes_nothing() {
    let server = start(FrontEndOptions::default());
    for cut in ["*3\r\n$3\r\nSET\r\n$1\r\na\r\n$5\r\nab", "set a", "*3\r\n$3\r\nSE"] {
        connect(server.address()).write_all(cut.as_bytes()).unwrap();
    }
    let mut stream = connect(server.address());
    exchange(&mut stream, b"get a\r\n", "$-1\r\n");
    server.stop();
}

#[test]
fn connections_over_the_limit_are_refused_with_a_message() {
    let server = start(FrontEndOptions { connections_max: 1, ..FrontEndOptions::default() });
    let mut first = connect(server.address());
    exchange(&mut first, b"ping\r\n", "+PONG\r\n");
    assert_eq!(rest(connect(server.address())), "-ERR max number of clients reached\r\n");
    exchange(&mut first, b"ping\r\n", "+PONG\r\n");
    server.stop();
}

#[test]
fn stopping_ends_idle_connections_and_the_listener() {
    let server = start(FrontEndOptions::default());
    let mut idle = connect(server.address());
    exchange(&mut idle, b"ping\r\n", "+PONG\r\n");
    server.stop();
    assert_eq!(rest(idle), "");
    assert!(TcpStream::connect(server.address()).is_err());
    server.stop();
}
