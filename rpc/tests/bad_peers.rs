//! Peers that break the protocol, fall silent, or belong elsewhere: each harms only its own connection.

mod util;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use squall_rpc::frame::{HEADER_BYTES, Header, Kind};
use squall_rpc::proto::rpc::Goaway;
use squall_rpc::proto::rpc::goaway::Code;
use squall_rpc::{
    CallContext, Client, ClientConfig, CloseReason, Handler, LocalIdentity, PeerIdentity, RpcError, Server,
    ServerConfig, Status,
};
use util::*;

fn request(body: &[u8]) -> Vec<u8> {
    let mut header = Header::new(Kind::Request, body);
    header.method = ECHO;
    header.stream = 1;
    frame(header, body)
}

#[test]
fn a_broken_frame_closes_its_connection_for_a_counted_reason_and_no_other() {
    let (server, _) = serve(ServerConfig { body_bytes_max: 1_000, ..ServerConfig::default() });
    let bystander = connect(&server);
    bystander.call(ECHO, Bytes::new(), PATIENCE, 0).expect("served");

    let flip = |at: usize| {
        let mut wire = request(b"a body");
        wire[at] ^= 0x10;
        wire
    };
    let over_long = Header { body_bytes: 1_001, ..Header::new(Kind::Request, b"") };
    let broken = [
        (flip(0), CloseReason::BadMagic(0)),
        (flip(4), CloseReason::UnknownVersion(0)),
        (flip(9), CloseReason::CorruptHeader { computed: 0, announced: 0 }),
        (flip(HEADER_BYTES), CloseReason::CorruptBody { computed: 0, announced: 0 }),
        (frame(over_long, b""), CloseReason::BodyTooLong { announced: 0, limit: 0 }),
        (hello_of(node(3)), CloseReason::UnexpectedFrame(Kind::Hello)),
        (frame(Header::new(Kind::Goaway, &[0xff]), &[0xff]), CloseReason::BadMessage(Kind::Goaway)),
    ];
    for (wire, reason) in broken {
        let mut peer = RawPeer::admitted(server.local_addr());
        peer.send(&wire);
        peer.wait_closed();
        eventually("the reason is counted", || server.metrics().closed(reason) == 1);
        assert_eq!(bystander.call(ECHO, "unharmed".into(), PATIENCE, 0), Ok("unharmed".into()));
    }
    let mut peer = RawPeer::admitted(server.local_addr());
    peer.send(&request(b"a body")[..HEADER_BYTES + 2]);
    drop(peer);
    let truncated = CloseReason::Truncated { got: 0, expected: 0 };
    eventually("the truncated frame is counted", || server.metrics().closed(truncated) == 1);
    assert_eq!(bystander.call(ECHO, "unharmed".into(), PATIENCE, 0), Ok("unharmed".into()));
    assert_eq!(bystander.metrics().connections_opened.load(Ordering::Relaxed), 1);
}

#[test]
fn another_protocol_is_turned_away_at_once() {
    let (server, _) = serve(ServerConfig { handshake_timeout: PATIENCE, ..ServerConfig::default() });
    let mut peer = RawPeer::connect(server.local_addr());
    peer.send(b"*1\r\n$4\r\nPING\r\n");
    peer.wait_closed();
    eventually("counted", || server.metrics().closed(CloseReason::BadMagic(0)) == 1);
}

/// The code of the goaway with which a server answers this identity.
fn refusal(server: &Server, identity: LocalIdentity) -> Goaway {
    let mut peer = RawPeer::connect(server.local_addr());
    peer.send(&hello_of(identity));
    let (header, body) = peer.receive();
    assert_eq!(header.kind, Kind::Goaway);
    peer.wait_closed();
    Goaway::decode(body).expect("a goaway")
}

#[test]
fn a_node_of_another_cluster_is_refused_with_the_reason_on_both_sides() {
    let (server, _) = serve(ServerConfig::default());
    let stranger = LocalIdentity { cluster_id: [8; 16], node_id: 2 };
    let client = Client::new(server.local_addr(), ClientConfig::default(), stranger).expect("valid");
    let refused = CloseReason::Refused(Code::WrongCluster);
    assert_eq!(client.call(ECHO, Bytes::new(), PATIENCE, 0), Err(RpcError::NotSent(refused)));
    assert_eq!(client.metrics().closed(refused), 1);
    eventually("counted", || server.metrics().closed(CloseReason::PeerRefused(Code::WrongCluster)) == 1);

    let goaway = refusal(&server, stranger);
    assert_eq!(goaway.code(), Code::WrongCluster);
    let hex = |byte: &str| byte.repeat(16);
    assert!(goaway.message.contains(&hex("09")) && goaway.message.contains(&hex("08")), "{}", goaway.message);
}

#[test]
fn a_node_with_the_servers_own_id_is_refused() {
    let (server, _) = serve(ServerConfig::default());
    assert_eq!(refusal(&server, node(1)).code(), Code::WrongNode);
}

#[test]
fn a_client_refuses_a_node_that_it_did_not_expect() {
    let (server, _) = serve(ServerConfig::default());
    let config = ClientConfig { expected_node_id: Some(7), ..ClientConfig::default() };
    let client = Client::new(server.local_addr(), config, node(2)).expect("valid");
    let refused = CloseReason::PeerRefused(Code::WrongNode);
    assert_eq!(client.call(ECHO, Bytes::new(), PATIENCE, 0), Err(RpcError::NotSent(refused)));
    // The server is told.
    eventually("counted", || server.metrics().closed(CloseReason::Refused(Code::WrongNode)) == 1);
}

#[test]
fn a_handler_may_refuse_a_peer() {
    struct MembersOnly;
    impl Handler for MembersOnly {
        fn admit(&self, peer: &PeerIdentity) -> Result<(), String> {
            if peer.node_id == 0 { Err("members only".into()) } else { Ok(()) }
        }
        fn call(&self, context: &CallContext, _: Bytes) -> Result<Bytes, Status> {
            Ok(context.peer.node_id.to_string().into())
        }
        fn notify(&self, _: &CallContext, _: Bytes) {}
    }
    let server =
        Server::bind(loopback(), ServerConfig::default(), node(1), Arc::new(MembersOnly)).expect("free port");
    let goaway = refusal(&server, node(0));
    assert_eq!((goaway.code(), &goaway.message[..]), (Code::NotAdmitted, "members only"));
    assert_eq!(connect(&server).call(ECHO, Bytes::new(), PATIENCE, 0), Ok("2".into()));
}

#[test]
fn one_connection_too_many_is_refused() {
    let (server, _) = serve(ServerConfig { connections_max: 2, ..ServerConfig::default() });
    let _first = RawPeer::admitted(server.local_addr());
    let second = RawPeer::admitted(server.local_addr());
    assert_eq!(refusal(&server, node(3)).code(), Code::TooManyConnections);
    drop(second);
    eventually("its place is free", || server.connections() == 1);
    RawPeer::admitted(server.local_addr());
}

#[test]
fn a_stranger_that_never_introduces_itself_is_dropped() {
    let config = ServerConfig {
        handshake_timeout: Duration::from_millis(50),
        idle_timeout: 10 * PATIENCE,
        ..ServerConfig::default()
    };
    let (server, _) = serve(config);
    // One says nothing; the other trickles, which must not extend its time.
    let mut silent = RawPeer::connect(server.local_addr());
    let mut trickling = RawPeer::connect(server.local_addr());
    let hello = hello_of(node(3));
    for byte in &hello[..20] {
        thread::sleep(Duration::from_millis(10));
        if std::io::Write::write_all(&mut trickling.stream, &[*byte]).is_err() {
            break;
        }
    }
    silent.wait_closed();
    trickling.wait_closed();
    eventually("counted", || server.metrics().closed(CloseReason::HandshakeTimeout) == 2);
}

#[test]
fn a_peer_that_accepts_and_never_answers_times_out() {
    let listener = TcpListener::bind(loopback()).expect("a free port");
    let config = ClientConfig { handshake_timeout: Duration::from_millis(50), ..ClientConfig::default() };
    let client = Client::new(listener.local_addr().expect("bound"), config, node(2)).expect("valid");
    assert_eq!(
        client.call(ECHO, Bytes::new(), PATIENCE, 0),
        Err(RpcError::NotSent(CloseReason::HandshakeTimeout))
    );
}

#[test]
fn a_peer_that_falls_silent_is_noticed_on_both_sides() {
    let idle_timeout = Duration::from_millis(500);
    let (server, _) = serve(ServerConfig { idle_timeout, ..ServerConfig::default() });
    let mut peer = RawPeer::admitted(server.local_addr());
    peer.wait_closed();
    eventually("counted", || server.metrics().closed(CloseReason::IdleTimeout) == 1);

    let listener = TcpListener::bind(loopback()).expect("a free port");
    let config = ClientConfig { idle_timeout, ..ClientConfig::default() };
    let client = Client::new(listener.local_addr().expect("bound"), config, node(2)).expect("valid");
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(ECHO, Bytes::new(), PATIENCE, 0));
        let mut peer = RawPeer::new(listener.accept().expect("a client").0);
        assert_eq!(peer.receive().0.kind, Kind::Hello);
        peer.send(&hello_of(node(1)));
        assert_eq!(peer.receive().0.kind, Kind::Request);
        let error = call.join().expect("no panic");
        assert_eq!(error, Err(RpcError::OutcomeUnknown(CloseReason::IdleTimeout)));
    });
}

#[test]
fn heartbeats_keep_an_idle_connection_open() {
    let idle_timeout = Duration::from_secs(1);
    let (server, handler) = serve(ServerConfig { idle_timeout, ..ServerConfig::default() });
    let config = ClientConfig { idle_timeout, ..ClientConfig::default() };
    let client = Client::new(server.local_addr(), config, node(2)).expect("valid");
    client.call(ECHO, Bytes::new(), PATIENCE, 0).expect("served");
    thread::sleep(2 * idle_timeout);
    // While this request is served for long, and while a message's handler keeps the server from reading.
    client.notify(WAIT, Bytes::new()).expect("queued");
    eventually("the server does not read", || handler.waited.load(Ordering::SeqCst) == 1);
    thread::sleep(2 * idle_timeout);
    handler.open();
    client.call(ECHO, Bytes::new(), PATIENCE, 0).expect("served");
    assert_eq!(client.metrics().connections_opened.load(Ordering::Relaxed), 1);
}

#[test]
fn a_peer_that_reads_nothing_is_dropped() {
    let config = ServerConfig {
        body_bytes_max: 1 << 20,
        queue_bytes_max: 2 << 20,
        write_stall_timeout: Duration::from_millis(200),
        ..ServerConfig::default()
    };
    let (server, _) = serve(config);
    let mut peer = RawPeer::admitted(server.local_addr());
    for stream in 1..=64 {
        let mut header = Header::new(Kind::Request, b"1000000");
        header.method = BYTES;
        header.stream = stream;
        peer.send(&frame(header, b"1000000"));
    }
    eventually("counted", || server.metrics().closed(CloseReason::WriteStalled) == 1);
    eventually("its requests have ended", || server.connections() == 0);
}

#[test]
fn garbage_from_a_server_fails_the_call_as_its_peers_fault() {
    let listener = TcpListener::bind(loopback()).expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(addr, ClientConfig::default(), node(2)).expect("valid");
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(ECHO, Bytes::new(), PATIENCE, 0));
        let mut peer = RawPeer::new(listener.accept().expect("a client").0);
        peer.receive();
        peer.send(&hello_of(node(1)));
        assert_eq!(peer.receive().0.kind, Kind::Request);
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let reason = CloseReason::BadMagic(u32::from_le_bytes(*b"HTTP"));
        assert_eq!(call.join().expect("no panic"), Err(RpcError::PeerMisbehaved { reason, sent: true }));
    });
}

#[test]
fn answers_that_nobody_asked_for_are_ignored() {
    let listener = TcpListener::bind(loopback()).expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let client = Client::new(addr, ClientConfig::default(), node(2)).expect("valid");
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(ECHO, Bytes::new(), PATIENCE, 0));
        let mut peer = RawPeer::new(listener.accept().expect("a client").0);
        peer.receive();
        peer.send(&hello_of(node(1)));
        let (asked, _) = peer.receive();
        for stream in [asked.stream.wrapping_add(1), 0, asked.stream, asked.stream] {
            let body = stream.to_string();
            let header = Header { stream, ..Header::new(Kind::Response, body.as_bytes()) };
            peer.send(&frame(header, body.as_bytes()));
        }
        assert_eq!(call.join().expect("no panic"), Ok(asked.stream.to_string().into()));
        eventually("counted", || client.metrics().answers_late.load(Ordering::Relaxed) == 3);
    });
}
