//! Name resolution.

use crate::calls::*;
use crate::harness::*;
use std::ffi::CStr;
use std::net::ToSocketAddrs;

#[test]
fn names_resolve() {
    differ(false, |notes| {
        notes.push(format!("{:?}", ("127.0.0.1", 80).to_socket_addrs().unwrap().collect::<Vec<_>>()));
        notes.push(format!("{:?}", ("::1", 80).to_socket_addrs().unwrap().collect::<Vec<_>>()));
        let local = ("localhost", 80).to_socket_addrs().unwrap().all(|address| address.ip().is_loopback());
        notes.push(format!("{local}"));
    });
}

/// `getaddrinfo` with a family, a type and flags; notes the answer and the addresses.
fn look_up(notes: &mut Notes, node: Option<&CStr>, service: Option<&CStr>, hints: [i32; 3]) {
    let null = std::ptr::null();
    // SAFETY: C strings or null, live hints, and a list that libc made and frees.
    unsafe {
        let mut wanted: libc::addrinfo = std::mem::zeroed();
        [wanted.ai_family, wanted.ai_socktype, wanted.ai_flags] = hints;
        let mut list = std::ptr::null_mut();
        let (node, service) = (node.map_or(null, CStr::as_ptr), service.map_or(null, CStr::as_ptr));
        notes.push(format!("{}", libc::getaddrinfo(node, service, &wanted, &mut list)));
        let mut at = list;
        while let Some(entry) = at.as_ref() {
            let bytes = std::slice::from_raw_parts(entry.ai_addr.cast::<u8>(), entry.ai_addrlen as usize);
            notes.push(format!("{} {} {bytes:?}", entry.ai_family, entry.ai_socktype));
            at = entry.ai_next;
        }
        if !list.is_null() {
            libc::freeaddrinfo(list);
        }
    }
}

#[test]
fn numbers_and_services_are_translated() {
    differ(false, |notes| {
        let stream = libc::SOCK_STREAM;
        look_up(notes, Some(c"127.0.0.1"), Some(c"80"), [libc::AF_INET, stream, libc::AI_NUMERICHOST]);
        look_up(notes, Some(c"127.0.0.1"), Some(c"80"), [0, 0, 0]);
        look_up(notes, None, Some(c"80"), [libc::AF_INET, stream, libc::AI_PASSIVE]);
        look_up(notes, None, Some(c"80"), [libc::AF_INET, stream, 0]);
        look_up(notes, Some(c"::1"), None, [libc::AF_INET6, stream, libc::AI_NUMERICHOST]);
        look_up(notes, Some(c"localhost"), Some(c"80"), [libc::AF_INET, stream, 0]);
    });
}

#[test]
fn errors_are_those_of_the_resolver() {
    differ(false, |notes| {
        let stream = libc::SOCK_STREAM;
        look_up(notes, None, None, [0, stream, 0]);
        look_up(notes, Some(c"no number"), None, [0, stream, libc::AI_NUMERICHOST]);
        look_up(notes, Some(c"127.0.0.1"), None, [libc::AF_INET6, stream, libc::AI_NUMERICHOST]);
        look_up(notes, Some(c"127.0.0.1"), Some(c"no service"), [0, stream, libc::AI_NUMERICSERV]);
        look_up(notes, Some(c"127.0.0.1"), Some(c"no-such-service"), [0, stream, 0]);
        look_up(notes, Some(c"127.0.0.1"), Some(c"80"), [99, stream, 0]);
        look_up(notes, Some(c"127.0.0.1"), Some(c"80"), [0, 99, 0]);
        look_up(notes, Some(c"127.0.0.1"), Some(c"80"), [0, stream, 0x4000_0000]);
        look_up(notes, Some(c""), Some(c"80"), [0, stream, libc::AI_NUMERICHOST]);
    });
}

#[test]
fn looking_up_keeps_errno() {
    differ(false, |notes| {
        set_errno(libc::EXDEV);
        let numeric = [libc::AF_INET, libc::SOCK_STREAM, libc::AI_NUMERICHOST | libc::AI_NUMERICSERV];
        look_up(notes, Some(c"127.0.0.1"), Some(c"80"), numeric);
        notes.push(format!("{}", errno()));
    });
}

#[test]
fn many_may_look_up_at_once() {
    differ(true, |notes| {
        let askers: Vec<_> = (0..40u16)
            .map(|port| {
                companion(move || {
                    let found: Vec<_> = ("localhost", port).to_socket_addrs().unwrap().collect();
                    assert!(!found.is_empty() && found.iter().all(|address| address.port() == port));
                })
            })
            .collect();
        std::thread::sleep(pause());
        askers.into_iter().for_each(|asker| asker());
        notes.push("done".into());
    });
}
