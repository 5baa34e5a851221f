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

/// One of the calls that wait for a child, with its options: the child's number or 0 or -1, and what it says of it.
type Wait = fn(i32, i32) -> (i32, i32);

const WAITS: [(&str, Wait); 4] = [
    ("waitpid", |pid, options| {
        let mut status = 0;
        // SAFETY: room for the status.
        (unsafe { libc::waitpid(pid, &mut status, options) }, status)
    }),
    ("waitpid, process group", |pid, options| {
        let mut status = 0;
        // SAFETY: as above.
        (unsafe { libc::waitpid(-pid, &mut status, options) }, status)
    }),
    ("wait4", |pid, options| {
        let mut status = 0;
        // SAFETY: room for the status and the usage.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            let answer = libc::wait4(pid, &mut status, options, &mut usage);
            // Some page was touched, if a child was waited for.
            (answer, status + i32::from(answer > 0 && usage.ru_minflt == 0))
        }
    }),
    ("waitid", |pid, options| {
        // SAFETY: room for the information.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let answer = libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options | libc::WEXITED);
            let found = if answer == 0 { info.si_pid() } else { answer };
            (found, if found > 0 { info.si_status() | info.si_code << 8 } else { 0 })
        }
    }),
];

/// A child in a process group of its own.
fn child_in_group(script: &str) -> i32 {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    std::mem::ManuallyDrop::new(command.spawn().unwrap()).id() as i32
}

#[test]
fn every_call_waits_for_a_child() {
    differ(true, |notes| {
        for (name, wait) in WAITS {
            let pid = child_in_group("sleep 0.05; exit 7");
            let relative = |(answer, status): (i32, i32)| (if answer == pid { 1 } else { answer }, status);
            for options in [libc::WNOHANG, 0, 0, libc::WNOHANG] {
                let (answer, status) = relative(wait(pid, options));
                raw(notes, name, answer);
                notes.push(format!("{status}"));
            }
        }
    });
}

#[test]
fn whoever_only_looks_leaves_the_child() {
    differ(true, |notes| {
        let pid = child("sleep 0.03; exit 3");
        for options in [libc::WNOWAIT, libc::WNOWAIT | libc::WNOHANG, 0, 0] {
            // SAFETY: room for the information.
            unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let options = options | libc::WEXITED;
                raw(notes, "waitid", libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options));
                notes.push(format!("{} {}", info.si_pid() == pid, info.si_status()));
            }
        }
    });
}

#[test]
fn several_wait_for_children_at_once() {
    differ(true, |notes| {
        let waiting: Vec<_> = (0..8)
            .map(|number| {
                companion(move || {
                    let pid = child(&format!("sleep 0.0{number}; exit {number}"));
                    let mut status = 0;
                    // SAFETY: room for the status.
                    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
                    assert_eq!(libc::WEXITSTATUS(status), number);
                })
            })
            .collect();
        thread::sleep(pause());
        waiting.into_iter().for_each(|one| one());
        notes.push("all".into());
    });
}

#[test]
fn a_shell_runs_a_command() {
    differ(true, |notes| {
        for command in [c"sleep 0.03; exit 3", c"kill -9 $$", c"exit 127"] {
            // SAFETY: a C string.
            raw(notes, "system", unsafe { libc::system(command.as_ptr()) });
        }
        // SAFETY: null asks whether there is a shell.
        notes.push(format!("{}", unsafe { libc::system(std::ptr::null()) } != 0));
    });
}

#[test]
fn a_pipe_to_a_command_is_opened_and_closed() {
    differ(true, |notes| {
        // SAFETY: C strings, live buffers, streams that popen made.
        unsafe {
            let stream = libc::popen(c"sleep 0.03; echo abc; exit 5".as_ptr(), c"re".as_ptr());
            let mut line = [0u8; 16];
            notes.push(format!("{}", libc::fgets(line.as_mut_ptr().cast(), 16, stream).is_null()));
            notes.push(format!("{line:?}"));
            raw(notes, "pclose", libc::pclose(stream));
            let stream = libc::popen(c"read x; sleep 0.03; test \"$x\" = abc".as_ptr(), c"we".as_ptr());
            notes.push(format!("{}", libc::fputs(c"abc\n".as_ptr(), stream)));
            raw(notes, "pclose", libc::pclose(stream));
            notes.push(format!("{}", libc::popen(c"true".as_ptr(), c"x".as_ptr()).is_null()));
            notes.push(format!("{}", errno()));
        }
    });
}

#[test]
fn programs_are_spawned() {
    differ(true, |notes| {
        type Spawn = fn(*mut i32, *const libc::c_char, *const *mut libc::c_char) -> i32;
        let null = std::ptr::null;
        let calls: [(&str, Spawn); 2] = [
            // SAFETY: room for the number, C strings in a list that ends with null.
            ("posix_spawn", |pid, path, arguments| unsafe {
                libc::posix_spawn(pid, path, std::ptr::null(), std::ptr::null(), arguments, std::ptr::null())
            }),
            // SAFETY: as above.
            ("posix_spawnp", |pid, path, arguments| unsafe {
                libc::posix_spawnp(pid, path, std::ptr::null(), std::ptr::null(), arguments, std::ptr::null())
            }),
        ];
        for (name, spawn) in calls {
            let script = [c"sh".as_ptr(), c"-c".as_ptr(), c"sleep 0.03; exit 4".as_ptr(), null()];
            let script = script.map(<*const _>::cast_mut);
            for path in [c"/bin/sh", c"/no/such/program", c"/tmp"] {
                let mut pid = 0;
                let answer = spawn(&mut pid, path.as_ptr(), script.as_ptr());
                notes.push(format!("{name} {answer}"));
                if answer == 0 {
                    wait(notes, "the end", pid, 0);
                }
            }
        }
    });
}
