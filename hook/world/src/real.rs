//! libc's own functions behind the names that this crate takes over, looked up when first called. (`squall-hook` looks its own up before
//! `main`, because they are called in fibers of the real world; these are not on anybody's hot path but the clock, and one load is cheap.)

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};
use libc::{
    DIR, clockid_t, mode_t, off_t, pid_t, pthread_attr_t, pthread_t, size_t, sockaddr, socklen_t, ssize_t,
    timespec, timeval,
};

macro_rules! real_functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(
            #[doc = concat!("libc's own `", stringify!($name), "`.")]
            ///
            /// # Safety
            /// As for the libc function.
            #[inline]
            pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
                static FUNCTION: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
                let mut function = FUNCTION.load(Ordering::Relaxed);
                if function.is_null() {
                    const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => unreachable!(),
                    };
                    // SAFETY: `NAME` is a C string; dlsym only looks it up.
                    function = unsafe { libc::dlsym(libc::RTLD_NEXT, NAME.as_ptr()) };
                    // Without the real function the program could not have run without this library either.
                    assert!(!function.is_null(), concat!("libc exports no ", stringify!($name)));
                    FUNCTION.store(function, Ordering::Relaxed);
                }
                // SAFETY: libc's function of that name has this signature.
                let function = unsafe {
                    core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> $result>(function)
                };
                // SAFETY: by the caller's contract.
                unsafe { function($($argument),*) }
            }
        )*
    };
}

real_functions! {
    fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int;
    fn gettimeofday(time: *mut timeval, zone: *mut c_void) -> c_int;
    fn time(result: *mut libc::time_t) -> libc::time_t;
    fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t;
    fn getpid() -> pid_t;
    fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    fn getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    fn fstat(fd: c_int, status: *mut libc::stat) -> c_int;
    fn stat(path: *const c_char, status: *mut libc::stat) -> c_int;
    fn lstat(path: *const c_char, status: *mut libc::stat) -> c_int;
    fn statx(directory: c_int, path: *const c_char, flags: c_int, mask: c_uint, status: *mut libc::statx) -> c_int;
    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
    fn ftruncate(fd: c_int, length: off_t) -> c_int;
    fn rename(from: *const c_char, to: *const c_char) -> c_int;
    fn unlink(path: *const c_char) -> c_int;
    fn rmdir(path: *const c_char) -> c_int;
    fn mkdir(path: *const c_char, mode: mode_t) -> c_int;
    fn opendir(path: *const c_char) -> *mut DIR;
    fn readdir64(stream: *mut DIR) -> *mut libc::dirent64;
    fn closedir(stream: *mut DIR) -> c_int;
    fn dirfd(stream: *mut DIR) -> c_int;
    fn pthread_create(thread: *mut pthread_t, attributes: *const pthread_attr_t, start: extern "C" fn(*mut c_void) -> *mut c_void, argument: *mut c_void) -> c_int;
    fn fork() -> pid_t;
    fn epoll_create1(flags: c_int) -> c_int;
    fn eventfd(initial: c_uint, flags: c_int) -> c_int;
    fn realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char;
}
