//! Directories: making and removing them, and reading their names.

use crate::files::path;
use crate::{answer_done, list, real, set_errno};
use core::ffi::{c_char, c_int};
use libc::{DIR, dirent64, mode_t};
use squall_fiber::Current;
use squall_hook::{DirectoryEntry, Errno, Result, World, in_world_or};
use std::os::fd::RawFd;

list! { mkdir rmdir opendir readdir readdir64 closedir dirfd }

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(name: *const c_char, mode: mode_t) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes a C string.
            let name = unsafe { path(name) };
            answer_done(name.and_then(|name| world.create_directory(current, name, mode)))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::mkdir(name, mode) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(name: *const c_char) -> c_int {
    in_world_or(
        |current, world| {
            // SAFETY: the caller passes a C string.
            let name = unsafe { path(name) };
            answer_done(name.and_then(|name| world.remove_directory(current, name)))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::rmdir(name) },
    )
}

/// What a `DIR` of a world is: the names as they were when it was opened.
struct Stream {
    fd: RawFd,
    entries: std::vec::IntoIter<DirectoryEntry>,
    /// What `readdir` returned last.
    shown: dirent64,
}

fn open_stream(
    current: Current<'_>,
    world: &dyn World,
    name: Result<&core::ffi::CStr>,
) -> Result<Box<Stream>> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let fd = world.open(current, name?, flags, 0)?;
    match world.entries(current, fd) {
        Ok(entries) => {
            // SAFETY: a dirent64 of zeroes is valid.
            let shown = unsafe { core::mem::zeroed() };
            Ok(Box::new(Stream { fd, entries: entries.into_iter(), shown }))
        }
        Err(errno) => {
            // It was opened a moment ago; there is nothing to do about an error.
            let _ = world.close(current, fd);
            Err(errno)
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn opendir(name: *const c_char) -> *mut DIR {
    in_world_or(
        // SAFETY: the caller passes a C string.
        |current, world| match open_stream(current, world, unsafe { path(name) }) {
            Ok(stream) => Box::into_raw(stream).cast(),
            Err(errno) => {
                set_errno(errno);
                core::ptr::null_mut()
            }
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::opendir(name) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readdir64(stream: *mut DIR) -> *mut dirent64 {
    in_world_or(
        |_, _| {
            // SAFETY: in a world every DIR is a stream that `opendir` made there, and the caller has not closed it.
            let Some(stream) = (unsafe { stream.cast::<Stream>().as_mut() }) else {
                set_errno(Errno::BADF);
                return core::ptr::null_mut();
            };
            let Some(entry) = stream.entries.next() else { return core::ptr::null_mut() };
            let name = entry.name.as_bytes_with_nul();
            let shown = &mut stream.shown;
            shown.d_ino = entry.inode;
            shown.d_type = if entry.is_directory { libc::DT_DIR } else { libc::DT_REG };
            shown.d_reclen = size_of::<dirent64>() as u16;
            // A world's names are no longer than a name may be; the last byte stays zero.
            let room = shown.d_name.len() - 1;
            for (to, from) in shown.d_name[..room].iter_mut().zip(name) {
                *to = *from as c_char;
            }
            &raw mut *shown
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::readdir64(stream) },
    )
}

/// On 64-bit Linux the same function.
#[unsafe(no_mangle)]
unsafe extern "C" fn readdir(stream: *mut DIR) -> *mut dirent64 {
    // SAFETY: the caller's own arguments.
    unsafe { readdir64(stream) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn closedir(stream: *mut DIR) -> c_int {
    in_world_or(
        |current, world| {
            if stream.is_null() {
                return answer_done(Err(Errno::BADF));
            }
            // SAFETY: in a world every DIR is a stream that `opendir` made there, and the caller gives it back.
            let stream = unsafe { Box::from_raw(stream.cast::<Stream>()) };
            answer_done(world.close(current, stream.fd))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::closedir(stream) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dirfd(stream: *mut DIR) -> c_int {
    in_world_or(
        // SAFETY: as in `readdir64`.
        |_, _| match unsafe { stream.cast::<Stream>().as_ref() } {
            Some(stream) => stream.fd,
            None => answer_done(Err(Errno::INVAL)),
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::dirfd(stream) },
    )
}
