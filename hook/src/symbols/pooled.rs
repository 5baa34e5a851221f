//! Calls that wait for something no fiber can wait for by itself: they run on the blocking pool, where the calling thread makes no
//! difference to them. The pool has few threads (see [`squall_fiber::run_blocking`]): many of these that wait for each other may wait
//! for ever.

use crate::errno::{Result, answer_int, answer_size, check, check_int};
use crate::os::in_fiber_or;
use crate::real;
use crate::real_os::pool::on_pool;
use crate::real_os::wait::refuse_if_interrupted;
use core::ffi::{c_char, c_int, c_long, c_uint, c_void};
use libc::{FILE, hostent, off_t, pid_t, size_t, sockaddr, socklen_t, ssize_t, timespec};
use squall_fiber::{Current, run_blocking};

/// Defines functions that fail with -1 and errno.
macro_rules! pooled {
    ($($name:ident = pooled::call($($argument:ident: $type:ty),*) -> $result:ty, $check:ident, $answer:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $name($($argument: $type),*) -> $result {
                in_fiber_or!(
                    |current, os| {
                        if let Some(world) = os.world() {
                            return $answer(Err(world.refuse(current, stringify!($name))));
                        }
                        // SAFETY: the caller's own arguments, valid while it waits.
                        $answer(unsafe {
                            on_pool(current, ($($argument,)*), |($($argument,)*)| $check(real::$name($($argument),*)))
                        })
                    },
                    // SAFETY: the caller's own arguments.
                    || unsafe { real::$name($($argument),*) }
                )
            }
        )*
    };
}

pooled! {
    copy_file_range = pooled::call(input: c_int, input_offset: *mut off_t, output: c_int, output_offset: *mut off_t, length: size_t, flags: c_uint) -> ssize_t, check, answer_size;
    syncfs = pooled::call(fd: c_int) -> c_int, check_int, answer_int;
    sync_file_range = pooled::call(fd: c_int, offset: off_t, length: off_t, flags: c_uint) -> c_int, check_int, answer_int;
    fallocate = pooled::call(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int, check_int, answer_int;
    msync = pooled::call(address: *mut c_void, length: size_t, flags: c_int) -> c_int, check_int, answer_int;
    msgsnd = pooled::call(queue: c_int, message: *const c_void, size: size_t, flags: c_int) -> c_int, check_int, answer_int;
    msgrcv = pooled::call(queue: c_int, message: *mut c_void, size: size_t, kind: c_long, flags: c_int) -> ssize_t, check, answer_size;
    semop = pooled::call(set: c_int, operations: *mut c_void, count: size_t) -> c_int, check_int, answer_int;
    semtimedop = pooled::call(set: c_int, operations: *mut c_void, count: size_t, timeout: *const timespec) -> c_int, check_int, answer_int;
    system = pooled::call(command: *const c_char) -> c_int, check_int, answer_int;
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int {
    // SAFETY: on 64-bit Linux the same function.
    unsafe { fallocate(fd, mode, offset, length) }
}

/// Defines functions that return an error's number.
macro_rules! pooled_with_number {
    ($($name:ident = pooled::number($($argument:ident: $type:ty),*) -> c_int;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(clippy::too_many_arguments, reason = "libc's own signatures")]
            pub(super) unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
                in_fiber_or!(
                    |current, os| {
                        if let Some(world) = os.world() {
                            return world.refuse(current, stringify!($name)).0;
                        }
                        // SAFETY: the caller's own arguments, valid while it waits.
                        let answer = unsafe {
                            on_pool(current, ($($argument,)*), |($($argument,)*)| Ok(real::$name($($argument),*)))
                        };
                        answer.unwrap_or_else(|errno| errno.0)
                    },
                    // SAFETY: the caller's own arguments.
                    || unsafe { real::$name($($argument),*) }
                )
            }
        )*
    };
}

pooled_with_number! {
    posix_fallocate = pooled::number(fd: c_int, offset: off_t, length: off_t) -> c_int;
    posix_spawn = pooled::number(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int;
    posix_spawnp = pooled::number(pid: *mut pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int;
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn posix_fallocate64(fd: c_int, offset: off_t, length: off_t) -> c_int {
    // SAFETY: on 64-bit Linux the same function.
    unsafe { posix_fallocate(fd, offset, length) }
}

/// Moves the caller's pointers to the thread that makes the call for it.
struct Borrowed<T>(T);

// SAFETY: the caller waits, with its pointers valid, until the call is over.
unsafe impl<T> Send for Borrowed<T> {}

impl<T> Borrowed<T> {
    /// By a method, so that a closure captures the whole and not the pointers inside.
    fn get(self) -> T {
        self.0
    }
}

/// Has no error to return, so nothing interrupts it.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sync() {
    in_fiber_or!(
        // SAFETY: no arguments.
        |_, _| run_blocking(|| unsafe { real::sync() }),
        // SAFETY: as above.
        || unsafe { real::sync() }
    );
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn getnameinfo(
    address: *const sockaddr,
    length: socklen_t,
    host: *mut c_char,
    host_length: socklen_t,
    service: *mut c_char,
    service_length: socklen_t,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller's own arguments, valid while it waits.
    let call = |address, host, service| unsafe {
        real::getnameinfo(address, length, host, host_length, service, service_length, flags)
    };
    in_fiber_or!(
        |current, os| {
            if let Some(world) = os.world() {
                real::set_errno(world.refuse(current, "getnameinfo").0);
                return libc::EAI_SYSTEM;
            }
            if let Err(errno) = refuse_if_interrupted(current) {
                real::set_errno(errno.0);
                return libc::EAI_SYSTEM;
            }
            let arguments = Borrowed((address, host, service));
            let (answer, errno) = run_blocking(move || {
                let (address, host, service) = arguments.get();
                (call(address, host, service), real::errno())
            });
            if answer == libc::EAI_SYSTEM {
                real::set_errno(errno);
            }
            answer
        },
        || call(address, host, service)
    )
}

unsafe extern "C" {
    fn __h_errno_location() -> *mut c_int;
}

/// The resolver's error, of the calling thread or fiber.
fn host_error() -> *mut c_int {
    // SAFETY: takes nothing; the place is the caller's own.
    unsafe { __h_errno_location() }
}

/// Looks a host up on the pool: the answer is in memory that belongs to the process, the error is brought along.
///
/// # Safety
/// The call may be made by another thread.
unsafe fn look_up(current: Current<'_>, call: impl Fn() -> *mut hostent) -> *mut hostent {
    const TRY_AGAIN: c_int = 2;
    if refuse_if_interrupted(current).is_err() {
        // SAFETY: the caller's own place.
        unsafe { *host_error() = TRY_AGAIN };
        return core::ptr::null_mut();
    }
    let call = Borrowed(&call);
    let (host, error) = run_blocking(move || {
        let host = (call.get())();
        // SAFETY: this thread's own place.
        (Borrowed(host), unsafe { *host_error() })
    });
    // SAFETY: the caller's own place.
    unsafe { *host_error() = error };
    host.get()
}

/// Defines the lookups that answer in memory of their own.
macro_rules! lookups {
    ($($name:ident = pooled::lookup($($argument:ident: $type:ty),*) -> *mut hostent;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $name($($argument: $type),*) -> *mut hostent {
                // SAFETY: the caller's own arguments, valid while it waits.
                let call = || unsafe { real::$name($($argument),*) };
                let answer = squall_fiber::with_current(|current| {
                    let current = current.filter(|current| current.may_suspend())?;
                    // SAFETY: the answer belongs to the process, whichever thread asks.
                    Some(unsafe { look_up(current, call) })
                });
                answer.unwrap_or_else(call)
            }
        )*
    };
}

lookups! {
    gethostbyname = pooled::lookup(name: *const c_char) -> *mut hostent;
    gethostbyname2 = pooled::lookup(name: *const c_char, family: c_int) -> *mut hostent;
    gethostbyaddr = pooled::lookup(address: *const c_void, length: socklen_t, family: c_int) -> *mut hostent;
}

pooled_with_number! {
    gethostbyname_r = pooled::number(name: *const c_char, host: *mut hostent, buffer: *mut c_char, length: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyname2_r = pooled::number(name: *const c_char, family: c_int, host: *mut hostent, buffer: *mut c_char, length: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    gethostbyaddr_r = pooled::number(address: *const c_void, address_length: socklen_t, family: c_int, host: *mut hostent, buffer: *mut c_char, length: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
}

/// Starting a shell waits until it has started.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's own arguments, valid while it waits.
    let call = |command, mode| unsafe { real::popen(command, mode) };
    if !squall_fiber::in_fiber() {
        return call(command, mode);
    }
    let arguments = Borrowed((command, mode));
    let (stream, errno) = run_blocking(move || {
        let (command, mode) = arguments.get();
        let stream = call(command, mode);
        (Borrowed(stream), real::errno())
    });
    let stream = stream.get();
    if stream.is_null() {
        real::set_errno(errno);
    }
    stream
}

/// Waits for the child.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pclose(stream: *mut FILE) -> c_int {
    super::descriptors::forget_stream(stream);
    // SAFETY: the caller's own argument.
    let call = |stream| check_int(unsafe { real::pclose(stream) });
    if !squall_fiber::in_fiber() {
        return answer_int(call(stream));
    }
    let stream = Borrowed(stream);
    let answer: Result<c_int> = run_blocking(move || call(stream.get()));
    answer_int(answer)
}
