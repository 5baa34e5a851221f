//! Servers that stop and start again, and what their clients see of it.

mod util;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use squall_rpc::frame::{Header, Kind};
use squall_rpc::proto::rpc as wire;
use squall_rpc::{
    CallContext, Client, ClientConfig, CloseReason, Handler, RpcError, Server, ServerConfig, Status,
};
use util::*;
use wire::Goaway;
use wire::goaway::Code;

/// Calls until it succeeds; every failure on the way must be one that may be repeated.
fn call_until_served(client: &Client) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.call(ECHO, "again".into(), PATIENCE, 0) {
            Ok(_) => return,
            Err(error) => assert!(error.definitely_not_executed(), "{error}"),
        }
        assert!(Instant::now() < deadline, "never served again");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_finds_its_peer_again_after_a_restart_on_the_same_port() {
    let (server, _) = serve(ServerConfig::default());
    let addr = server.local_addr();
    let client = connect(&server);
    call_until_served(&client);
    server.shutdown();
    for _ in 0..3 {
        let server = Server::bind(addr, ServerConfig::default(), node(1), TestHandler::new())
            .expect("shutdown has given the port back");
        call_until_served(&client);
        server.shutdown();
    }
    assert_eq!(client.metrics().connections_opened.load(Ordering::Relaxed), 4);
}

#[test]
fn a_restart_under_load_leaves_no_caller_in_doubt() {
    /// Counts what it executes, across restarts.
    struct Counting(Arc<AtomicU64>);
    impl Handler for Counting {
        fn call(&self, _: &CallContext, body: Bytes) -> Result<Bytes, Status> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(body)
        }
        fn notify(&self, _: &CallContext, _: Bytes) {}
    }
    let executed = Arc::new(AtomicU64::new(0));
    let config = || ServerConfig { drain_timeout: PATIENCE, ..ServerConfig::default() };
    let bind = |addr| {
        Server::bind(addr, config(), node(1), Arc::new(Counting(executed.clone()))).expect("a free port")
    };
    let mut server = bind(loopback());
    let addr = server.local_addr();
    let client = connect(&server);
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    match client.call(ECHO, Bytes::new(), PATIENCE, 0) {
                        Ok(_) => {
                            answered.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => {
                            assert!(error.definitely_not_executed(), "{error}");
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                }
            });
        }
        for _ in 0..5 {
            let before = answered.load(Ordering::SeqCst);
            eventually("calls are answered", || answered.load(Ordering::SeqCst) > before + 100);
            server.shutdown();
            server = bind(addr);
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(executed.load(Ordering::SeqCst), answered.load(Ordering::SeqCst));
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let (server, _) = serve(ServerConfig::default());
    let addr = server.local_addr();
    let second = Server::bind(addr, ServerConfig::default(), node(1), TestHandler::new());
    assert_eq!(second.err(), Some(RpcError::Bind { addr, kind: std::io::ErrorKind::AddrInUse }));
}

#[test]
fn shutdown_lets_requests_finish_and_refuses_new_ones() {
    let (server, handler) = serve(ServerConfig { drain_timeout: PATIENCE, ..ServerConfig::default() });
    let mut peer = RawPeer::admitted(server.local_addr());
    let request = |method, stream, body: &[u8]| {
        frame(Header { method, stream, ..Header::new(Kind::Request, body) }, body)
    };
    peer.send(&request(WAIT, 1, b"in progress"));
    eventually("the request is being served", || handler.waited.load(Ordering::SeqCst) == 1);
    thread::scope(|scope| {
        let shutdown = scope.spawn(|| server.shutdown());
        let (header, body) = peer.receive();
        assert_eq!(header.kind, Kind::Goaway);
        assert_eq!(Goaway::decode(body).expect("a goaway").code(), Code::ShuttingDown);

        peer.send(&request(ECHO, 2, b"too late"));
        let (header, body) = peer.receive();
        assert_eq!((header.kind, header.stream), (Kind::Error, 2));
        assert_eq!(wire::Status::decode(body).expect("a status").code(), wire::status::Code::ShuttingDown);

        assert!(!shutdown.is_finished(), "a request is in progress");
        handler.open();
        let (header, body) = peer.receive();
        assert_eq!((header.kind, header.stream, &body[..]), (Kind::Response, 1, &b"in progress"[..]));
        drop(peer);
    });
    assert_eq!(server.connections(), 0);
}

#[test]
fn a_client_that_is_told_to_go_away_opens_another_connection() {
    let listener = TcpListener::bind(loopback()).expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(addr, ClientConfig::default(), node(2)).expect("valid settings");
    let accept = || {
        let mut peer = RawPeer::new(listener.accept().expect("a client").0);
        assert_eq!(peer.receive().0.kind, Kind::Hello);
        peer.send(&hello_of(node(1)));
        peer
    };
    let answer = |peer: &mut RawPeer, stream| {
        peer.send(&frame(Header { stream, ..Header::new(Kind::Response, b"") }, b""));
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| client.call(ECHO, Bytes::new(), PATIENCE, 0));
        let mut old = accept();
        let asked_first = old.receive().0.stream;
        let goaway = Goaway { code: Code::ShuttingDown.into(), message: String::new() }.encode_to_vec();
        old.send(&frame(Header::new(Kind::Goaway, &goaway), &goaway));
        // An answer that nobody waits for shows that the client has read the goaway before it.
        answer(&mut old, asked_first.wrapping_add(1));
        eventually("the goaway is read", || client.metrics().answers_late.load(Ordering::Relaxed) == 1);

        let second = scope.spawn(|| client.call(ECHO, Bytes::new(), PATIENCE, 0));
        let mut new = accept();
        let asked_second = new.receive().0.stream;
        answer(&mut new, asked_second);
        assert_eq!(second.join().expect("no panic"), Ok(Bytes::new()));
        // What was asked before is still answered on the old connection.
        answer(&mut old, asked_first);
        assert_eq!(first.join().expect("no panic"), Ok(Bytes::new()));
        // And then the client leaves by itself.
        old.wait_closed();
    });
}

#[test]
fn shutdown_ends_connections_whose_requests_take_too_long() {
    let config = ServerConfig { drain_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let (server, handler) = serve(config);
    let client = connect(&server);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(WAIT, Bytes::new(), PATIENCE, 0));
        eventually("the call is being served", || handler.waited.load(Ordering::SeqCst) == 1);
        let shutdown = scope.spawn(|| server.shutdown());
        let error = call.join().expect("no panic").expect_err("cut off");
        assert_eq!(error, RpcError::OutcomeUnknown(CloseReason::PeerClosed));
        assert_eq!(server.connections(), 1, "its handler has not returned");
        assert!(!shutdown.is_finished(), "shutdown waits for the handler");
        handler.open();
        shutdown.join().expect("no panic");
    });
    server.shutdown();
    assert_eq!(server.connections(), 0);
}

#[test]
fn a_dropped_server_gives_its_port_back() {
    let (server, _) = serve(ServerConfig::default());
    let addr = server.local_addr();
    let client = connect(&server);
    call_until_served(&client);
    drop(server);
    let deadline = Instant::now() + PATIENCE;
    while Server::bind(addr, ServerConfig::default(), node(1), TestHandler::new()).is_err() {
        assert!(Instant::now() < deadline, "the port is still taken");
        thread::sleep(Duration::from_millis(5));
    }
}
