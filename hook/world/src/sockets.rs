//! What sockets are told and asked without waiting.

use crate::{answer_done, list, real};
use core::ffi::c_int;
use libc::{sockaddr, socklen_t};
use squall_hook::{AddressMut, Errno, in_world_or};

list! { bind listen getsockname getpeername }

#[unsafe(no_mangle)]
unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    in_world_or(
        |current, world| {
            if address.is_null() {
                return answer_done(Err(Errno(libc::EFAULT)));
            }
            // SAFETY: the caller passes an address of that length.
            let address = unsafe { core::slice::from_raw_parts(address.cast::<u8>(), length as usize) };
            answer_done(world.bind(current, fd, address))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::bind(fd, address, length) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    in_world_or(
        |current, world| answer_done(world.listen(current, fd, backlog)),
        // SAFETY: no memory is involved.
        || unsafe { real::listen(fd, backlog) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes room for an address of that length.
            let room = unsafe { AddressMut::new(address, length) };
            answer_done(world.own_address(current, fd, room))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::getsockname(fd, address, length) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes room for an address of that length.
            let room = unsafe { AddressMut::new(address, length) };
            answer_done(world.peer_address(current, fd, room))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::getpeername(fd, address, length) },
    )
}
