//! Locks on files: `flock`, `lockf`, `fcntl(F_SETLKW)` and its variant for open files.

use crate::calls::*;
use crate::harness::*;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

/// Two open files of one file.
fn two_opens() -> (File, File) {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    (open(), open())
}

fn flock(fd: RawFd, operation: i32) -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::flock(fd, operation) }
}

fn lockf(fd: RawFd, command: i32, length: i64) -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::lockf(fd, command, length) }
}

fn record_lock(fd: RawFd, command: i32, kind: i32, start: i64, length: i64) -> i32 {
    // SAFETY: an all-zero lock is valid, and the command takes one.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        (lock.l_type, lock.l_whence) = (kind as i16, libc::SEEK_SET as i16);
        (lock.l_start, lock.l_len) = (start, length);
        libc::fcntl(fd, command, &mut lock)
    }
}

#[test]
fn a_lock_is_waited_for() {
    differ(true, |notes| {
        let (ours, theirs) = two_opens();
        let fd = ours.as_raw_fd();
        for (held, wanted) in
            [(libc::LOCK_EX, libc::LOCK_EX), (libc::LOCK_EX, libc::LOCK_SH), (libc::LOCK_SH, libc::LOCK_EX)]
        {
            let log = Log::default();
            let order = log.clone();
            let other = theirs.try_clone().unwrap();
            raw(notes, "theirs", flock(other.as_raw_fd(), held));
            raw(notes, "at once", flock(fd, wanted | libc::LOCK_NB));
            let holder = companion(move || {
                thread::sleep(pause());
                order.note("unlocks");
                assert_eq!(flock(other.as_raw_fd(), libc::LOCK_UN), 0);
            });
            let answer = flock(fd, wanted);
            log.note(format!("locked {answer}"));
            holder();
            log.close(notes);
            raw(notes, "unlock", flock(fd, libc::LOCK_UN));
        }
    });
}

#[test]
fn shared_locks_do_not_wait_for_each_other() {
    differ(false, |notes| {
        let (ours, theirs) = two_opens();
        raw(notes, "theirs", flock(theirs.as_raw_fd(), libc::LOCK_SH));
        raw(notes, "ours", flock(ours.as_raw_fd(), libc::LOCK_SH));
        raw(notes, "a stronger one", flock(ours.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB));
    });
}

#[test]
fn the_last_close_unlocks() {
    differ(true, |notes| {
        let (ours, theirs) = two_opens();
        raw(notes, "theirs", flock(theirs.as_raw_fd(), libc::LOCK_EX));
        let holder = companion(move || {
            thread::sleep(pause());
            drop(theirs);
        });
        raw(notes, "ours", flock(ours.as_raw_fd(), libc::LOCK_EX));
        holder();
    });
}

#[test]
fn locking_judges_its_arguments() {
    differ(false, |notes| {
        let (file, _) = two_opens();
        let fd = file.as_raw_fd();
        raw(notes, "flock", flock(-1, libc::LOCK_EX));
        raw(notes, "flock", flock(fd, 0));
        raw(notes, "flock", flock(fd, 64));
        raw(notes, "lockf", lockf(-1, libc::F_LOCK, 0));
        raw(notes, "lockf", lockf(fd, 99, 0));
        raw(notes, "lockf", lockf(fd, libc::F_LOCK, -1));
        let read_only = File::open("/dev/null").unwrap();
        raw(notes, "lockf", lockf(read_only.as_raw_fd(), libc::F_LOCK, 0));
        raw(notes, "fcntl", record_lock(fd, libc::F_SETLKW, 99, 0, 0));
        raw(notes, "fcntl", record_lock(fd, libc::F_SETLKW, libc::F_WRLCK, -1, 0));
        raw(notes, "fcntl", record_lock(read_only.as_raw_fd(), libc::F_SETLKW, libc::F_WRLCK, 0, 0));
        let (reader, _writer) = pipe(0);
        raw(notes, "of a pipe", flock(reader.as_raw_fd(), libc::LOCK_EX));
    });
}

#[test]
fn records_of_an_open_file_are_waited_for_one_by_one() {
    differ(true, |notes| {
        let (ours, theirs) = two_opens();
        let fd = ours.as_raw_fd();
        let lock = |fd, kind, start| record_lock(fd, libc::F_OFD_SETLKW, kind, start, 10);
        raw(notes, "theirs", lock(theirs.as_raw_fd(), libc::F_WRLCK, 0));
        raw(notes, "another record", lock(fd, libc::F_WRLCK, 10));
        raw(notes, "at once", record_lock(fd, libc::F_OFD_SETLK, libc::F_RDLCK, 5, 1));
        let holder = companion(move || {
            thread::sleep(pause());
            assert_eq!(lock(theirs.as_raw_fd(), libc::F_UNLCK, 0), 0);
        });
        raw(notes, "the same record", lock(fd, libc::F_WRLCK, 0));
        holder();
    });
}

/// A child process that holds a record lock on the whole file for a moment, and says so by a byte. Between the fork and its end it makes
/// system calls only.
fn child_that_locks(file: &File, hold: std::time::Duration) -> i32 {
    let (told, tell) = pipe(0);
    let time = libc::timespec { tv_sec: 0, tv_nsec: hold.as_nanos() as i64 };
    let fd = file.as_raw_fd();
    // SAFETY: the child calls nothing but what is safe after a fork, and exits.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            record_lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 0);
            libc::write(tell.as_raw_fd(), b"x".as_ptr().cast(), 1);
            libc::nanosleep(&time, std::ptr::null_mut());
            libc::_exit(0);
        }
        pid
    };
    assert!(pid > 0);
    assert_eq!(read(told.as_raw_fd(), &mut [0; 1]), 1);
    pid
}

#[test]
fn a_record_that_another_process_holds_is_waited_for() {
    differ(true, |notes| {
        type Wait = fn(RawFd) -> i32;
        let waits: [(&str, Wait); 2] = [
            ("fcntl", |fd| record_lock(fd, libc::F_SETLKW, libc::F_WRLCK, 0, 0)),
            ("lockf", |fd| lockf(fd, libc::F_LOCK, 0)),
        ];
        for (name, wait) in waits {
            let (file, _) = two_opens();
            let pid = child_that_locks(&file, pause() * 4);
            let fd = file.as_raw_fd();
            raw(notes, "at once", record_lock(fd, libc::F_SETLK, libc::F_WRLCK, 0, 0));
            raw(notes, "at once", lockf(fd, libc::F_TLOCK, 0));
            raw(notes, "a test", lockf(fd, libc::F_TEST, 0));
            raw(notes, name, wait(fd));
            raw(notes, "unlock", lockf(fd, libc::F_ULOCK, 0));
            // SAFETY: no status is asked for.
            assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        }
    });
}

#[test]
fn a_crowd_takes_turns() {
    differ(true, |notes| {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
        let crowd: Vec<_> = (0..10)
            .map(|_| {
                let path = path.clone();
                companion(move || {
                    let file = File::options().read(true).write(true).open(&path).unwrap();
                    assert_eq!(flock(file.as_raw_fd(), libc::LOCK_EX), 0);
                    let count: usize = std::fs::read_to_string(&path).unwrap().parse().unwrap_or(0);
                    thread::sleep(std::time::Duration::from_millis(1));
                    std::fs::write(&path, (count + 1).to_string()).unwrap();
                })
            })
            .collect();
        crowd.into_iter().for_each(|one| one());
        notes.push(std::fs::read_to_string(&path).unwrap());
        std::fs::remove_file(path).unwrap();
    });
}
