//! Files: looking at them, and what can be done with their names and lengths. (Opening, reading and writing pass the hooks of
//! `squall-hook`.)

use crate::{answer, answer_done, list, real};
use core::ffi::{CStr, c_char, c_int, c_uint};
use libc::off_t;
use squall_fiber::Current;
use squall_hook::{Errno, FileName, FileStatus, Result, World, in_world_or};

list! { fstat fstat64 stat stat64 lstat lstat64 statx lseek lseek64 ftruncate ftruncate64 rename unlink }

/// A path as C passes it.
///
/// # Safety
/// `path` is null or a C string.
pub(crate) unsafe fn path<'a>(path: *const c_char) -> Result<&'a CStr> {
    if path.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: by the contract.
    Ok(unsafe { CStr::from_ptr(path) })
}

fn to_stat(status: FileStatus) -> libc::stat {
    // SAFETY: a stat of zeroes is valid.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    stat.st_ino = status.inode;
    stat.st_mode = status.mode;
    stat.st_nlink = 1;
    stat.st_size = status.size as i64;
    stat.st_blksize = 4096;
    stat.st_blocks = status.size.div_ceil(512) as i64;
    stat.st_mtime = status.modified.as_secs() as i64;
    stat.st_mtime_nsec = i64::from(status.modified.subsec_nanos());
    stat
}

/// # Safety
/// `result` is null or has room for a stat.
unsafe fn stat_in_world(
    current: Current<'_>,
    world: &dyn World,
    file: Result<FileName<'_>>,
    result: *mut libc::stat,
) -> c_int {
    let status = file.and_then(|file| world.status(current, file));
    answer_done(status.and_then(|status| {
        if result.is_null() {
            return Err(Errno(libc::EFAULT));
        }
        // SAFETY: by the contract.
        unsafe { result.write(to_stat(status)) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fstat(fd: c_int, result: *mut libc::stat) -> c_int {
    in_world_or(
        // SAFETY: the caller passes room for a stat.
        |current, world| unsafe { stat_in_world(current, world, Ok(FileName::Descriptor(fd)), result) },
        // SAFETY: the caller's own arguments.
        || unsafe { real::fstat(fd, result) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn stat(name: *const c_char, result: *mut libc::stat) -> c_int {
    in_world_or(
        // SAFETY: the caller passes a C string and room for a stat.
        |current, world| unsafe { stat_in_world(current, world, path(name).map(FileName::Path), result) },
        // SAFETY: the caller's own arguments.
        || unsafe { real::stat(name, result) },
    )
}

/// As `stat`: a world has no symbolic links.
#[unsafe(no_mangle)]
unsafe extern "C" fn lstat(name: *const c_char, result: *mut libc::stat) -> c_int {
    in_world_or(
        // SAFETY: as in `stat`.
        |current, world| unsafe { stat_in_world(current, world, path(name).map(FileName::Path), result) },
        // SAFETY: the caller's own arguments.
        || unsafe { real::lstat(name, result) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn statx(
    directory: c_int,
    name: *const c_char,
    flags: c_int,
    mask: c_uint,
    result: *mut libc::statx,
) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes a C string, or null.
            let file = unsafe { path(name) }.and_then(|name| {
                if name.is_empty() && (flags & libc::AT_EMPTY_PATH) != 0 {
                    Ok(FileName::Descriptor(directory))
                } else if directory == libc::AT_FDCWD || name.to_bytes().starts_with(b"/") {
                    Ok(FileName::Path(name))
                } else {
                    Err(world.refuse(current, "statx below a directory"))
                }
            });
            answer_done(file.and_then(|file| world.status(current, file)).and_then(|status| {
                if result.is_null() {
                    return Err(Errno(libc::EFAULT));
                }
                // SAFETY: a statx of zeroes is valid.
                let mut statx: libc::statx = unsafe { core::mem::zeroed() };
                statx.stx_mask = libc::STATX_BASIC_STATS;
                statx.stx_blksize = 4096;
                statx.stx_nlink = 1;
                statx.stx_mode = status.mode as u16;
                statx.stx_ino = status.inode;
                statx.stx_size = status.size;
                statx.stx_blocks = status.size.div_ceil(512);
                statx.stx_mtime.tv_sec = status.modified.as_secs() as i64;
                statx.stx_mtime.tv_nsec = status.modified.subsec_nanos();
                // SAFETY: the caller passes room for a statx.
                unsafe { result.write(statx) };
                Ok(())
            }))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::statx(directory, name, flags, mask, result) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    in_world_or(
        |current, world| answer(world.seek(current, fd, offset, whence)),
        // SAFETY: no memory is involved.
        || unsafe { real::lseek(fd, offset, whence) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, length: off_t) -> c_int {
    in_world_or(
        |current, world| {
            let length = u64::try_from(length).map_err(|_| Errno::INVAL);
            answer_done(length.and_then(|length| world.set_length(current, fd, length)))
        },
        // SAFETY: no memory is involved.
        || unsafe { real::ftruncate(fd, length) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes C strings.
            let names = unsafe { path(from).and_then(|from| Ok((from, path(to)?))) };
            answer_done(names.and_then(|(from, to)| world.rename(current, from, to)))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::rename(from, to) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(name: *const c_char) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes a C string.
            let name = unsafe { path(name) };
            answer_done(name.and_then(|name| world.remove_file(current, name)))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::unlink(name) },
    )
}

/// The names that programs compiled for large files call: on 64-bit Linux the same functions.
macro_rules! large_file_names {
    ($($alias:ident = $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $alias($($argument: $type),*) -> $result {
                // SAFETY: another name of the same function, with the caller's own arguments.
                unsafe { $name($($argument),*) }
            }
        )*
    };
}

large_file_names! {
    fstat64 = fstat(fd: c_int, result: *mut libc::stat) -> c_int;
    stat64 = stat(name: *const c_char, result: *mut libc::stat) -> c_int;
    lstat64 = lstat(name: *const c_char, result: *mut libc::stat) -> c_int;
    lseek64 = lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
    ftruncate64 = ftruncate(fd: c_int, length: off_t) -> c_int;
}
