//! Sockets.

use super::time;
use crate::errno::{Errno, answer_int, answer_size};
use crate::os::{AddressMut, Buffer, BufferMut, hot_hook, in_fiber_or};
use crate::real;
use crate::real_os::accept::accept_in_thread;
use crate::real_os::kind::{self, short_counts_prove_nothing};
use crate::real_os::wait::settings_changed;
use crate::real_os::{forget, forget_both, note_shared};
use crate::world::in_world_or;
use core::ffi::{c_int, c_uint, c_void};
use libc::{msghdr, size_t, sockaddr, socklen_t, ssize_t};
use std::time::Instant;

/// More messages than these are not taken by one call.
const MESSAGES_MAX: c_uint = libc::UIO_MAXIOV as c_uint;

/// A C address as bytes; `None` for a null pointer.
///
/// # Safety
/// `address` is null or points to `length` bytes.
unsafe fn address_bytes<'a>(address: *const sockaddr, length: socklen_t) -> Option<&'a [u8]> {
    // SAFETY: by the contract.
    (!address.is_null()).then(|| unsafe { core::slice::from_raw_parts(address.cast(), length as usize) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(world.socket(current, domain, kind, protocol)),
        || {
            // SAFETY: no memory is involved.
            let fd = unsafe { real::socket(domain, kind, protocol) };
            if fd >= 0 {
                forget(fd);
            }
            fd
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    in_world_or(
        |current, world| {
            let made = world.socket_pair(current, domain, kind, protocol);
            answer_int(made.map(|made| {
                // SAFETY: the caller passes room for two.
                unsafe { pair.cast::<[c_int; 2]>().write(made) };
                0
            }))
        },
        || {
            // SAFETY: the caller's own arguments.
            let result = unsafe { real::socketpair(domain, kind, protocol, pair) };
            if result == 0 {
                // SAFETY: the call has filled both.
                forget_both(unsafe { &*pair.cast::<[c_int; 2]>() });
            }
            result
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes an address of that length.
        |current, os| match unsafe { address_bytes(address, length) } {
            Some(address) => answer_int(os.connect(current, fd, address).map(|()| 0)),
            None => answer_int(Err(Errno(libc::EFAULT))),
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::connect(fd, address, length) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: accept is accept4 without flags.
    unsafe { accept4(fd, address, length, 0) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> c_int {
    let peer = || AddressMut { address, length };
    in_fiber_or!(|current, os| answer_int(os.accept(current, fd, peer(), flags)), || answer_int(
        accept_in_thread(fd, peer(), flags)
    ))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn recv(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    hot_hook!(recv(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t, |current, os| {
        // SAFETY: the caller passes a buffer of that length.
        let buffer = unsafe { BufferMut::new(buffer, length) };
        answer_size(os.receive(current, fd, buffer, flags, None))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes a buffer of that length.
            let buffer = unsafe { BufferMut::new(buffer, length) };
            let from = AddressMut { address, length: address_length };
            answer_size(os.receive(current, fd, buffer, flags, Some(from)))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::recvfrom(fd, buffer, length, flags, address, address_length) },
    )
}

/// Calls `note` on each descriptor that a message carries.
///
/// # Safety
/// The message is one that was received, or one to be sent.
unsafe fn passed_descriptors(message: &msghdr, note: impl Fn(c_int)) {
    if message.msg_control.is_null() || message.msg_controllen == 0 {
        return;
    }
    // SAFETY: by the contract, `msg_controllen` bytes of control messages are at `msg_control`, and each says how long it is.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = control.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let first = libc::CMSG_DATA(header).cast::<c_int>();
                (0..bytes / size_of::<c_int>()).for_each(|index| note(first.add(index).read_unaligned()));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    let result = in_fiber_or!(
        // SAFETY: the caller passes a message, or null.
        |current, os| match unsafe { message.as_mut() } {
            Some(message) => answer_size(os.receive_message(current, fd, message, flags)),
            None => answer_size(Err(Errno(libc::EFAULT))),
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::recvmsg(fd, message, flags) },
    );
    if result >= 0 {
        // SAFETY: not null, since it was received into.
        unsafe { passed_descriptors(&*message, descriptor_received) };
    }
    result
}

/// Its number is new here, and its open file may be known by another as well.
fn descriptor_received(fd: c_int) {
    forget(fd);
    note_shared(fd);
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn send(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    hot_hook!(send(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int) -> ssize_t, |current, os| {
        // SAFETY: the caller passes a buffer of that length.
        let buffer = unsafe { Buffer::new(buffer, length) };
        answer_size(os.send(current, fd, buffer, flags, None))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    flags: c_int,
    address: *const sockaddr,
    address_length: socklen_t,
) -> ssize_t {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes a buffer and an address of those lengths.
            let (buffer, to) =
                unsafe { (Buffer::new(buffer, length), address_bytes(address, address_length)) };
            answer_size(os.send(current, fd, buffer, flags, to))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::sendto(fd, buffer, length, flags, address, address_length) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller passes a message, or null.
    if let Some(message) = unsafe { message.as_ref() } {
        // SAFETY: as above.
        unsafe { passed_descriptors(message, note_shared) };
    }
    in_fiber_or!(
        // SAFETY: the caller passes a message, or null.
        |current, os| match unsafe { message.as_ref() } {
            Some(message) => answer_size(os.send_message(current, fd, message, flags)),
            None => answer_size(Err(Errno(libc::EFAULT))),
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::sendmsg(fd, message, flags) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut libc::mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut libc::timespec,
) -> c_int {
    let result = in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes null or a timespec.
            let limit = match unsafe { time::timeout(timeout) } {
                Ok(limit) => limit,
                Err(errno) => return answer_int(Err(errno)),
            };
            let messages = match (messages.is_null(), count) {
                // The kernel looks at the descriptor all the same.
                (_, 0) => return answer_int(os.control(current, fd, libc::F_GETFD, 0).map(|_| 0)),
                (true, _) => return answer_int(Err(Errno(libc::EFAULT))),
                // SAFETY: the caller passes `count` messages. The kernel, too, takes no more than that at once.
                (false, count) => unsafe {
                    core::slice::from_raw_parts_mut(messages, count.min(MESSAGES_MAX) as usize)
                },
            };
            let started = Instant::now();
            let received = os.receive_messages(current, fd, messages, flags, limit);
            // SAFETY: as above.
            if let (Ok(_), Some(limit), Some(time)) = (&received, limit, unsafe { timeout.as_mut() }) {
                // Linux tells how much of the time was left.
                let left = limit.saturating_sub(started.elapsed());
                (time.tv_sec, time.tv_nsec) = (left.as_secs() as _, left.subsec_nanos().into());
            }
            answer_int(received.map(|count| count as c_int))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::recvmmsg(fd, messages, count, flags, timeout) },
    );
    for index in 0..usize::try_from(result).unwrap_or(0) {
        // SAFETY: so many have been received.
        unsafe { passed_descriptors(&(*messages.add(index)).msg_hdr, descriptor_received) };
    }
    result
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sendmmsg(
    fd: c_int,
    messages: *mut libc::mmsghdr,
    count: c_uint,
    flags: c_int,
) -> c_int {
    if !messages.is_null() {
        for index in 0..count.min(MESSAGES_MAX) as usize {
            // SAFETY: the caller passes `count` messages.
            unsafe { passed_descriptors(&(*messages.add(index)).msg_hdr, note_shared) };
        }
    }
    in_fiber_or!(
        |current, os| {
            match (messages.is_null(), count) {
                // The kernel looks at the descriptor all the same.
                (_, 0) => return answer_int(os.control(current, fd, libc::F_GETFD, 0).map(|_| 0)),
                (true, _) => return answer_int(Err(Errno(libc::EFAULT))),
                (false, _) => {}
            }
            let count = count.min(MESSAGES_MAX);
            for index in 0..count {
                // SAFETY: the caller passes `count` messages.
                let message = unsafe { &mut *messages.add(index as usize) };
                match os.send_message(current, fd, &message.msg_hdr, flags) {
                    Ok(size) => message.msg_len = size as c_uint,
                    Err(_) if index > 0 => return index as c_int,
                    Err(errno) => return answer_int(Err(errno)),
                }
            }
            count as c_int
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::sendmmsg(fd, messages, count, flags) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(world.shutdown(current, fd, how).map(|()| 0)),
        || {
            // SAFETY: no memory is involved.
            let result = unsafe { real::shutdown(fd, how) };
            if result == 0 {
                if how != libc::SHUT_WR {
                    kind::reading_ended(fd);
                }
                // Not everything that this ends shows as an event: a Unix socket with a full buffer stays unwritable.
                squall_iomanager::descriptor::nudge(fd);
            }
            result
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *mut c_void,
    length: *mut socklen_t,
) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes null or a length.
            let Some(length) = (unsafe { length.as_mut() }) else {
                return answer_int(Err(Errno(libc::EFAULT)));
            };
            // SAFETY: the caller passes a buffer of that length.
            let buffer = unsafe { BufferMut::new(value, *length as usize) };
            answer_int(world.get_option(current, fd, level, option, buffer).map(|size| {
                *length = size as socklen_t;
                0
            }))
        },
        // The kernel keeps every option, timeouts included: there is nothing to translate.
        // SAFETY: the caller's own arguments.
        || unsafe { real::getsockopt(fd, level, option, value, length) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    option: c_int,
    value: *const c_void,
    length: socklen_t,
) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes a value of that length.
            let value = unsafe { Buffer::new(value, length as usize) };
            answer_int(world.set_option(current, fd, level, option, value.as_slice()).map(|()| 0))
        },
        || {
            // As above, but what was remembered of timeouts is out of date.
            // SAFETY: the caller's own arguments.
            let result = unsafe { real::setsockopt(fd, level, option, value, length) };
            match (level, option) {
                (libc::SOL_SOCKET, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO) => settings_changed(fd),
                // A low-water mark keeps arrivals from making edges; a protocol on top of TCP (TLS in the kernel) hands out
                // records.
                (libc::SOL_SOCKET, libc::SO_RCVLOWAT) | (libc::IPPROTO_TCP, libc::TCP_ULP) => {
                    short_counts_prove_nothing();
                    kind::changed(fd);
                }
                _ => {}
            }
            result
        },
    )
}
