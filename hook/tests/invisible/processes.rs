//! Waiting for children.

use crate::calls::*;
use crate::harness::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;

/// Starts a child, which the case waits for by its number.
fn child(script: &str) -> i32 {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Forgotten on purpose: std neither waits for it nor reuses its number.
    let child = std::mem::ManuallyDrop::new(command.spawn().unwrap());
    child.id() as i32
}

fn wait(notes: &mut Notes, what: &str, pid: i32, options: i32) {
    let mut status = -1;
    // SAFETY: room for the status.
    let answer = unsafe { libc::waitpid(pid, &mut status, options) };
    raw(notes, what, i32::from(answer > 0) + answer.min(0));
    notes.push(format!("{} {status}", answer == pid));
}

#[test]
fn a_child_is_waited_for() {
    differ(true, |notes| {
        let pid = child("sleep 0.03; exit 7");
        wait(notes, "not yet", pid, libc::WNOHANG);
        wait(notes, "the end", pid, 0);
        wait(notes, "no child any more", pid, 0);
        wait(notes, "no child any more", pid, libc::WNOHANG);
    });
}

#[test]
fn a_child_that_is_killed_says_by_what() {
    differ(true, |notes| {
        let pid = child("exec sleep 100");
        let killer = companion(move || {
            thread::sleep(pause());
            // SAFETY: the child was not waited for, so the number is still its own.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        });
        wait(notes, "killed", pid, 0);
        killer();
    });
}

#[test]
fn a_child_that_stops_and_goes_on_is_told_of_on_demand() {
    differ(true, |notes| {
        let pid = child("exec sleep 100");
        for (signal, option) in [(libc::SIGSTOP, libc::WUNTRACED), (libc::SIGCONT, libc::WCONTINUED)] {
            let signaller = companion(move || {
                thread::sleep(pause());
                // SAFETY: the child was not waited for to the end, so the number is still its own.
                assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
            });
            wait(notes, "a change", pid, option);
            signaller();
        }
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        wait(notes, "the end", pid, 0);
    });
}

#[test]
fn whoever_is_not_a_child_is_not_waited_for() {
    differ(false, |notes| {
        wait(notes, "the parent", std::os::unix::process::parent_id() as i32, 0);
        wait(notes, "nobody", i32::MAX, 0);
        wait(notes, "bad options", 1, 0x4000);
        let mut child = Command::new("true").spawn().unwrap();
        // SAFETY: no status is asked for.
        let answer = unsafe { libc::waitpid(child.id() as i32, std::ptr::null_mut(), 0) };
        notes.push(format!("{}", answer == child.id() as i32));
        kind(notes, "std finds it gone", child.wait().map(|_| ()));
    });
}

#[test]
fn the_output_of_a_child_is_collected() {
    differ(true, |notes| {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 0.02; cat; echo on stderr >&2; sleep 0.02; exit 3"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"through cat").unwrap();
        let output = child.wait_with_output().unwrap();
        notes.push(format!("{output:?}"));
    });
}

#[test]
fn a_child_inherits_no_flag_that_its_parent_did_not_set() {
    differ(true, |notes| {
        // The runtime has waited on both, and the child looks at what it got.
        let (reader, writer) = pipe(0);
        let (input, output) = (reader.as_raw_fd(), writer.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            write(output, b"x");
        });
        raw_size(notes, "read", read(input, &mut [0; 5]));
        other();
        let show = "grep flags /proc/self/fdinfo/0 /proc/self/fdinfo/1 | sed 's/.*flags:.//'";
        let shown = Command::new("sh")
            .args(["-c", show])
            .stdin(Stdio::from(reader))
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        notes.push(String::from_utf8_lossy(&shown.stdout).into_owned());
    });
}
