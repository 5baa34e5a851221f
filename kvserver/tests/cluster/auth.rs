//! Who may connect.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::harness::{Cluster, Redis, Reply, http_get};

const PASSWORD: &str = "password=correct horse";

#[test]
fn with_a_password_only_who_knows_it_is_served() {
    let cluster = Cluster::start(&[PASSWORD]);
    let error = |text: &str| Reply::Error(text.into());
    for node in cluster.ids() {
        let mut redis = cluster.redis(node);
        assert_eq!(redis.call(&["SET", "a", "1"]), error("NOAUTH Authentication required."));
        let wrong = error("WRONGPASS invalid username-password pair or user is disabled.");
        assert_eq!(redis.call(&["AUTH", "wrong"]), wrong);
        assert_eq!(redis.call(&["HELLO", "2", "AUTH", "default", "wrong"]), wrong);
        assert_eq!(redis.call(&["GET", "a"]), error("NOAUTH Authentication required."));
        assert_eq!(redis.call(&["AUTH", "correct horse"]), Reply::ok());
        assert_eq!(redis.call(&["SET", "a", "1"]), Reply::ok());

        let mut redis = cluster.redis(node);
        let hello = redis.call(&["HELLO", "2", "AUTH", "default", "correct horse"]);
        assert!(matches!(hello, Reply::Array(_)), "{hello:?}");
        assert_eq!(redis.call(&["GET", "a"]), Reply::bulk("1"));
    }
    let output = cluster.kvctl(&["get", "a"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"1\n"[..]), "{output:?}");
}

/// An address of this machine that is not the loopback's. Connecting a datagram socket sends nothing; it only asks for the route.
fn outside_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[test]
fn without_a_password_another_machine_is_refused_with_a_message() {
    let Some(ip) = outside_address() else {
        println!("SKIPPED: this machine has only a loopback address");
        return;
    };
    let mut cluster = Cluster::start(&["listen=0.0.0.0"]);
    let outside = SocketAddr::new(ip, cluster.ports[0].redis);
    let refusal = Redis::connect(outside).unwrap().rest();
    assert!(refusal.starts_with("-DENIED") && refusal.contains("protected mode"), "{refusal}");
    let (code, body) = http_get(SocketAddr::new(ip, cluster.ports[0].admin), "/status").unwrap();
    assert_eq!(code, 403, "{body}");
    assert_eq!(cluster.redis(1).call(&["SET", "a", "1"]), Reply::ok());

    // The same machine with the password may.
    for id in cluster.ids() {
        assert_eq!(cluster.stop_node(id).code(), Some(0));
    }
    cluster.write_config("127.0.0.1", &["listen=0.0.0.0", PASSWORD]);
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_for_leader();
    let mut redis = Redis::connect(outside).unwrap();
    assert_eq!(redis.call(&["AUTH", "correct horse"]), Reply::ok());
    assert_eq!(redis.call(&["GET", "a"]), Reply::bulk("1"));
}
