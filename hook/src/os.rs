//! The `Os` seam: everything that a fiber can wait for passes through here, to the real operating system or a simulated one.
//!
//! A hook that finds itself in a fiber calls the [`Os`] of that fiber's scheduler. [`crate::real_os::RealOs`] tries without
//! blocking and waits in the reactor. Another implementation is attached to a scheduler as its extension, an [`OsExtension`];
//! its descriptors are whatever it says they are.
//!
//! Futexes are not in the trait: they are memory, the same in any world, and wait in this crate's own table.

use crate::errno::Result;
use crate::real;
use crate::real_os::RealOs;
use crate::world::World;
use core::ffi::{c_int, c_ulong};
use core::mem::MaybeUninit;
use squall_fiber::{Current, with_current};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// A piece of the caller's memory that a call fills. The same layout as C's `iovec`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct BufferMut(libc::iovec);

/// A piece of the caller's memory that a call reads. The same layout as C's `iovec`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Buffer(libc::iovec);

impl BufferMut {
    /// A buffer as C passes it.
    ///
    /// # Safety
    /// The memory is the caller's to write for as long as the value is used.
    pub unsafe fn new(start: *mut core::ffi::c_void, length: usize) -> Self {
        Self(libc::iovec { iov_base: start, iov_len: length })
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is: for the kernel, which judges it. Null and beyond are possible.
    pub(crate) fn start(&self) -> *mut core::ffi::c_void {
        self.0.iov_base
    }

    /// The memory.
    pub fn as_mut_slice(&mut self) -> &mut [MaybeUninit<u8>] {
        if self.is_empty() {
            return &mut [];
        }
        // SAFETY: by the contract of `new`, and not null, since it has bytes.
        unsafe { core::slice::from_raw_parts_mut(self.0.iov_base.cast(), self.0.iov_len) }
    }
}

impl Buffer {
    /// A buffer as C passes it.
    ///
    /// # Safety
    /// The memory is readable for as long as the value is used.
    pub unsafe fn new(start: *const core::ffi::c_void, length: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast_mut(), iov_len: length })
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is: for the kernel, which judges it. Null and beyond are possible.
    pub(crate) fn start(&self) -> *const core::ffi::c_void {
        self.0.iov_base
    }

    /// The memory.
    pub fn as_slice(&self) -> &[u8] {
        if self.is_empty() {
            return &[];
        }
        // SAFETY: by the contract of `new`, and not null, since it has bytes.
        unsafe { core::slice::from_raw_parts(self.0.iov_base.cast(), self.0.iov_len) }
    }

    /// What is left after the first `count` bytes.
    pub(crate) fn skip(self, count: usize) -> Self {
        let count = count.min(self.len());
        Self(libc::iovec {
            iov_base: self.0.iov_base.wrapping_byte_add(count),
            iov_len: self.0.iov_len - count,
        })
    }
}

impl core::fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "BufferMut({} bytes)", self.len())
    }
}

impl core::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

/// Room for a socket address that a call fills, as C passes it.
#[derive(Debug)]
pub struct AddressMut {
    pub(crate) address: *mut libc::sockaddr,
    pub(crate) length: *mut libc::socklen_t,
}

impl AddressMut {
    /// Room as C passes it; either pointer may be null.
    ///
    /// # Safety
    /// `length` says how many bytes there are at `address`, for as long as the value is used.
    pub unsafe fn new(address: *mut libc::sockaddr, length: *mut libc::socklen_t) -> Self {
        Self { address, length }
    }

    /// Stores an address as the kernel would: cut to the room there is, with its full length.
    pub fn set(&mut self, bytes: &[u8]) {
        if self.address.is_null() || self.length.is_null() {
            return;
        }
        // SAFETY: by the contract of the C calls that take one, `length` says how much room there is at `address`.
        unsafe {
            let room = *self.length as usize;
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.cast::<u8>(), room.min(bytes.len()));
            *self.length = bytes.len() as libc::socklen_t;
        }
    }
}

/// One descriptor of a `poll`. The same as C's `pollfd`.
pub type PollEntry = libc::pollfd;

/// An operating system, as far as it can make a fiber wait. Every call behaves as its manual page says for the descriptor's own
/// settings: O_NONBLOCK, SO_RCVTIMEO, SO_SNDTIMEO.
///
/// # Blocking
/// Every method may suspend the calling fiber, and none blocks its thread but for disk access that the page cache hides.
pub trait Os: Send + Sync {
    /// Sleeps until `deadline`, or for ever.
    fn sleep_until(&self, current: Current<'_>, deadline: Option<Instant>);
    /// `connect`.
    fn connect(&self, current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()>;
    /// `accept4`.
    fn accept(&self, current: Current<'_>, fd: RawFd, peer: AddressMut, flags: i32) -> Result<RawFd>;
    /// `recv`, `recvfrom`.
    fn receive(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffer: BufferMut,
        flags: i32,
        from: Option<AddressMut>,
    ) -> Result<usize>;
    /// `send`, `sendto`; `to` is the address if there is one.
    fn send(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffer: Buffer,
        flags: i32,
        to: Option<&[u8]>,
    ) -> Result<usize>;
    /// `recvmsg`.
    fn receive_message(
        &self,
        current: Current<'_>,
        fd: RawFd,
        message: &mut libc::msghdr,
        flags: i32,
    ) -> Result<usize>;
    /// `recvmmsg`, at least one message: with MSG_WAITFORONE waits for the first only, and without for all, but looks after each whether
    /// `timeout` is over. That does not cut a wait short.
    fn receive_messages(
        &self,
        current: Current<'_>,
        fd: RawFd,
        messages: &mut [libc::mmsghdr],
        flags: i32,
        timeout: Option<Duration>,
    ) -> Result<usize> {
        let limit = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut each = flags & !libc::MSG_WAITFORONE;
        let mut received = 0;
        for message in messages {
            match self.receive_message(current, fd, &mut message.msg_hdr, each) {
                Ok(size) => message.msg_len = size as u32,
                // The error comes again with the next call.
                Err(_) if received > 0 => break,
                Err(errno) => return Err(errno),
            }
            received += 1;
            if limit.is_some_and(|limit| limit <= Instant::now()) {
                break;
            }
            if (flags & libc::MSG_WAITFORONE) != 0 {
                each |= libc::MSG_DONTWAIT;
            }
        }
        Ok(received)
    }
    /// `sendmsg`.
    fn send_message(
        &self,
        current: Current<'_>,
        fd: RawFd,
        message: &libc::msghdr,
        flags: i32,
    ) -> Result<usize>;
    /// `read`, `readv`.
    fn read(&self, current: Current<'_>, fd: RawFd, buffers: &mut [BufferMut]) -> Result<usize>;
    /// `write`, `writev`.
    fn write(&self, current: Current<'_>, fd: RawFd, buffers: &[Buffer]) -> Result<usize>;
    /// `poll`; no timeout means for ever.
    fn poll(
        &self,
        current: Current<'_>,
        entries: &mut [PollEntry],
        timeout: Option<Duration>,
    ) -> Result<usize>;
    /// `epoll_wait`; no timeout means for ever.
    fn wait_events(
        &self,
        current: Current<'_>,
        epoll: RawFd,
        events: &mut [MaybeUninit<libc::epoll_event>],
        timeout: Option<Duration>,
    ) -> Result<usize>;
    /// `sendfile`: from where `input` stands, or from `offset`, which is moved on.
    fn send_file(
        &self,
        current: Current<'_>,
        out: RawFd,
        input: RawFd,
        offset: Option<&mut i64>,
        count: usize,
    ) -> Result<usize>;
    /// `fcntl`: duplicates, flags, and whether a descriptor is open at all.
    fn control(&self, current: Current<'_>, fd: RawFd, command: c_int, argument: c_ulong) -> Result<c_int>;
    /// `close`.
    fn close(&self, current: Current<'_>, fd: RawFd) -> Result<()>;
    /// `fsync`, or `fdatasync` if `data_only`.
    fn sync_file(&self, current: Current<'_>, fd: RawFd, data_only: bool) -> Result<()>;

    /// The calls that never wait, if this operating system answers those, too: a simulation does.
    fn world(&self) -> Option<&dyn World> {
        None
    }

    /// When timers must fire for the caller's clock to show `deadline`. The same moment, unless the caller's clock runs faster or slower
    /// than the scheduler's.
    fn deadline(&self, current: Current<'_>, deadline: Instant) -> Instant {
        let _ = current;
        deadline
    }
}

/// What is attached to a scheduler to give its fibers another operating system.
///
/// ```
/// # fn attach(os: &'static dyn squall_hook::Os) {
/// let extension: &'static squall_hook::OsExtension = Box::leak(Box::new(squall_hook::OsExtension(os)));
/// let manager = squall_iomanager::IoManager::with_extension(1, true, Some(extension)).unwrap();
/// # }
/// ```
pub struct OsExtension(pub &'static dyn Os);

impl core::fmt::Debug for OsExtension {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("OsExtension")
    }
}

/// The test that every hook makes first: in a fiber, calls the first closure with the fiber and its operating system, else the
/// second.
///
/// Outside a fiber that is one thread-local read and a jump. A macro, because a closure that is given to a function is built
/// before the test: it would cost every hook a stack frame and as many stores as it has arguments. For the same reason what happens in
/// a fiber is a function of its own, which takes the arguments along by value: they must be `Copy`.
macro_rules! in_fiber_or {
    (|$current:tt, $os:tt| $fiber:expr, || $plain:expr $(,)?) => {
        if squall_fiber::in_fiber() {
            $crate::os::in_fiber_or_bypass(move |$current, $os| $fiber, move || $plain)
        } else {
            $plain
        }
    };
}
pub(crate) use in_fiber_or;

/// As [`in_fiber_or`], for the body of the hooks that matter most: what happens in a fiber is a function with the hook's own arguments, which
/// so stay in their registers, and outside a fiber nothing is paid but the test.
macro_rules! hot_hook {
    ($name:ident($($argument:ident: $type:ty),*) -> $result:ty, |$current:tt, $os:tt| $fiber:expr) => {{
        #[inline(never)]
        unsafe extern "C" fn in_fiber($($argument: $type),*) -> $result {
            // SAFETY: the caller's own arguments.
            let bypass = || unsafe { $crate::real::$name($($argument),*) };
            $crate::os::in_fiber(|$current, $os| $fiber).unwrap_or_else(bypass)
        }
        if squall_fiber::in_fiber() {
            // SAFETY: the caller's own arguments.
            unsafe { in_fiber($($argument),*) }
        } else {
            // SAFETY: as above.
            unsafe { $crate::real::$name($($argument),*) }
        }
    }};
}
pub(crate) use hot_hook;

/// Calls the first closure with the running fiber, or the second if it may not wait now.
#[inline(never)]
pub(crate) fn in_fiber_or_bypass<R>(
    fiber: impl FnOnce(Current<'_>, &dyn Os) -> R,
    plain: impl FnOnce() -> R,
) -> R
where
    R: PartialOrd + Default,
{
    in_fiber(fiber).unwrap_or_else(plain)
}

/// Calls `f` with the running fiber and its operating system; `None` if there is no fiber, or it may not wait now.
#[inline(always)]
pub(crate) fn in_fiber<R>(f: impl FnOnce(Current<'_>, &dyn Os) -> R) -> Option<R>
where
    R: PartialOrd + Default,
{
    with_current(|current| {
        let current = current?;
        if !current.may_suspend() {
            current.count_hook_bypass();
            return None;
        }
        current.count_hook_hit();
        // An attempt that would block leaves its EAGAIN in errno. A call that succeeds in the end must not: programs set errno to 0,
        // make several calls, and look at it once.
        let errno = real::errno();
        let answer = match current.extension() {
            None => f(current, &RealOs),
            Some(extension) => match extension.downcast_ref::<OsExtension>() {
                Some(OsExtension(os)) => f(current, *os),
                None => f(current, &RealOs),
            },
        };
        if answer >= R::default() {
            real::set_errno(errno);
        }
        Some(answer)
    })
}
