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

/// What an answer of the older calls says.
fn host(notes: &mut Notes, what: &str, host: *const libc::hostent) {
    // SAFETY: null, or an answer of the resolver's, which nobody replaces meanwhile: the cases that read it hold a lock.
    notes.push(match unsafe { host.as_ref() } {
        None => format!("{what}: none"),
        // SAFETY: as above: a C string, and a list of addresses of that length that ends with null.
        Some(host) => unsafe {
            let name = CStr::from_ptr(host.h_name);
            let address =
                std::slice::from_raw_parts((*host.h_addr_list).cast::<u8>(), host.h_length as usize);
            format!("{what}: {name:?} {} {address:?}", host.h_addrtype)
        },
    });
}

unsafe extern "C" {
    fn gethostbyname(name: *const libc::c_char) -> *mut libc::hostent;
    fn gethostbyname2(name: *const libc::c_char, family: i32) -> *mut libc::hostent;
    fn gethostbyaddr(address: *const libc::c_void, length: u32, family: i32) -> *mut libc::hostent;
    fn gethostbyname_r(
        name: *const libc::c_char,
        host: *mut libc::hostent,
        buffer: *mut libc::c_char,
        length: usize,
        result: *mut *mut libc::hostent,
        error: *mut i32,
    ) -> i32;
    fn __h_errno_location() -> *mut i32;
}

#[test]
fn the_older_calls_look_names_up() {
    // They answer in memory of the process.
    static TURNS: std::sync::Mutex<()> = std::sync::Mutex::new(());
    differ(false, |notes| {
        let _turn = TURNS.lock().unwrap();
        // SAFETY: C strings and an address of that length.
        unsafe {
            host(notes, "by number", gethostbyname(c"127.0.0.1".as_ptr()));
            host(notes, "by number", gethostbyname2(c"127.0.0.1".as_ptr(), libc::AF_INET));
            host(notes, "another family", gethostbyname2(c"127.0.0.1".as_ptr(), libc::AF_INET6));
            host(notes, "by name", gethostbyname(c"localhost".as_ptr()));
            host(notes, "by address", gethostbyaddr([127u8, 0, 0, 1].as_ptr().cast(), 4, libc::AF_INET));
            let none = gethostbyaddr([127u8, 0, 0, 1].as_ptr().cast(), 3, libc::AF_INET);
            notes.push(format!("{} {}", none.is_null(), *__h_errno_location()));
        }
    });
}

#[test]
fn the_reentrant_call_answers_in_the_callers_memory() {
    differ(false, |notes| {
        for room in [1024, 4] {
            // SAFETY: room for the answer, as said.
            unsafe {
                let (mut answer, mut buffer) = (std::mem::zeroed(), [0; 1024]);
                let (mut found, mut error) = (std::ptr::null_mut(), 0);
                let result = gethostbyname_r(
                    c"127.0.0.1".as_ptr(),
                    &mut answer,
                    buffer.as_mut_ptr(),
                    room,
                    &mut found,
                    &mut error,
                );
                notes.push(format!("{result} {error}"));
                host(notes, "found", found);
            }
        }
    });
}

#[test]
fn addresses_are_named() {
    differ(false, |notes| {
        let address = sockaddr(std::net::SocketAddr::from(([127, 0, 0, 1], 80)));
        let numeric = libc::NI_NUMERICHOST | libc::NI_NUMERICSERV;
        for (flags, room) in [(numeric, 64), (numeric, 3), (0x4000, 64), (libc::NI_NUMERICSERV, 64)] {
            let (mut name, mut service) = ([0; 64], [0; 64]);
            // SAFETY: a live address and room for the names, as said.
            let answer = unsafe {
                libc::getnameinfo(
                    (&raw const address).cast(),
                    16,
                    name.as_mut_ptr(),
                    room,
                    service.as_mut_ptr(),
                    room,
                    flags,
                )
            };
            notes.push(format!("{answer} {name:?} {service:?}"));
        }
    });
}
