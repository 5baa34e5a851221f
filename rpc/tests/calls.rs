//! Calls that are answered, late, or never; and messages that want no answer.

mod util;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use squall_rpc::frame::Kind;
use squall_rpc::{
    Client, ClientConfig, CloseReason, Method, RpcError, RpcMetrics, Server, ServerConfig, StatusCode,
};
use util::*;

#[test]
fn handles_are_send_and_sync() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Client>();
    is_send_and_sync::<Server>();
    is_send_and_sync::<RpcMetrics>();
}

#[test]
fn many_calls_share_a_connection_and_finish_out_of_order() {
    let (server, handler) = serve(ServerConfig::default());
    let client = connect(&server);
    thread::scope(|scope| {
        for i in 0..32u32 {
            let client = &client;
            scope.spawn(move || {
                let body = Bytes::from(format!("slow {i}"));
                assert_eq!(client.call(WAIT, body.clone(), PATIENCE, 0), Ok(body));
            });
        }
        eventually("all slow calls are being served", || handler.waited.load(Ordering::SeqCst) == 32);
        // They were asked first and are all unanswered; these overtake them on the same connection.
        for i in 0..200u32 {
            let body = Bytes::from(format!("fast {i}"));
            assert_eq!(client.call(ECHO, body.clone(), PATIENCE, 0), Ok(body));
        }
        handler.open();
    });
    assert_eq!(server.metrics().connections_opened.load(Ordering::Relaxed), 1);
}

#[test]
fn bodies_of_every_size_up_to_the_limit_go_both_ways() {
    let limit = 1 << 20;
    let config =
        ClientConfig { body_bytes_max: limit, queue_bytes_max: limit + 1_000, ..ClientConfig::default() };
    let (server, _) = serve(ServerConfig { body_bytes_max: limit, ..ServerConfig::default() });
    let client = Client::new(server.local_addr(), config, node(2)).expect("valid settings");
    for bytes in [0, 1, 8 << 10, (8 << 10) + 1, 16 << 10, (16 << 10) + 1, 300_000, limit] {
        let body: Bytes = (0..bytes).map(|i| (i % 251) as u8).collect();
        assert_eq!(client.call(ECHO, body.clone(), PATIENCE, 0), Ok(body));
    }
    let too_long = client.call(ECHO, vec![0; limit + 1].into(), PATIENCE, 0);
    assert_eq!(too_long, Err(RpcError::BodyTooLong { bytes: limit + 1, limit }));

    let answer = client.call(BYTES, (limit + 1).to_string().into(), PATIENCE, 0);
    assert!(
        matches!(&answer, Err(RpcError::Remote(status)) if status.code == StatusCode::Failed),
        "{answer:?}"
    );
    assert_eq!(client.call(ECHO, "still there".into(), PATIENCE, 0), Ok("still there".into()));
}

#[test]
fn a_call_ends_at_its_deadline_and_the_connection_goes_on() {
    let (server, handler) = serve(ServerConfig::default());
    let client = connect(&server);
    let expired = client.call(WAIT, Bytes::new(), Duration::from_millis(30), 0);
    // Sent or not depends on how soon the connection stood; the late answer below tells that it was.
    assert!(matches!(expired, Err(RpcError::DeadlineExceeded { .. })), "{expired:?}");

    let expired = client.call(WAIT, Bytes::new(), Duration::from_secs(1), 0);
    assert_eq!(expired, Err(RpcError::DeadlineExceeded { sent: true }));
    handler.open();
    eventually("the late answer is dropped", || client.metrics().answers_late.load(Ordering::Relaxed) >= 1);
    assert_eq!(client.call(ECHO, "next".into(), PATIENCE, 0), Ok("next".into()));
}

#[test]
fn a_call_that_is_not_wanted_any_more_is_given_up_and_the_connection_goes_on() {
    let (server, handler) = serve(ServerConfig::default());
    let client = connect(&server);
    let given_up =
        client.call_while(WAIT, Bytes::new(), PATIENCE, 0, &|| handler.waited.load(Ordering::SeqCst) == 0);
    assert_eq!(given_up, Err(RpcError::GivenUp));
    assert_eq!(client.call(ECHO, "next".into(), PATIENCE, 0), Ok("next".into()));
    handler.open();
    eventually("the late answer is dropped", || client.metrics().answers_late.load(Ordering::Relaxed) == 1);
    assert_eq!(server.metrics().connections_opened.load(Ordering::Relaxed), 1);
}

#[test]
fn a_call_that_expires_in_the_queue_is_never_sent() {
    let listener = TcpListener::bind(loopback()).expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let config = ClientConfig { handshake_timeout: PATIENCE, ..ClientConfig::default() };
    let client = Client::new(addr, config, node(2)).expect("valid settings");
    let expired = client.call(ECHO, "late".into(), Duration::from_millis(50), 0);
    assert_eq!(expired, Err(RpcError::DeadlineExceeded { sent: false }));
    client.notify(ECHO, "next".into()).expect("queued");

    let mut peer = RawPeer::new(listener.accept().expect("a client").0);
    assert_eq!(peer.receive().0.kind, Kind::Hello);
    peer.send(&hello_of(node(1)));
    let (header, body) = peer.receive();
    assert_eq!((header.kind, body), (Kind::OneWay, "next".into()));
}

#[test]
fn the_server_is_told_what_is_left_of_the_deadline() {
    let (server, _) = serve(ServerConfig::default());
    let client = connect(&server);
    let left = client.call(TIME_LEFT, Bytes::new(), PATIENCE, 0).expect("an answer");
    let left: u128 = String::from_utf8_lossy(&left).parse().expect("a number");
    assert!(left > 0 && left <= PATIENCE.as_millis(), "{left}");
}

#[test]
fn refusals_and_panics_of_a_handler_come_back_as_statuses() {
    let (server, _) = serve(ServerConfig::default());
    let client = connect(&server);
    let code = |method, body: &'static str| match client.call(method, body.into(), PATIENCE, 0) {
        Err(RpcError::Remote(status)) => status.code,
        other => panic!("answered {other:?}"),
    };
    assert_eq!(code(BYTES, "not a number"), StatusCode::BadRequest);
    assert_eq!(code(Method(9_999), ""), StatusCode::Unimplemented);
    assert_eq!(code(PANIC, ""), StatusCode::Failed);
    client.notify(PANIC, Bytes::new()).expect("queued");
    assert_eq!(client.call(ECHO, "still there".into(), PATIENCE, 0), Ok("still there".into()));
    assert_eq!(server.metrics().handler_panics.load(Ordering::Relaxed), 2);
}

#[test]
fn messages_arrive_in_the_order_they_were_sent() {
    let (server, handler) = serve(ServerConfig::default());
    let client = connect(&server);
    let messages: Vec<Bytes> = (0..5_000u32).map(|i| vec![i as u8; i as usize % 300].into()).collect();
    // The first ones are sent while the connection is still being made.
    for message in &messages {
        client.notify(ECHO, message.clone()).expect("queued");
    }
    eventually("all arrived", || handler.notified.lock().expect("notified").len() == messages.len());
    assert_eq!(*handler.notified.lock().expect("notified"), messages);
}

#[test]
fn a_pool_keeps_messages_apart_from_calls() {
    let (server, handler) = serve(ServerConfig::default());
    let config = ClientConfig { connections: 3, ..ClientConfig::default() };
    let client = Client::new(server.local_addr(), config, node(2)).expect("valid settings");
    // A message whose handler blocks stops its connection; calls go by on the others.
    client.notify(WAIT, "blocked".into()).expect("queued");
    eventually("the message blocks", || handler.waited.load(Ordering::SeqCst) == 1);
    for _ in 0..4 {
        assert_eq!(client.call(ECHO, "call".into(), PATIENCE, 0), Ok("call".into()));
    }
    assert_eq!(server.connections(), 3);
    handler.open();
}

#[test]
fn a_peer_that_takes_less_than_it_is_given_fills_a_bounded_queue() {
    let (server, handler) = serve(ServerConfig::default());
    let limit = 1 << 20;
    let config = ClientConfig { body_bytes_max: 64 << 10, queue_bytes_max: limit, ..ClientConfig::default() };
    let client = Client::new(server.local_addr(), config, node(2)).expect("valid settings");
    client.notify(WAIT, Bytes::new()).expect("queued");
    let body = Bytes::from(vec![1; 60 << 10]);
    // The network's own buffers take some megabytes first, and grow for a while.
    let (mut sent, mut refused_in_a_row) = (1, 0);
    while refused_in_a_row < 100 {
        match client.notify(ECHO, body.clone()) {
            Ok(()) => (sent, refused_in_a_row) = (sent + 1, 0),
            Err(RpcError::Full { queued, .. }) if queued <= limit => refused_in_a_row += 1,
            Err(other) => panic!("{other}"),
        }
        assert!(sent < 10_000, "600 MB were accepted for a peer that reads nothing");
        thread::sleep(Duration::from_millis(1));
    }
    // Calls wait for room instead, up to their deadline, and then are known not to have been sent.
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                let call = client.call(ECHO, body.clone(), Duration::from_millis(50), 0);
                assert_eq!(call, Err(RpcError::DeadlineExceeded { sent: false }));
            });
        }
    });
    let full = client.notify(ECHO, body.clone());
    assert!(matches!(full, Err(RpcError::Full { queued, .. }) if queued <= limit), "{full:?}");
    handler.open();
    eventually("what was queued arrived", || handler.notified.lock().expect("notified").len() == sent);
}

#[test]
fn a_connection_has_a_bounded_number_of_requests_served_at_once() {
    let (server, handler) = serve(ServerConfig { requests_in_flight_max: 4, ..ServerConfig::default() });
    let client = connect(&server);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| client.call(WAIT, "in turn".into(), PATIENCE, 0).expect("served"));
        }
        eventually("the first are served", || handler.waited.load(Ordering::SeqCst) == 4);
        // Another connection is not affected, and gives the server time to break the limit.
        let other = connect(&server);
        for _ in 0..20 {
            other.call(ECHO, Bytes::new(), PATIENCE, 0).expect("served");
        }
        assert_eq!(handler.waited.load(Ordering::SeqCst), 4);
        handler.open();
    });
    assert_eq!(handler.waited.load(Ordering::SeqCst), 16);
}

#[test]
fn a_request_longer_than_the_limit_in_flight_is_served_alone() {
    let (server, _) = serve(ServerConfig { bytes_in_flight_max: 1_000, ..ServerConfig::default() });
    let client = connect(&server);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let body = Bytes::from(vec![1; 10_000]);
                assert_eq!(client.call(ECHO, body.clone(), PATIENCE, 0), Ok(body));
            });
        }
    });
}

#[test]
fn a_peer_that_is_not_there_fails_fast_between_attempts() {
    // Bound and not listening any more: nobody is there.
    let addr = TcpListener::bind(loopback()).expect("a free port").local_addr().expect("bound");
    let config = ClientConfig {
        backoff_min: Duration::from_secs(30),
        backoff_max: Duration::from_secs(30),
        ..ClientConfig::default()
    };
    let client = Client::new(addr, config, node(2)).expect("valid settings");
    let refused = CloseReason::Io(std::io::ErrorKind::ConnectionRefused);
    assert_eq!(client.call(ECHO, Bytes::new(), PATIENCE, 0), Err(RpcError::NotSent(refused)));
    let second = client.call(ECHO, Bytes::new(), PATIENCE, 0);
    assert!(
        matches!(second, Err(RpcError::Unavailable { retry_after, cause })
            if retry_after <= Duration::from_secs(30) && cause == refused),
        "{second:?}"
    );
    assert!(matches!(client.notify(ECHO, Bytes::new()), Err(RpcError::Unavailable { .. })));
    assert_eq!(client.metrics().closed(refused), 1);
}

#[test]
fn a_patient_client_waits_for_its_peer() {
    let held = TcpListener::bind(loopback()).expect("a free port");
    let addr = held.local_addr().expect("bound");
    drop(held);
    let config = ClientConfig { wait_while_unavailable: true, ..ClientConfig::default() };
    let client = Client::new(addr, config, node(2)).expect("valid settings");
    let never = client.call(ECHO, Bytes::new(), Duration::from_millis(100), 0);
    assert!(matches!(&never, Err(error) if error.definitely_not_executed()), "{never:?}");
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(ECHO, "patience".into(), PATIENCE, 0));
        thread::sleep(Duration::from_millis(100));
        let _server = Server::bind(addr, ServerConfig::default(), node(1), TestHandler::new()).expect("free");
        assert_eq!(call.join().expect("no panic"), Ok("patience".into()));
    });
}

#[test]
fn closing_a_client_fails_its_calls_and_ends_its_activities() {
    let (server, handler) = serve(ServerConfig::default());
    let client = Arc::new(connect(&server));
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call(WAIT, Bytes::new(), PATIENCE, 0));
        eventually("the call is being served", || handler.waited.load(Ordering::SeqCst) == 1);
        client.close();
        assert_eq!(call.join().expect("no panic"), Err(RpcError::OutcomeUnknown(CloseReason::Local)));
    });
    assert_eq!(client.call(ECHO, Bytes::new(), PATIENCE, 0), Err(RpcError::Closed));
    assert_eq!(client.notify(ECHO, Bytes::new()), Err(RpcError::Closed));
    handler.open();
    eventually("the server noticed", || server.connections() == 0);
}
