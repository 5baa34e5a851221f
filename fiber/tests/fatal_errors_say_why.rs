//! What ends the process: each case runs in a child, which is this test program again, and the test reads its last words.

use squall_fiber::{Builder, Driver, Scheduler, SchedulerConfig, Tls, Unpark};
use std::any::Any;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

const CASE: &str = "SQUALL_FATAL_CASE";

/// In the test: runs the same test in a child and returns what became of it. In the child: runs `body` and never returns.
fn in_child(test: &str, body: fn()) -> Output {
    if std::env::var_os(CASE).is_some() {
        body();
        std::process::exit(0);
    }
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CASE, test)
        .output()
        .unwrap()
}

fn assert_aborted(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
}

fn one_worker() -> Scheduler {
    Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).expect("a scheduler")
}

#[expect(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[0]
}

#[test]
fn a_stack_overflow_names_the_fiber() {
    let output = in_child("a_stack_overflow_names_the_fiber", || {
        let _ =
            one_worker().spawn(Builder::new().name("deep one").stack_bytes(64 * 1024), || recurse(0)).join();
    });
    assert_aborted(
        &output,
        &["fiber 'deep one' has overflowed its stack of 65536 bytes", "calls deep", "recurse"],
    );
    // Where it goes round, and where it began.
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("more calls ..."), "{text}");
    assert!(text.contains("a_stack_overflow_names_the_fiber"), "{text}");
}

/// The observer needs the very lock that the overflowing fiber holds: it cannot look up names, and the report must come without.
#[test]
fn a_stack_overflow_under_a_lock_that_the_report_needs_is_told_without_names() {
    let output =
        in_child("a_stack_overflow_under_a_lock_that_the_report_needs_is_told_without_names", || {
            let _ = one_worker()
                .spawn(Builder::new().name("holds a lock").stack_bytes(64 * 1024), || {
                    // The lock of the standard error stream, which the report is written to.
                    let _lock = std::io::stderr().lock();
                    recurse(0)
                })
                .join();
        });
    assert_aborted(
        &output,
        &[
            "fiber 'holds a lock' has overflowed its stack of 65536 bytes",
            "relative to the program's load address",
            "  0x",
        ],
    );
}

#[test]
fn a_stack_overflow_of_a_shared_fiber_is_told_too() {
    let output = in_child("a_stack_overflow_of_a_shared_fiber_is_told_too", || {
        let _ = one_worker().spawn(Builder::new().tls(Tls::Shared), || recurse(0)).join();
    });
    assert_aborted(&output, &["fiber '<unnamed>' has overflowed its stack of 262144 bytes"]);
}

#[test]
fn a_stack_overflow_of_a_plain_thread_is_still_stds_to_report() {
    let output = in_child("a_stack_overflow_of_a_plain_thread_is_still_stds_to_report", || {
        let _scheduler = one_worker();
        let _ = std::thread::Builder::new().name("plain".into()).spawn(|| recurse(0)).unwrap().join();
    });
    assert_aborted(&output, &["thread 'plain'", "has overflowed its stack"]);
}

#[test]
fn a_fault_elsewhere_is_a_plain_fault() {
    let output = in_child("a_fault_elsewhere_is_a_plain_fault", || {
        let fault = || {
            // SAFETY: none, and that is the point: page 0 is not mapped, so the process ends here.
            unsafe { core::ptr::read_volatile(black_box(8usize) as *const u64) }
        };
        let _ = one_worker().spawn(Builder::new(), fault).join();
    });
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("overflowed"));
}

struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[test]
fn a_result_that_nobody_wants_and_that_panics_in_drop_aborts() {
    let output = in_child("a_result_that_nobody_wants_and_that_panics_in_drop_aborts", || {
        let scheduler = one_worker();
        drop(scheduler.spawn(Builder::new(), || {
            squall_fiber::sleep(Duration::from_millis(5));
            PanicsInDrop
        }));
        scheduler.stop();
    });
    assert_aborted(&output, &["a fiber's result panicked while it was dropped"]);
}

/// A driver with a bug.
struct Broken;

impl Driver for Broken {
    fn poll(&mut self, _: Option<Duration>) {
        panic!("the driver is broken");
    }
    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::new(Broken)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn has_events(&self) -> bool {
        true
    }
    fn close(&mut self) {}
}

impl Unpark for Broken {
    fn unpark(&self) {}
}

#[test]
fn a_worker_that_panics_takes_the_process_along() {
    let output = in_child("a_worker_that_panics_takes_the_process_along", || {
        let config =
            SchedulerConfig { threads: 1, driver: Box::new(|_| Ok(Box::new(Broken))), ..Default::default() };
        // Before, this join waited for ever.
        let _ = Scheduler::new(config).unwrap().spawn(Builder::new(), || ()).join();
    });
    assert_aborted(&output, &["the driver is broken", "a worker panicked"]);
}
