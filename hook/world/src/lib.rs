//! The libc calls that never wait, interposed: clocks, randomness, names, files, directories, the settings of sockets. Only a program that
//! links a simulation links this, so nobody else's clock takes a detour.
//!
//! In a fiber whose operating system is a [`World`](squall_hook::World) a call goes there, anywhere else to libc. Calls that such a world
//! cannot have (threads, child processes, epoll) are refused in it: the world is told of each, because they would let the machine's own
//! time and order in.

mod clock;
mod directories;
mod files;
mod real;
mod refused;
mod sockets;

use core::cell::Cell;
use core::ffi::c_int;
use squall_hook::Errno;
use std::time::{Duration, Instant};

thread_local! {
    /// What the monotonic clock shows on this thread while [`instant_at`] reads it.
    static SHOWN: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// The [`Instant`] that std makes of a monotonic clock that shows `since_boot`: std has no constructor for it.
///
/// ```
/// use std::time::Duration;
/// let boot = squall_hook_world::instant_at(Duration::from_secs(100));
/// assert_eq!(squall_hook_world::instant_at(Duration::from_secs(103)) - boot, Duration::from_secs(3));
/// ```
pub fn instant_at(since_boot: Duration) -> Instant {
    let before = SHOWN.replace(Some(since_boot));
    let instant = Instant::now();
    SHOWN.set(before);
    instant
}

/// Every symbol that this crate takes over, with the address of the definition here. To be linked at all a definition must be named from
/// somewhere: weak references, such as std's to `getrandom`, do not suffice.
pub fn interposed_symbols() -> impl Iterator<Item = (&'static str, usize)> {
    clock::symbols()
        .chain(directories::symbols())
        .chain(files::symbols())
        .chain(refused::symbols())
        .chain(sockets::symbols())
}

/// Makes the list of a module's symbols.
macro_rules! list {
    ($($name:ident)*) => {
        /// The definitions of this file.
        pub(crate) fn symbols() -> impl Iterator<Item = (&'static str, usize)> {
            [$((stringify!($name), $name as *const () as usize),)*].into_iter()
        }
    };
}
pub(crate) use list;

fn set_errno(errno: Errno) {
    // SAFETY: the address is valid for the calling thread or fiber.
    unsafe { *libc::__errno_location() = errno.0 };
}

/// The C convention for calls that return something from 0 on.
fn answer<T: TryInto<i64>>(result: squall_hook::Result<T>) -> i64 {
    match result.map(T::try_into) {
        Ok(Ok(value)) => value,
        Ok(Err(_)) => {
            set_errno(Errno(libc::EOVERFLOW));
            -1
        }
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// As [`answer`], for calls that return 0.
fn answer_done(result: squall_hook::Result<()>) -> c_int {
    answer(result.map(|()| 0)) as c_int
}
