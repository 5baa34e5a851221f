//! Futexes, threads, children, and names: what waits without a descriptor.

use crate::errno::{answer_int, answer_long, check_int};
use crate::os::{BufferMut, in_fiber_or};
use crate::real_os::child;
use crate::real_os::wait::refuse_if_interrupted;
use crate::world::{World, in_world_or};
use crate::{futex, real};
use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use libc::{addrinfo, id_t, idtype_t, pid_t, pthread_key_t, rusage, siginfo_t};
use squall_fiber::{Current, run_blocking};
use std::ffi::CString;

/// Variadic in C: the arguments travel in the same registers as these.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn syscall(
    number: c_long,
    a1: c_long,
    a2: c_long,
    a3: c_long,
    a4: c_long,
    a5: c_long,
    a6: c_long,
) -> c_long {
    if number == libc::SYS_futex && futex::is_for_kernel(a1 as usize, a2 as c_int) {
        // SAFETY: the caller's own arguments.
        return unsafe { real::syscall(number, [a1, a2, a3, a4, a5, a6]) };
    }
    // SAFETY: as above.
    unsafe { hooked_syscall(number, [a1, a2, a3, a4, a5, a6]) }
}

/// # Safety
/// As for the system call.
#[inline(never)]
unsafe fn hooked_syscall(number: c_long, arguments: [c_long; 6]) -> c_long {
    if number != libc::SYS_futex {
        return in_world_or(
            // SAFETY: by the contract.
            |current, world| unsafe { syscall_in_world(current, world, number, arguments) },
            // SAFETY: as above.
            || unsafe { real::syscall(number, arguments) },
        );
    }
    in_fiber_or!(
        // SAFETY: by the contract.
        |current, os| answer_long(unsafe { futex::futex(Some((current, os)), arguments) }),
        // SAFETY: as above.
        || answer_long(unsafe { futex::futex(None, arguments) }),
    )
}

/// What programs ask the kernel for past libc's own functions.
///
/// # Safety
/// As for the system call.
unsafe fn syscall_in_world(
    current: Current<'_>,
    world: &dyn World,
    number: c_long,
    arguments: [c_long; 6],
) -> c_long {
    match number {
        libc::SYS_getrandom => {
            // SAFETY: the caller passes a buffer of that length.
            let mut buffer = unsafe { BufferMut::new(arguments[0] as *mut c_void, arguments[1] as usize) };
            world.fill_random(current, buffer.as_mut_slice());
            arguments[1]
        }
        // It says what the processor and its caches do: nothing that a program can tell.
        libc::SYS_membarrier => {
            // SAFETY: the caller's own arguments.
            unsafe { real::syscall(number, arguments) }
        }
        _ => answer_long(Err(world.refuse(current, "syscall"))),
    }
}

/// Moves the caller's raw pointers to the thread that makes the call for it.
struct Borrowed<T>(T);

// SAFETY: the caller waits, with its pointers valid, until the call is over.
unsafe impl<T> Send for Borrowed<T> {}

impl<T> Borrowed<T> {
    /// By a method, so that a closure captures the whole and not the pointers inside.
    fn get(self) -> T {
        self.0
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            if let Err(errno) = refuse_if_interrupted(current) {
                real::set_errno(errno.0);
                return libc::EAI_SYSTEM;
            }
            if let Some(world) = os.world() {
                // SAFETY: the caller's own arguments.
                return unsafe { getaddrinfo_in_world(current, world, node, service, hints, result) };
            }
            let arguments = Borrowed((node, service, hints, result));
            let (answer, errno) = run_blocking(move || {
                let (node, service, hints, result) = arguments.get();
                // SAFETY: the caller's own arguments, valid while it waits.
                (unsafe { real::getaddrinfo(node, service, hints, result) }, real::errno())
            });
            if answer == libc::EAI_SYSTEM {
                real::set_errno(errno);
            }
            answer
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::getaddrinfo(node, service, hints, result) },
    )
}

/// Asks libc for numbers only: those it translates without looking anywhere.
///
/// # Safety
/// As for `getaddrinfo`.
unsafe fn getaddrinfo_in_world(
    current: Current<'_>,
    world: &dyn World,
    node: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    result: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: an addrinfo of zeroes asks for nothing in particular.
    let mut numeric: addrinfo = unsafe { hints.as_ref().copied().unwrap_or_else(|| core::mem::zeroed()) };
    numeric.ai_flags |= libc::AI_NUMERICHOST;
    // SAFETY: the caller's own arguments.
    let answer = unsafe { real::getaddrinfo(node, service, &numeric, result) };
    if answer != libc::EAI_NONAME || node.is_null() {
        return answer;
    }
    // SAFETY: the caller passes a C string.
    let Some(address) = world.resolve(current, unsafe { CStr::from_ptr(node) }) else { return answer };
    let Ok(address) = CString::new(address.to_string()) else { return answer };
    // SAFETY: the caller's own arguments, but for the name.
    unsafe { real::getaddrinfo(address.as_ptr(), service, &numeric, result) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t {
    in_fiber_or!(
        // SAFETY: the caller's own arguments; any thread may wait for the process's children.
        |current, _| unsafe {
            let call = |options| check_int(real::waitpid(pid, status, options));
            answer_int(child::wait_for(current, (pid > 0).then_some(pid), options, call))
        },
        // SAFETY: as above.
        || unsafe { real::waitpid(pid, status, options) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn wait(status: *mut c_int) -> pid_t {
    // SAFETY: what the manual page says wait is.
    unsafe { waitpid(-1, status, 0) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn wait4(
    pid: pid_t,
    status: *mut c_int,
    options: c_int,
    usage: *mut rusage,
) -> pid_t {
    in_fiber_or!(
        // SAFETY: the caller's own arguments; any thread may wait for the process's children.
        |current, _| unsafe {
            let call = |options| check_int(real::wait4(pid, status, options, usage));
            answer_int(child::wait_for(current, (pid > 0).then_some(pid), options, call))
        },
        // SAFETY: as above.
        || unsafe { real::wait4(pid, status, options, usage) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn wait3(status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t {
    // SAFETY: what the manual page says wait3 is.
    unsafe { wait4(-1, status, options, usage) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn waitid(
    kind: idtype_t,
    id: id_t,
    info: *mut siginfo_t,
    options: c_int,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments; any thread may wait for the process's children.
        |current, _| unsafe {
            // It says by what it fills in whether a child has changed.
            let call = |options| {
                let mut found: siginfo_t = core::mem::zeroed();
                check_int(real::waitid(kind, id, &mut found, options))?;
                if !info.is_null() {
                    *info = found;
                }
                Ok(found.si_pid())
            };
            let pid = (kind == libc::P_PID).then_some(id as pid_t);
            answer_int(child::wait_for(current, pid, options, call).map(|_| 0))
        },
        // SAFETY: as above.
        || unsafe { real::waitid(kind, id, info, options) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_key_create(
    key: *mut pthread_key_t,
    destructor: Option<unsafe extern "C" fn(*mut c_void)>,
) -> c_int {
    // SAFETY: the caller's own arguments.
    let result = unsafe { real::pthread_key_create(key, destructor) };
    if result == 0 {
        // SAFETY: the call has filled it.
        squall_fiber::note_pthread_key(unsafe { *key }, destructor);
    }
    result
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_key_delete(key: pthread_key_t) -> c_int {
    squall_fiber::forget_pthread_key(key);
    // SAFETY: no memory is involved.
    unsafe { real::pthread_key_delete(key) }
}
