//! A child that a fiber forks has one thread and no workers: the hooks are off in it, and nothing it does may reach the parent's
//! reactor, whose epoll descriptor it has inherited.

use squall_hook as _;
use squall_iomanager::IoManager;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// Forks; the child goes on with `child`. Returns the child's exit status to the parent.
fn fork(child: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child makes only calls that are allowed after a fork with threads: it sleeps, closes and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        child();
        return None;
    }
    let mut status = 0;
    // SAFETY: `status` is live.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child was killed: {status:#x}");
    Some(libc::WEXITSTATUS(status))
}

#[test]
fn what_a_child_closes_stays_registered_in_the_parent() {
    let manager = IoManager::new(1, false).unwrap();
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let mut writer = far.try_clone().unwrap();
    let fiber = manager.spawn(move || {
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(10));
            writer.write_all(b"1").unwrap();
        });
        let mut text = [0; 2];
        // Waits, and so registers the socket.
        near.read_exact(&mut text[..1]).unwrap();
        let fd = near.as_raw_fd();
        let status = fork(|| {
            let hooked = squall_fiber::in_fiber();
            thread::sleep(Duration::from_millis(1));
            // SAFETY: the child's copy of the descriptor, which nothing in the child uses again; it ends here.
            unsafe {
                libc::close(fd);
                libc::_exit(i32::from(hooked));
            }
        });
        assert_eq!(status, Some(0), "the child took itself for a fiber");
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(10));
            far.write_all(b"2").unwrap();
        });
        // Before, the child's close had ended the parent's registration, and this waited for ever.
        near.read_exact(&mut text[1..]).unwrap();
        text
    });
    assert_eq!(&fiber.join().unwrap(), b"12");
}

#[test]
fn a_child_ends_with_the_function_of_the_fiber_that_forked() {
    let manager = IoManager::new(1, false).unwrap();
    // In the child the closure returns: it must not return into the worker, which would serve the parent's fibers twice.
    assert_eq!(manager.spawn(|| fork(|| ())).join().unwrap(), Some(0));
}

#[test]
fn a_command_that_has_to_fork_starts_from_a_fiber() {
    let manager = IoManager::new(1, false).unwrap();
    let output = manager.spawn(|| {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $MARK; sleep 0.02; exit 6"]).env("MARK", "from sh");
        // SAFETY: the function does nothing. Its presence keeps std from using posix_spawn.
        unsafe { command.pre_exec(|| Ok(())) };
        command.output().unwrap()
    });
    let output = output.join().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(6), &b"from sh\n"[..]));
}

#[test]
fn a_child_of_a_plain_thread_leaves_the_parent_alone() {
    let manager = IoManager::new(1, false).unwrap();
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let fd = near.as_raw_fd();
    let fiber = manager.spawn(move || {
        let mut text = [0; 2];
        near.read_exact(&mut text).unwrap();
        text
    });
    far.write_all(b"1").unwrap();
    thread::sleep(Duration::from_millis(20));
    let status = fork(|| {
        // SAFETY: as in the first test.
        unsafe {
            libc::close(fd);
            libc::_exit(0);
        }
    });
    assert_eq!(status, Some(0));
    far.write_all(b"2").unwrap();
    assert_eq!(&fiber.join().unwrap(), b"12");
}

#[test]
fn fibers_accept_after_a_fork() {
    let status = fork(|| {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    });
    assert_eq!(status, Some(0));
    let manager = IoManager::new(1, false).unwrap();
    // From now on any socket may be another process's, too: the call is made on the pool, and the worker must go on meanwhile.
    let fiber = manager.spawn(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = squall_hook::spawn(move || {
            (0..10).for_each(|_| drop(TcpStream::connect(address).unwrap()));
        });
        (0..10).for_each(|_| drop(listener.accept().unwrap()));
        client.join().unwrap();
    });
    manager.stop();
    fiber.join().unwrap();
}
