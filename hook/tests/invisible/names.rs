//! Name resolution.

use crate::harness::*;
use std::net::ToSocketAddrs;

#[test]
fn names_resolve() {
    differ(false, |notes| {
        notes.push(format!("{:?}", ("127.0.0.1", 80).to_socket_addrs().unwrap().collect::<Vec<_>>()));
        let local = ("localhost", 80).to_socket_addrs().unwrap().all(|address| address.ip().is_loopback());
        notes.push(format!("{local}"));
    });
}
