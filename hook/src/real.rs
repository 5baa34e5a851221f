//! libc's own functions, behind the names that this crate takes over.
//!
//! All are looked up with `dlsym(RTLD_NEXT)` by a constructor, before `main` and so before any thread. A call that comes even
//! earlier (another library's constructor) looks its function up itself: `dlsym` calls none of the hooked functions.

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};
use libc::{
    FILE, addrinfo, clockid_t, hostent, id_t, idtype_t, iovec, mode_t, mqd_t, msghdr, nfds_t, off_t, pid_t,
    pollfd, pthread_barrier_t, pthread_cond_t, pthread_key_t, pthread_mutex_t, pthread_once_t,
    pthread_rwlock_t, pthread_spinlock_t, pthread_t, rusage, sem_t, siginfo_t, sigset_t, size_t, sockaddr,
    socklen_t, ssize_t, timespec, useconds_t,
};

fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: `name` is a C string; dlsym only looks it up.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

macro_rules! real_functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            mod $name {
                use super::*;

                pub(super) type Function = unsafe extern "C" fn($($type),*) $(-> $result)?;

                /// Never null, so that no call has to ask.
                pub(super) static FUNCTION: AtomicPtr<c_void> = AtomicPtr::new(first as Function as *mut c_void);

                /// Takes libc's place until it has been looked up.
                #[cold]
                #[allow(clippy::too_many_arguments, reason = "libc's own signatures")]
                unsafe extern "C" fn first($($argument: $type),*) $(-> $result)? {
                    // Without the real function the program could not have run without this library either.
                    assert!(resolve(), concat!("libc exports no ", stringify!($name)));
                    // SAFETY: by the caller's contract.
                    unsafe { super::$name($($argument),*) }
                }

                /// False if this libc has no such function: an older one may have it in a library that the program does not use.
                pub(super) fn resolve() -> bool {
                    const NAME: &CStr = match CStr::from_bytes_with_nul(
                        concat!(stringify!($name), "\0").as_bytes(),
                    ) {
                        Ok(name) => name,
                        Err(_) => unreachable!(),
                    };
                    let function = next_symbol(NAME);
                    let is_there = !function.is_null();
                    if is_there {
                        FUNCTION.store(function, Ordering::Relaxed);
                    }
                    is_there
                }
            }

            #[doc = concat!("libc's own `", stringify!($name), "`.")]
            ///
            /// # Safety
            /// As for the libc function.
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "libc's own signatures")]
            pub(crate) unsafe fn $name($($argument: $type),*) $(-> $result)? {
                let function = $name::FUNCTION.load(Ordering::Relaxed);
                // SAFETY: libc's function of that name has this signature, and so has what stands in for it.
                let function = unsafe { core::mem::transmute::<*mut c_void, $name::Function>(function) };
                // SAFETY: by the caller's contract.
                unsafe { function($($argument),*) }
            }
        )*

        /// Looks all of them up, so that no later call has to.
        pub(crate) fn resolve_all() {
            $($name::resolve();)*
        }
    };
}

real_functions! {
    fn sleep(seconds: c_uint) -> c_uint;
    fn usleep(microseconds: useconds_t) -> c_int;
    fn nanosleep(request: *const timespec, remaining: *mut timespec) -> c_int;
    fn clock_nanosleep(clock: c_int, flags: c_int, request: *const timespec, remaining: *mut timespec) -> c_int;
    fn sched_yield() -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int;
    fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int;
    fn recv(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t;
    fn recvfrom(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int, address: *mut sockaddr, address_length: *mut socklen_t) -> ssize_t;
    fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    fn send(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int) -> ssize_t;
    fn sendto(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int, address: *const sockaddr, address_length: socklen_t) -> ssize_t;
    fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    fn read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t;
    fn readv(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t;
    fn write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t;
    fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t;
    fn preadv2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    fn pwritev2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    fn pread(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t;
    fn preadv(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t;
    fn pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t;
    fn pwritev(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t;
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    fn splice(input: c_int, input_offset: *mut off_t, output: c_int, output_offset: *mut off_t, length: size_t, flags: c_uint) -> ssize_t;
    fn tee(input: c_int, output: c_int, length: size_t, flags: c_uint) -> ssize_t;
    fn vmsplice(fd: c_int, vectors: *const iovec, count: size_t, flags: c_uint) -> ssize_t;
    fn copy_file_range(input: c_int, input_offset: *mut off_t, output: c_int, output_offset: *mut off_t, length: size_t, flags: c_uint) -> ssize_t;
    fn flock(fd: c_int, operation: c_int) -> c_int;
    fn lockf(fd: c_int, command: c_int, length: off_t) -> c_int;
    fn sync();
    fn syncfs(fd: c_int) -> c_int;
    fn sync_file_range(fd: c_int, offset: off_t, length: off_t, flags: c_uint) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int;
    fn posix_fallocate(fd: c_int, offset: off_t, length: off_t) -> c_int;
    fn msync(address: *mut c_void, length: size_t, flags: c_int) -> c_int;
    fn fclose(stream: *mut FILE) -> c_int;
    fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE;
    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE;
    fn pclose(stream: *mut FILE) -> c_int;
    fn system(command: *const c_char) -> c_int;
    fn posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int;
    fn posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: *const *mut c_char, environment: *const *mut c_char) -> c_int;
    fn wait4(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t;
    fn waitid(kind: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> c_int;
    fn sigsuspend(mask: *const sigset_t) -> c_int;
    fn mq_receive(queue: mqd_t, message: *mut c_char, size: size_t, priority: *mut c_uint) -> ssize_t;
    fn mq_send(queue: mqd_t, message: *const c_char, size: size_t, priority: c_uint) -> c_int;
    fn mq_timedreceive(queue: mqd_t, message: *mut c_char, size: size_t, priority: *mut c_uint, time: *const timespec) -> ssize_t;
    fn mq_timedsend(queue: mqd_t, message: *const c_char, size: size_t, priority: c_uint, time: *const timespec) -> c_int;
    fn sigwait(set: *const sigset_t, signal: *mut c_int) -> c_int;
    fn sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int;
    fn sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, timeout: *const timespec) -> c_int;
    fn msgsnd(queue: c_int, message: *const c_void, size: size_t, flags: c_int) -> c_int;
    fn msgrcv(queue: c_int, message: *mut c_void, size: size_t, kind: c_long, flags: c_int) -> ssize_t;
    fn semop(set: c_int, operations: *mut c_void, count: size_t) -> c_int;
    fn semtimedop(set: c_int, operations: *mut c_void, count: size_t, timeout: *const timespec) -> c_int;
    fn getnameinfo(address: *const sockaddr, length: socklen_t, host: *mut c_char, host_length: socklen_t, service: *mut c_char, service_length: socklen_t, flags: c_int) -> c_int;
    fn gethostbyname(name: *const c_char) -> *mut hostent;
    fn gethostbyname2(name: *const c_char, family: c_int) -> *mut hostent;
    fn gethostbyaddr(address: *const c_void, length: socklen_t, family: c_int) -> *mut hostent;
    fn gethostbyname_r(name: *const c_char, host: *mut hostent, buffer: *mut c_char, length: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    fn gethostbyname2_r(name: *const c_char, family: c_int, host: *mut hostent, buffer: *mut c_char, length: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    fn gethostbyaddr_r(address: *const c_void, address_length: socklen_t, family: c_int, host: *mut hostent, buffer: *mut c_char, length: size_t, result: *mut *mut hostent, error: *mut c_int) -> c_int;
    fn poll(entries: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int;
    fn ppoll(entries: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const libc::sigset_t) -> c_int;
    fn epoll_wait(epfd: c_int, events: *mut libc::epoll_event, capacity: c_int, timeout_ms: c_int) -> c_int;
    fn epoll_pwait(epfd: c_int, events: *mut libc::epoll_event, capacity: c_int, timeout_ms: c_int, mask: *const libc::sigset_t) -> c_int;
    fn select(limit: c_int, read: *mut libc::fd_set, write: *mut libc::fd_set, except: *mut libc::fd_set, timeout: *mut libc::timeval) -> c_int;
    fn pselect(limit: c_int, read: *mut libc::fd_set, write: *mut libc::fd_set, except: *mut libc::fd_set, timeout: *const timespec, mask: *const libc::sigset_t) -> c_int;
    fn recvmmsg(fd: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    fn sendmmsg(fd: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn sendfile(out: c_int, input: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    fn close(fd: c_int) -> c_int;
    fn dup(fd: c_int) -> c_int;
    fn dup2(fd: c_int, target: c_int) -> c_int;
    fn dup3(fd: c_int, target: c_int, flags: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, option: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int;
    fn setsockopt(fd: c_int, level: c_int, option: c_int, value: *const c_void, length: socklen_t) -> c_int;
    fn pipe2(pair: *mut c_int, flags: c_int) -> c_int;
    fn fsync(fd: c_int) -> c_int;
    fn fdatasync(fd: c_int) -> c_int;
    fn getaddrinfo(node: *const c_char, service: *const c_char, hints: *const addrinfo, result: *mut *mut addrinfo) -> c_int;
    fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t;
    fn pthread_join(thread: pthread_t, value: *mut *mut c_void) -> c_int;
    fn pthread_tryjoin_np(thread: pthread_t, value: *mut *mut c_void) -> c_int;
    fn pthread_timedjoin_np(thread: pthread_t, value: *mut *mut c_void, time: *const timespec) -> c_int;
    fn pthread_clockjoin_np(thread: pthread_t, value: *mut *mut c_void, clock: clockid_t, time: *const timespec) -> c_int;
    fn pthread_mutex_lock(mutex: *mut pthread_mutex_t) -> c_int;
    fn pthread_mutex_trylock(mutex: *mut pthread_mutex_t) -> c_int;
    fn pthread_mutex_timedlock(mutex: *mut pthread_mutex_t, time: *const timespec) -> c_int;
    fn pthread_mutex_clocklock(mutex: *mut pthread_mutex_t, clock: clockid_t, time: *const timespec) -> c_int;
    fn pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int;
    fn pthread_cond_wait(condition: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int;
    fn pthread_cond_timedwait(condition: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, time: *const timespec) -> c_int;
    fn pthread_cond_clockwait(condition: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, clock: clockid_t, time: *const timespec) -> c_int;
    fn pthread_cond_signal(condition: *mut pthread_cond_t) -> c_int;
    fn pthread_cond_broadcast(condition: *mut pthread_cond_t) -> c_int;
    fn pthread_rwlock_rdlock(rwlock: *mut pthread_rwlock_t) -> c_int;
    fn pthread_rwlock_tryrdlock(rwlock: *mut pthread_rwlock_t) -> c_int;
    fn pthread_rwlock_timedrdlock(rwlock: *mut pthread_rwlock_t, time: *const timespec) -> c_int;
    fn pthread_rwlock_clockrdlock(rwlock: *mut pthread_rwlock_t, clock: clockid_t, time: *const timespec) -> c_int;
    fn pthread_rwlock_wrlock(rwlock: *mut pthread_rwlock_t) -> c_int;
    fn pthread_rwlock_trywrlock(rwlock: *mut pthread_rwlock_t) -> c_int;
    fn pthread_rwlock_timedwrlock(rwlock: *mut pthread_rwlock_t, time: *const timespec) -> c_int;
    fn pthread_rwlock_clockwrlock(rwlock: *mut pthread_rwlock_t, clock: clockid_t, time: *const timespec) -> c_int;
    fn pthread_rwlock_unlock(rwlock: *mut pthread_rwlock_t) -> c_int;
    fn pthread_spin_lock(lock: *mut pthread_spinlock_t) -> c_int;
    fn pthread_spin_trylock(lock: *mut pthread_spinlock_t) -> c_int;
    fn pthread_barrier_wait(barrier: *mut pthread_barrier_t) -> c_int;
    fn sem_wait(semaphore: *mut sem_t) -> c_int;
    fn sem_trywait(semaphore: *mut sem_t) -> c_int;
    fn sem_timedwait(semaphore: *mut sem_t, time: *const timespec) -> c_int;
    fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, time: *const timespec) -> c_int;
    fn sem_post(semaphore: *mut sem_t) -> c_int;
    fn pthread_key_create(key: *mut pthread_key_t, destructor: Option<unsafe extern "C" fn(*mut c_void)>) -> c_int;
    fn pthread_key_delete(key: pthread_key_t) -> c_int;
}

/// libc's own `pthread_once`, through which C++ may throw.
///
/// # Safety
/// As for the libc function.
pub(crate) unsafe fn pthread_once(control: *mut pthread_once_t, initialise: extern "C-unwind" fn()) -> c_int {
    static FUNCTION: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    type Once = unsafe extern "C-unwind" fn(*mut pthread_once_t, extern "C-unwind" fn()) -> c_int;
    let mut function = FUNCTION.load(Ordering::Relaxed);
    if function.is_null() {
        function = next_symbol(c"pthread_once");
        assert!(!function.is_null(), "libc exports no pthread_once");
        FUNCTION.store(function, Ordering::Relaxed);
    }
    // SAFETY: libc's function of that name has this signature; the rest by the caller's contract.
    unsafe { core::mem::transmute::<*mut c_void, Once>(function)(control, initialise) }
}

/// Any system call, with the C convention: -1 and errno on failure.
///
/// # Safety
/// As for the system call.
#[inline(always)]
pub(crate) unsafe fn syscall(number: c_long, arguments: [c_long; 6]) -> c_long {
    // SAFETY: by the caller's contract.
    let result = unsafe { squall_fiber::sys::raw_syscall(number, arguments) };
    // The kernel reserves the last page of addresses for errors.
    if (-4095..0).contains(&result) {
        set_errno(-result as c_int);
        -1
    } else {
        result
    }
}

/// The caller's errno: the fiber's own, in a private-TLS fiber.
#[inline]
pub(crate) fn errno() -> c_int {
    // SAFETY: the address is valid for the calling thread or fiber.
    unsafe { *libc::__errno_location() }
}

#[inline]
pub(crate) fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value };
}
