//! Files on disks: opening, reading and writing at an offset, locking, moving data inside the kernel.

use super::aliases::check_fits;
use crate::errno::{Errno, Result, answer_int, answer_size, check, check_int};
use crate::os::{Buffer, BufferMut, Os, in_fiber_or};
use crate::real;
use crate::real_os::{disk, forget, splice};
use crate::world::in_world_or;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use libc::{iovec, mode_t, off_t, size_t, ssize_t};
use squall_fiber::Current;

/// A path as C passes it.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn path<'a>(path: *const c_char) -> Result<&'a CStr> {
    // SAFETY: by the contract.
    if path.is_null() { Err(Errno(libc::EFAULT)) } else { Ok(unsafe { CStr::from_ptr(path) }) }
}

/// Variadic in C: the mode, if any, travels in the same register as this one's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes a C string.
        |current, os| unsafe { open_in_fiber(current, os, libc::AT_FDCWD, name, flags, mode) },
        // SAFETY: the caller's own arguments.
        || opened(unsafe { real::open(name, flags, mode) })
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn openat(
    directory: c_int,
    name: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes a C string.
        |current, os| unsafe { open_in_fiber(current, os, directory, name, flags, mode) },
        // SAFETY: the caller's own arguments.
        || opened(unsafe { real::openat(directory, name, flags, mode) })
    )
}

/// # Safety
/// `name` is null or a C string.
unsafe fn open_in_fiber(
    current: Current<'_>,
    os: &dyn Os,
    directory: c_int,
    name: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: by the contract.
    let name = match unsafe { path(name) } {
        Ok(name) => name,
        Err(errno) => return answer_int(Err(errno)),
    };
    answer_int(match os.world() {
        None => disk::open(current, directory, name, flags, mode),
        Some(world) if directory == libc::AT_FDCWD || name.to_bytes().starts_with(b"/") => {
            world.open(current, name, flags, mode)
        }
        Some(world) => Err(world.refuse(current, "openat below a directory")),
    })
}

/// A descriptor has been opened, or not.
fn opened(fd: c_int) -> c_int {
    if fd >= 0 {
        forget(fd);
    }
    fd
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn creat(name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: what the manual page says creat is.
    unsafe { open(name, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

/// # Safety
/// `vectors` points to `count` vectors.
unsafe fn read_at(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes so many vectors, and a BufferMut has the layout of one. They are only read.
            let buffers = unsafe {
                core::slice::from_raw_parts_mut(vectors.cast_mut().cast::<BufferMut>(), count as usize)
            };
            answer_size(match (os.world(), u64::try_from(offset)) {
                (_, Err(_)) => Err(Errno::INVAL),
                (Some(world), Ok(offset)) => world.read_at(current, fd, buffers, offset),
                (None, Ok(_)) => {
                    let size = buffers.iter().map(BufferMut::len).fold(0, usize::saturating_add);
                    // SAFETY: as above.
                    unsafe { disk::read(current, fd, vectors, count, size, offset) }
                }
            })
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::preadv(fd, vectors, count, offset) }
    )
}

/// # Safety
/// `vectors` points to `count` vectors.
unsafe fn write_at(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    in_fiber_or!(
        |current, os| {
            answer_size(match (os.world(), u64::try_from(offset)) {
                (_, Err(_)) => Err(Errno::INVAL),
                (Some(world), Ok(offset)) => {
                    // SAFETY: the caller passes so many vectors, and a Buffer has the layout of one.
                    let buffers =
                        unsafe { core::slice::from_raw_parts(vectors.cast::<Buffer>(), count as usize) };
                    world.write_at(current, fd, buffers, offset)
                }
                // SAFETY: as above.
                (None, Ok(_)) => unsafe { disk::write(current, fd, vectors, count, offset) },
            })
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::pwritev(fd, vectors, count, offset) }
    )
}

/// Whether the kernel would look at the vectors at all.
fn are_vectors(vectors: *const iovec, count: c_int) -> bool {
    !vectors.is_null() && (1..=super::files::VECTORS_MAX).contains(&count)
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pread(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    offset: off_t,
) -> ssize_t {
    if !squall_fiber::in_fiber() {
        // SAFETY: the caller's own arguments.
        return unsafe { real::pread(fd, buffer, length, offset) };
    }
    // SAFETY: the caller passes a buffer of that length.
    unsafe { read_at(fd, &iovec { iov_base: buffer, iov_len: length }, 1, offset) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pwrite(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    offset: off_t,
) -> ssize_t {
    if !squall_fiber::in_fiber() {
        // SAFETY: the caller's own arguments.
        return unsafe { real::pwrite(fd, buffer, length, offset) };
    }
    // SAFETY: the caller passes a buffer of that length, which is only read.
    unsafe { write_at(fd, &iovec { iov_base: buffer.cast_mut(), iov_len: length }, 1, offset) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn preadv(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    if !are_vectors(vectors, count) {
        // SAFETY: the kernel judges the caller's own arguments.
        return unsafe { real::preadv(fd, vectors, count, offset) };
    }
    // SAFETY: the caller passes so many vectors.
    unsafe { read_at(fd, vectors, count, offset) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pwritev(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    if !are_vectors(vectors, count) {
        // SAFETY: the kernel judges the caller's own arguments.
        return unsafe { real::pwritev(fd, vectors, count, offset) };
    }
    // SAFETY: the caller passes so many vectors.
    unsafe { write_at(fd, vectors, count, offset) }
}

/// Without flags it is `preadv`, or `readv` where the file stands. With flags the kernel is asked directly: most of them are about not
/// waiting.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn preadv2(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's own arguments.
    unsafe {
        match (flags, offset) {
            (0, disk::WHERE_IT_STANDS) => super::files::readv(fd, vectors, count),
            (0, _) => preadv(fd, vectors, count, offset),
            _ => in_world_or(
                |current, world| answer_size(Err(world.refuse(current, "preadv2 with flags"))),
                || real::preadv2(fd, vectors, count, offset, flags),
            ),
        }
    }
}

/// As `preadv2`; with flags that sync, on the blocking pool.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pwritev2(
    fd: c_int,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's own arguments.
    let call = || unsafe { real::pwritev2(fd, vectors, count, offset, flags) };
    // SAFETY: as above.
    unsafe {
        match (flags, offset) {
            (0, disk::WHERE_IT_STANDS) => super::files::writev(fd, vectors, count),
            (0, _) => pwritev(fd, vectors, count, offset),
            _ if (flags & (libc::RWF_SYNC | libc::RWF_DSYNC)) == 0 => in_world_or(
                |current, world| answer_size(Err(world.refuse(current, "pwritev2 with flags"))),
                call,
            ),
            _ => in_fiber_or!(
                |current, os| match os.world() {
                    Some(world) => answer_size(Err(world.refuse(current, "pwritev2 with flags"))),
                    None => answer_size(crate::real_os::pool::on_pool(current, vectors, |vectors| {
                        check(real::pwritev2(fd, vectors, count, offset, flags))
                    })),
                },
                || call()
            ),
        }
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn flock(fd: c_int, operation: c_int) -> c_int {
    in_fiber_or!(
        |current, os| {
            if let Some(world) = os.world() {
                return answer_int(world.lock_file(current, fd, operation).map(|()| 0));
            }
            // SAFETY: no memory is involved.
            let attempt = |operation| check_int(unsafe { real::flock(fd, operation) });
            answer_int(if (operation & libc::LOCK_NB) != 0 {
                attempt(operation)
            } else {
                disk::lock(current, || attempt(operation | libc::LOCK_NB))
            })
        },
        // SAFETY: no memory is involved.
        || unsafe { real::flock(fd, operation) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn lockf(fd: c_int, command: c_int, length: off_t) -> c_int {
    in_fiber_or!(
        |current, os| {
            if let Some(world) = os.world() {
                return answer_int(Err(world.refuse(current, "lockf")));
            }
            // SAFETY: no memory is involved.
            let attempt = |command| check_int(unsafe { real::lockf(fd, command, length) });
            answer_int(if command == libc::F_LOCK {
                disk::lock(current, || attempt(libc::F_TLOCK))
            } else {
                attempt(command)
            })
        },
        // SAFETY: no memory is involved.
        || unsafe { real::lockf(fd, command, length) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn splice(
    input: c_int,
    input_offset: *mut off_t,
    output: c_int,
    output_offset: *mut off_t,
    length: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's own arguments.
    let call = |flags| unsafe { real::splice(input, input_offset, output, output_offset, length, flags) };
    in_fiber_or!(
        |current, os| answer_size(match os.world() {
            Some(world) => Err(world.refuse(current, "splice")),
            None if length == 0 => check(call(flags)),
            None => splice::transfer(current, Some(input), Some(output), flags, |flags| check(call(flags))),
        }),
        || call(flags)
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn tee(input: c_int, output: c_int, length: size_t, flags: c_uint) -> ssize_t {
    // SAFETY: no memory is involved.
    let call = |flags| unsafe { real::tee(input, output, length, flags) };
    in_fiber_or!(
        |current, os| answer_size(match os.world() {
            Some(world) => Err(world.refuse(current, "tee")),
            None if length == 0 => check(call(flags)),
            None => splice::transfer(current, Some(input), Some(output), flags, |flags| check(call(flags))),
        }),
        || call(flags)
    )
}

/// Which way it moves data is up to the end of the pipe that it is given.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn vmsplice(
    fd: c_int,
    vectors: *const iovec,
    count: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's own arguments.
    let call = |flags| unsafe { real::vmsplice(fd, vectors, count, flags) };
    in_fiber_or!(
        |current, os| {
            if let Some(world) = os.world() {
                return answer_size(Err(world.refuse(current, "vmsplice")));
            }
            // SAFETY: F_GETFL takes no argument.
            let mode = unsafe { real::fcntl(fd, libc::F_GETFL, 0) };
            let (input, output) = match mode & libc::O_ACCMODE {
                _ if mode == -1 || count == 0 => (None, None),
                libc::O_RDONLY => (Some(fd), None),
                _ => (None, Some(fd)),
            };
            answer_size(splice::transfer(current, input, output, flags, |flags| check(call(flags))))
        },
        || call(flags)
    )
}

/// On 64-bit Linux other names for the same functions.
macro_rules! large_file_names {
    ($($alias:ident = disk::$name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $alias($($argument: $type),*) -> $result {
                // SAFETY: another name of the same function, with the caller's own arguments.
                unsafe { $name($($argument),*) }
            }
        )*
    };
}

large_file_names! {
    open64 = disk::open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    __open = disk::open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    __open64 = disk::open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat64 = disk::openat(directory: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    creat64 = disk::creat(name: *const c_char, mode: mode_t) -> c_int;
    pread64 = disk::pread(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t;
    __pread64 = disk::pread(fd: c_int, buffer: *mut c_void, length: size_t, offset: off_t) -> ssize_t;
    pwrite64 = disk::pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t;
    __pwrite64 = disk::pwrite(fd: c_int, buffer: *const c_void, length: size_t, offset: off_t) -> ssize_t;
    preadv64 = disk::preadv(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t;
    pwritev64 = disk::pwritev(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t;
    preadv64v2 = disk::preadv2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    pwritev64v2 = disk::pwritev2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t;
    lockf64 = disk::lockf(fd: c_int, command: c_int, length: off_t) -> c_int;
}

/// What C code compiled with `_FORTIFY_SOURCE` calls where it passes no mode. glibc's own aborts if there should be one.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __open_2(name: *const c_char, flags: c_int) -> c_int {
    check_fits(usize::from(needs_mode(flags)), 0);
    // SAFETY: the caller's own arguments.
    unsafe { open(name, flags, 0) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __open64_2(name: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's own arguments.
    unsafe { __open_2(name, flags) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __openat_2(directory: c_int, name: *const c_char, flags: c_int) -> c_int {
    check_fits(usize::from(needs_mode(flags)), 0);
    // SAFETY: the caller's own arguments.
    unsafe { openat(directory, name, flags, 0) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __openat64_2(directory: c_int, name: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller's own arguments.
    unsafe { __openat_2(directory, name, flags) }
}

fn needs_mode(flags: c_int) -> bool {
    (flags & libc::O_CREAT) != 0 || (flags & libc::O_TMPFILE) == libc::O_TMPFILE
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __pread_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    offset: off_t,
    room: size_t,
) -> ssize_t {
    check_fits(length, room);
    // SAFETY: the caller's own arguments.
    unsafe { pread(fd, buffer, length, offset) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __pread64_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    offset: off_t,
    room: size_t,
) -> ssize_t {
    // SAFETY: the caller's own arguments.
    unsafe { __pread_chk(fd, buffer, length, offset, room) }
}
