//! perf, which follows frame pointers, sees through the stack of a running fiber up to the function that was spawned. That gdb and the
//! runtime's own backtraces do, also for a fiber that waits, is tested in `gdb_sees_fibers.rs` and `fibers_can_be_looked_at.rs`.

use squall_fiber::{Builder, Tls};
use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

const CHILD: &str = "SQUALL_TEST_COMPUTES_FOR_PERF";

#[inline(never)]
fn function_that_computes(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        for number in 0..1000 {
            black_box(number);
        }
    }
}

/// The process that perf looks at.
#[test]
fn child_that_computes_for_perf() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let compute = |tls| {
        let run = || {
            function_that_computes(Duration::from_millis(500));
            black_box(());
        };
        Builder::new().tls(tls).spawn(run).join().expect("it does not panic");
    };
    compute(Tls::Private);
    compute(Tls::Shared);
}

#[test]
fn perf_sees_up_to_the_function_that_was_spawned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("perf.data");
    let program = std::env::current_exe().expect("this program has a path");
    let recorded = Command::new("perf")
        .args(["record", "--freq", "499", "--event", "cpu-clock:u", "--call-graph", "fp", "--output"])
        .args([data.as_os_str(), "--".as_ref(), program.as_os_str()])
        .args(["child_that_computes_for_perf", "--exact"])
        .env(CHILD, "1")
        .output();
    match recorded {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("SKIPPED: perf may not observe: {}", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        Err(error) => {
            eprintln!("SKIPPED: perf cannot be run: {error}");
            return;
        }
    }
    let script = Command::new("perf")
        .args(["script", "--fields", "comm,ip,sym", "--input"])
        .arg(&data)
        .output()
        .expect("perf ran a moment ago");
    let script = String::from_utf8_lossy(&script.stdout);
    let samples: Vec<&str> =
        script.split("\n\n").filter(|sample| sample.contains("function_that_computes")).collect();
    assert!(samples.len() > 50, "only {} samples: {script}", samples.len());
    let complete = samples.iter().filter(|sample| {
        let position = |name| sample.find(name).unwrap_or(usize::MAX);
        let computes = position("function_that_computes");
        let closure = position("child_that_computes_for_perf::{{closure}}");
        computes < closure && closure < position("squall_fiber_root") && sample.contains("squall_fiber_root")
    });
    // A sample in the few instructions that make or leave a frame lacks a caller, but never those further out.
    let complete = complete.count();
    assert!(complete * 10 > samples.len() * 9, "{complete} of {} samples: {script}", samples.len());
}
