//! Runs the test programs as processes and compares what they print with the recorded runs of this project's predecessor: the same
//! milestones, in the same order.

use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const TEST_HOOK: &str = env!("CARGO_BIN_EXE_test_hook");
const TEST_IOMANAGER: &str = env!("CARGO_BIN_EXE_test_iomanager");
const TEST_SCHEDULER: &str = env!("CARGO_BIN_EXE_test_scheduler");
const SIMPLE_STRESS_TEST: &str = env!("CARGO_BIN_EXE_simple_stress_test");

/// The recorded start of `test_hook`. `#` stands for a number, the same one wherever it occurs.
const HOOK_START: &str = "\
[TASK] tid = #,test_fiber_sleep begin
[scheduler] current thread as called thread
[fiber] create fiber , id = 0
[scheduler] init caller thread's main fiber success
[scheduler] init caller thread's caller fiber success
-------scheduler init success-------
[scheduler] scheduler start
[TASK] tid = #,test_fiber_sleep finish
[scheduler] stop
[scheduler] begin run
";
const TASK_1: &str = "task 1 sleep for 6s";
const TASK_2: &str = "task2 sleep for 2s";

/// The recorded run of `test_iomanager`.
const IOMANAGER_RUN: &str = "\
[scheduler] current thread as called thread
[fiber] create fiber , id = 0
[scheduler] init caller thread's main fiber success
[scheduler] init caller thread's caller fiber success
-------scheduler init success-------
[scheduler] scheduler start
[scheduler] stop
[scheduler] begin run
EINPROGRESS
add event success,fd = #
add event success,fd = #
write callback
connect success
";

/// Compares line by line. `#` matches any number, but only one.
fn matches(expected: &str, lines: &[&str]) -> Result<(), String> {
    let expected: Vec<&str> = expected.lines().collect();
    let mut number = None;
    for (index, line) in expected.iter().enumerate() {
        let Some(printed) = lines.get(index) else { return Err(format!("`{line}` is missing at the end")) };
        let wrong = || Err(format!("line {}: expected `{line}`, printed `{printed}`", index + 1));
        match line.split_once('#') {
            None if line != printed => return wrong(),
            None => {}
            Some((before, after)) => {
                let middle = printed.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                let Some(value) = middle.and_then(|middle| middle.parse::<u32>().ok()) else {
                    return wrong();
                };
                if *number.get_or_insert(value) != value {
                    return wrong();
                }
            }
        }
    }
    match lines.get(expected.len()) {
        None => Ok(()),
        Some(extra) => Err(format!("`{extra}` is too much")),
    }
}

/// A whole run of `test_hook --seconds 7`: the start, then three lines of one sleeper and one of the other.
fn matches_hook_run(lines: &[&str]) -> Result<(), String> {
    let start = HOOK_START.lines().count();
    matches(HOOK_START, &lines[..start.min(lines.len())])?;
    let mut wakes = lines[start..].to_vec();
    wakes.sort_unstable();
    let mut expected = vec![TASK_1, TASK_2, TASK_2, TASK_2];
    expected.sort_unstable();
    if wakes != expected {
        return Err(format!("the sleepers printed {wakes:?}"));
    }
    // The one that sleeps 6 s wakes with the third line of the other, or next to it.
    if lines[start..start + 2] != [TASK_2, TASK_2] {
        return Err("the sleepers woke out of order".into());
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env_remove("RUST_LOG").output().expect("the program starts")
}

/// A child that does not outlive a failed test.
struct Running(Child);

impl Running {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("the program starts"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("the child is ours").is_none()
    }

    /// What it printed on standard output, and whether it succeeded. For little output: it is read at the end.
    fn finish(mut self) -> (String, bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.is_running() {
            assert!(Instant::now() < deadline, "the program does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let printed = std::io::read_to_string(self.0.stdout.take().expect("piped")).expect("text");
        (printed, self.0.wait().expect("it has ended").success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn test_hook_prints_the_recorded_milestones_on_one_thread() {
    let mut program = Running::start(TEST_HOOK, &["--seconds", "7"]);
    let tasks = format!("/proc/{}/task", program.0.id());
    let mut samples = 0;
    while program.is_running() {
        if let Ok(threads) = std::fs::read_dir(&tasks) {
            // The watchdog has a thread of its own, on which no fiber runs.
            let comms =
                threads.flatten().flat_map(|thread| std::fs::read_to_string(thread.path().join("comm")));
            let count = comms.filter(|comm| comm.trim() != "squall-observer").count();
            // None: it ended between the question and the look.
            assert!(count <= 1, "{count} threads");
            samples += count;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(samples > 10, "looked only {samples} times");
    let (printed, success) = program.finish();
    assert!(success);
    let lines: Vec<&str> = printed.lines().collect();
    matches_hook_run(&lines).unwrap_or_else(|reason| panic!("{reason}, in:\n{printed}"));
}

#[test]
fn test_iomanager_prints_the_recorded_milestones() {
    let output = run(TEST_IOMANAGER, &[]);
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<&str> = printed.lines().collect();
    matches(IOMANAGER_RUN, &lines).unwrap_or_else(|reason| panic!("{reason}, in:\n{printed}"));
}

/// The rest of this file relies on the comparisons, so they must notice every missing, moved, changed and extra line.
#[test]
fn the_comparisons_notice_every_difference() {
    let iomanager = IOMANAGER_RUN.replace('#', "8");
    let hook = HOOK_START.replace('#', "299057") + [TASK_2, TASK_2, TASK_1, TASK_2].join("\n").as_str();
    type Check = fn(&[&str]) -> Result<(), String>;
    let checks: [(&str, Check); 2] =
        [(&iomanager, |lines| matches(IOMANAGER_RUN, lines)), (&hook, matches_hook_run)];
    for (run, check) in checks {
        let lines: Vec<&str> = run.lines().collect();
        check(&lines).expect("the recorded run itself");
        for index in 0..lines.len() {
            let mut missing = lines.clone();
            missing.remove(index);
            assert!(check(&missing).is_err(), "line {index} is missing");

            let mut twice = lines.clone();
            twice.insert(index, lines[index]);
            assert!(check(&twice).is_err(), "line {index} is there twice");

            let mut changed = lines.clone();
            changed[index] = "something else";
            assert!(check(&changed).is_err(), "line {index} is changed");

            let mut swapped = lines.clone();
            if index > 0 && lines[index - 1] != lines[index] {
                swapped.swap(index - 1, index);
                // Whether the two sleepers that are due at 6 s print one way or the other is open.
                let open = lines[index] == TASK_2 && lines[index - 1] == TASK_1;
                assert_eq!(check(&swapped).is_ok(), open, "lines {} and {index} are swapped", index - 1);
            }
        }
    }
    let two_numbers = iomanager.replacen("fd = 8", "fd = 9", 1);
    assert!(matches(IOMANAGER_RUN, &two_numbers.lines().collect::<Vec<_>>()).is_err());
}

#[test]
fn test_iomanager_reports_a_refused_connection() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let output = run(TEST_IOMANAGER, &["--addr", &closed]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&format!("cannot connect to {closed}")),
        "{}",
        text(&output.stderr)
    );
    assert!(!text(&output.stdout).contains("connect success"));
}

#[test]
fn test_iomanager_waits_for_a_connection_that_takes_its_time() {
    // A backlog that is full makes the kernel drop the first SYN; the one that is sent again a second later finds room.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fillers: Vec<Socket> = (0..4)
        .map(|_| {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address);
            filler
        })
        .collect();
    let mut program =
        Running::start(TEST_IOMANAGER, &["--addr", &address.as_socket().expect("IPv4").to_string()]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(program.is_running(), "the manager ended with two events pending");
    listener.set_nonblocking(true).unwrap();
    while program.is_running() {
        let _ = listener.accept();
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(fillers);
    let (printed, success) = program.finish();
    assert!(success && printed.ends_with("write callback\nconnect success\n"), "{printed}");
}

#[test]
fn test_scheduler_runs_every_step() {
    for (workers, fibers, steps) in [("1", "100", "50"), ("2", "1000", "100"), ("4", "10", "0")] {
        let output = run(TEST_SCHEDULER, &["--workers", workers, "--fibers", fibers, "--steps", steps]);
        let printed = text(&output.stdout);
        assert!(output.status.success(), "{printed}{}", text(&output.stderr));
        let total = fibers.parse::<u64>().unwrap() * steps.parse::<u64>().unwrap();
        assert!(
            printed.contains(&format!("{fibers} fibers on {workers} workers ran {total} of {total} steps"))
        );
    }
}

#[test]
fn simple_stress_test_completes_all_operations() {
    let output = run(SIMPLE_STRESS_TEST, &["--threads", "4", "--operations", "250"]);
    let printed = text(&output.stdout);
    assert!(output.status.success());
    for line in ["operations: 1000", "failed: 0", "done", "thread 3 has completed all operations"] {
        assert!(printed.lines().any(|printed| printed == line), "`{line}` is missing in:\n{printed}");
    }
    let output = run(SIMPLE_STRESS_TEST, &["--operations", "10", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((report["operations"].as_u64(), report["failed"].as_u64()), (Some(40), Some(0)));
}

#[test]
fn bad_arguments_are_refused_with_the_usage() {
    for (program, arguments) in [
        (TEST_HOOK, &["--seconds", "soon"][..]),
        (TEST_HOOK, &["--no-such-option"]),
        (TEST_IOMANAGER, &["--addr"]),
        (TEST_IOMANAGER, &["surplus"]),
        (TEST_SCHEDULER, &["--workers", "0"]),
        (TEST_SCHEDULER, &["--fibers", "-1"]),
        (SIMPLE_STRESS_TEST, &["--threads", "many"]),
        (SIMPLE_STRESS_TEST, &["--threads", "0"]),
    ] {
        let output = run(program, arguments);
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}");
        assert!(
            complaint.contains("Usage:") || complaint.contains("--help"),
            "{program} {arguments:?}: {complaint}"
        );
        assert!(output.stdout.is_empty(), "{program} {arguments:?} began to work");
    }
    let output = run(TEST_IOMANAGER, &["--addr", "nowhere"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--addr nowhere is not HOST:PORT"));
}
