//! Opening files, and reading and writing them at an offset.

use crate::calls::*;
use crate::harness::*;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null;
use std::thread;

fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

type Open = fn(&CStr, i32) -> i32;

/// Every call that opens a file, with mode 0600.
const OPENS: [(&str, Open); 4] = [
    // SAFETY: a C string, in these and below.
    ("open", |path, flags| unsafe { libc::open(path.as_ptr(), flags, 0o600) }),
    // SAFETY: as above.
    ("open64", |path, flags| unsafe { libc::open64(path.as_ptr(), flags, 0o600) }),
    // SAFETY: as above.
    ("openat", |path, flags| unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags, 0o600) }),
    // SAFETY: as above.
    ("openat64", |path, flags| unsafe { libc::openat64(libc::AT_FDCWD, path.as_ptr(), flags, 0o600) }),
];

/// Notes whether a call opened something, and closes it again.
fn opened(notes: &mut Notes, what: &str, fd: i32) {
    raw(notes, what, fd.min(0));
    if fd >= 0 {
        notes.push(format!("flags {:o}", getfl(fd)));
        close(fd);
    }
}

#[test]
fn files_are_opened_as_asked() {
    differ(false, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = name(&directory.path().join("file"));
        for (call, open) in OPENS {
            opened(notes, call, open(&path, libc::O_RDONLY));
            opened(notes, call, open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC));
            opened(notes, call, open(&path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL));
            opened(notes, call, open(&path, libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK));
            opened(notes, call, open(&path, libc::O_RDONLY | libc::O_DIRECTORY));
            opened(notes, call, open(&name(directory.path()), libc::O_RDONLY));
            opened(notes, call, open(&name(directory.path()), libc::O_WRONLY));
            opened(notes, call, open(&path, libc::O_PATH));
            opened(notes, call, open(c"", libc::O_RDONLY));
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &std::fs::metadata(directory.path().join("file")).unwrap().permissions(),
            );
            notes.push(format!("{mode:o}"));
            std::fs::remove_file(directory.path().join("file")).unwrap();
        }
        // SAFETY: a C string; the null pointer is for the kernel to refuse.
        unsafe {
            opened(notes, "creat", libc::creat(path.as_ptr(), 0o600));
            opened(notes, "creat64", libc::creat64(path.as_ptr(), 0o600));
            opened(notes, "null", libc::open(null(), libc::O_RDONLY));
            opened(notes, "no directory", libc::openat(-1, c"file".as_ptr(), libc::O_RDONLY));
        }
        let folder = File::open(directory.path()).unwrap();
        // SAFETY: a C string.
        let fd = unsafe { libc::openat(folder.as_raw_fd(), c"file".as_ptr(), libc::O_RDONLY) };
        opened(notes, "below a directory", fd);
    });
}

#[test]
fn opening_a_fifo_waits_for_the_other_end() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        for (index, (call, open)) in OPENS.into_iter().enumerate() {
            let path = name(&directory.path().join(format!("fifo{index}")));
            // SAFETY: a C string.
            assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
            opened(notes, "without a reader", open(&path, libc::O_WRONLY | libc::O_NONBLOCK));
            let theirs = path.clone();
            let log = Log::default();
            let order = log.clone();
            let other = companion(move || {
                thread::sleep(pause());
                order.note("the writer comes");
                let writer = owned(open(&theirs, libc::O_WRONLY | libc::O_CLOEXEC));
                assert_eq!(write(writer.as_raw_fd(), b"abc"), 3);
            });
            let reader = open(&path, libc::O_RDONLY | libc::O_CLOEXEC);
            log.note("open");
            raw(notes, call, reader.min(0));
            raw_size(notes, "read", read(reader, &mut [0; 9]));
            other();
            raw_size(notes, "the end", read(reader, &mut [0; 9]));
            close(reader);
            log.close(notes);
        }
    });
}

type ReadAt = fn(RawFd, &mut [u8], i64) -> isize;
type WriteAt = fn(RawFd, &[u8], i64) -> isize;

/// Each call that reads at an offset.
const READS: [(&str, ReadAt); 4] = [
    // SAFETY: a live buffer or vector, in these and below.
    ("pread", |fd, buffer, at| unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), buffer.len(), at) }),
    // SAFETY: as above.
    ("pread64", |fd, buffer, at| unsafe { libc::pread64(fd, buffer.as_mut_ptr().cast(), buffer.len(), at) }),
    ("preadv", |fd, buffer, at| {
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: as above.
        unsafe { libc::preadv(fd, &vector, 1, at) }
    }),
    ("preadv2", |fd, buffer, at| {
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: as above.
        unsafe { libc::preadv2(fd, &vector, 1, at, 0) }
    }),
];

/// Each call that writes at an offset.
const WRITES: [(&str, WriteAt); 4] = [
    // SAFETY: live bytes or a live vector, in these and below.
    ("pwrite", |fd, bytes, at| unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), at) }),
    // SAFETY: as above.
    ("pwrite64", |fd, bytes, at| unsafe { libc::pwrite64(fd, bytes.as_ptr().cast(), bytes.len(), at) }),
    ("pwritev", |fd, bytes, at| {
        let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: as above.
        unsafe { libc::pwritev(fd, &vector, 1, at) }
    }),
    ("pwritev2", |fd, bytes, at| {
        let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: as above.
        unsafe { libc::pwritev2(fd, &vector, 1, at, libc::RWF_DSYNC) }
    }),
];

#[test]
fn offsets_are_obeyed_and_the_position_left() {
    differ(false, |notes| {
        for flags in [0, libc::O_DSYNC, libc::O_APPEND] {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            // SAFETY: a C string.
            let file = owned(unsafe { libc::open(name(&path).as_ptr(), libc::O_RDWR | flags) });
            let fd = file.as_raw_fd();
            raw_size(notes, "write", write(fd, b"0123456789"));
            for (call, write) in WRITES {
                raw_size(notes, call, write(fd, b"abc", 4));
                raw_size(notes, call, write(fd, b"", 4));
                raw_size(notes, call, write(fd, b"abc", i64::MAX));
                raw_size(notes, call, write(fd, b"abc", -2));
            }
            let mut buffer = [0; 8];
            for (call, read) in READS {
                for at in [0, 6, 100, -2, i64::MAX] {
                    raw_size(notes, call, read(fd, &mut buffer, at));
                    notes.push(format!("{buffer:?}"));
                }
                raw_size(notes, call, read(fd, &mut [], 0));
            }
            // SAFETY: no memory is involved.
            raw(notes, "position", unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) });
        }
    });
}

#[test]
fn a_position_is_what_minus_one_means_to_the_calls_with_flags() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        let mut buffer = [0u8; 4];
        let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 4 };
        // SAFETY: a live vector.
        unsafe {
            raw_size(notes, "write", libc::pwritev2(fd, &vector, 1, -1, 0));
            raw_size(notes, "write", libc::pwritev2(fd, &vector, 1, -1, libc::RWF_SYNC));
            raw_size(notes, "append", libc::pwritev2(fd, &vector, 1, 0, libc::RWF_APPEND));
            raw(notes, "position", libc::lseek(fd, 0, libc::SEEK_CUR));
            raw_size(notes, "at the end", libc::preadv2(fd, &vector, 1, -1, 0));
            raw(notes, "back", libc::lseek(fd, 2, libc::SEEK_SET));
            raw_size(notes, "read", libc::preadv2(fd, &vector, 1, -1, libc::RWF_HIPRI));
            raw_size(notes, "bad flags", libc::preadv2(fd, &vector, 1, 0, 0x4000));
            raw_size(notes, "bad flags", libc::pwritev2(fd, &vector, 1, 0, 0x4000));
            raw_size(notes, "no vectors", libc::preadv(fd, &vector, 0, 0));
            raw_size(notes, "too many vectors", libc::preadv(fd, &vector, 2000, 0));
            raw_size(notes, "null", libc::preadv(fd, null(), 1, 0));
            raw_size(notes, "negative count", libc::pwritev(fd, &vector, -1, 0));
        }
    });
}

#[test]
fn what_has_no_offsets_says_so() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        let (socket, _peer) = socketpair(libc::SOCK_STREAM);
        let read_only = File::open("/dev/null").unwrap();
        for fd in [reader.as_raw_fd(), writer.as_raw_fd(), socket.as_raw_fd(), read_only.as_raw_fd(), -1] {
            for (call, read) in READS {
                raw_size(notes, call, read(fd, &mut [0; 4], 0));
            }
            for (call, write) in WRITES {
                raw_size(notes, call, write(fd, b"abc", 0));
            }
        }
    });
}

#[test]
fn space_and_syncing_judge_their_arguments() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        let (reader, _writer) = pipe(0);
        for fd in [file.as_raw_fd(), reader.as_raw_fd(), -1] {
            // SAFETY: no memory is involved.
            unsafe {
                raw(notes, "fallocate", libc::fallocate(fd, 0, 0, 1000));
                raw(notes, "fallocate", libc::fallocate(fd, 0, 0, -1));
                notes.push(format!("posix_fallocate {}", libc::posix_fallocate(fd, 0, 2000)));
                notes.push(format!("posix_fallocate {}", libc::posix_fallocate(fd, -1, 2000)));
                raw(notes, "sync_file_range", libc::sync_file_range(fd, 0, 100, 2));
                raw(notes, "sync_file_range", libc::sync_file_range(fd, 0, 100, 99));
                raw(notes, "syncfs", libc::syncfs(fd));
                raw(notes, "fdatasync", libc::fdatasync(fd));
                libc::sync();
            }
        }
        notes.push(format!("{}", file.metadata().unwrap().len()));
        // SAFETY: a mapping of its own, which is synced and removed.
        unsafe {
            let (fd, mode) = (file.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
            let at = libc::mmap(std::ptr::null_mut(), 2000, mode, libc::MAP_SHARED, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            raw(notes, "msync", libc::msync(at, 2000, libc::MS_SYNC));
            raw(notes, "msync", libc::msync(at.wrapping_byte_add(1), 2000, libc::MS_SYNC));
            raw(notes, "msync", libc::msync(at, 2000, 99));
            libc::munmap(at, 2000);
            raw(notes, "msync", libc::msync(at, 2000, libc::MS_SYNC));
        }
    });
}

#[test]
fn success_keeps_errno() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        set_errno(libc::EXDEV);
        let mut answers = Vec::new();
        for (_, write) in WRITES {
            answers.push((write(file.as_raw_fd(), b"abc", 0), errno()));
        }
        for (_, read) in READS {
            answers.push((read(file.as_raw_fd(), &mut [0; 9], 0), errno()));
        }
        notes.push(format!("{answers:?}"));
    });
}
