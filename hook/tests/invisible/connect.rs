//! Connecting: refused, timed out, non-blocking.

use crate::harness::*;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

#[test]
fn connect_is_refused_or_times_out_as_ever() {
    differ(false, |notes| {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        kind(notes, "refused", TcpStream::connect(address).map(|_| ()));
        kind(notes, "refused with a timeout", TcpStream::connect_timeout(&address, PAUSE).map(|_| ()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        kind(
            notes,
            "accepted",
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(|mut stream| {
                stream.set_read_timeout(Some(PAUSE)).unwrap();
                stream.read(&mut [0]).map_err(|error| error.kind())
            }),
        );
    });
}
