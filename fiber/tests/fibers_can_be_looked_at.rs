//! Lists of fibers, with their backtraces, from outside.

use squall_fiber::{Builder, Dump, FiberInfo, FiberState, Scheduler, SchedulerConfig, Tls, WaitKind};
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Never dropped: that would wait for the fibers of a test that has failed.
fn scheduler(threads: usize) -> &'static Scheduler {
    let scheduler = Scheduler::new(SchedulerConfig { threads, ..Default::default() });
    Box::leak(Box::new(scheduler.expect("a scheduler")))
}

/// Dumps until the fiber of that name is as wanted.
fn find(name: &str, wanted: impl Fn(&FiberInfo) -> bool) -> FiberInfo {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let dump = squall_fiber::dump();
        if let Some(found) =
            dump.fibers.iter().find(|fiber| fiber.name.as_deref() == Some(name) && wanted(fiber))
        {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "not found: {dump}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn functions(fiber: &FiberInfo) -> Vec<String> {
    let backtrace = fiber.backtrace.as_ref().expect("a backtrace");
    assert!(backtrace.is_complete(), "{backtrace}");
    backtrace.frames().into_iter().filter_map(|frame| frame.function).collect()
}

fn position(functions: &[String], name: &str) -> usize {
    functions
        .iter()
        .position(|function| function.contains(name))
        .unwrap_or_else(|| panic!("no {name} in {functions:#?}"))
}

#[inline(never)]
fn outer_function(f: impl Fn()) {
    inner_function(&f);
    black_box(());
}

#[inline(never)]
fn inner_function(f: &dyn Fn()) {
    f();
    black_box(());
}

#[inline(never)]
fn compute(until: &AtomicBool) {
    while !until.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// From the function that waits out to the closure that was spawned, and to the very bottom of the stack.
fn assert_reaches_the_spawned_function(functions: &[String], innermost: &str) {
    let outer = position(functions, "outer_function");
    assert!(position(functions, innermost) < position(functions, "inner_function"), "{functions:#?}");
    assert!(position(functions, "inner_function") < outer, "{functions:#?}");
    // Without the full name where the compiler has put it into its caller.
    assert!(functions[outer + 1].contains("{closure"), "{functions:#?}");
    assert!(functions.last().is_some_and(|last| last == "squall_fiber_root"), "{functions:#?}");
}

#[test]
fn the_backtrace_of_a_parked_fiber_reaches_the_function_that_was_spawned() {
    for (name, tls) in [("parked private", Tls::Private), ("parked shared", Tls::Shared)] {
        let scheduler = scheduler(1);
        let fiber =
            scheduler.spawn(Builder::new().name(name).tls(tls), || outer_function(squall_fiber::park));
        let info = find(name, |fiber| fiber.state == FiberState::Waiting);
        assert_eq!(info.waits_for, WaitKind::Park);
        assert_eq!(info.deadline_in, None);
        assert!(info.stack_depth_bytes > 0 && info.stack_depth_bytes < info.stack_bytes);
        assert_reaches_the_spawned_function(&functions(&info), "squall_fiber::handle::park");
        fiber.fiber().unpark();
        fiber.join().unwrap();
    }
}

#[test]
fn the_backtrace_of_a_running_fiber_reaches_the_function_that_was_spawned() {
    for (name, tls) in [("running private", Tls::Private), ("running shared", Tls::Shared)] {
        let scheduler = scheduler(1);
        let done = Arc::new(AtomicBool::new(false));
        let over = done.clone();
        let fiber =
            scheduler.spawn(Builder::new().name(name).tls(tls), move || outer_function(|| compute(&over)));
        let info = find(name, |fiber| fiber.state == FiberState::Running && fiber.backtrace.is_some());
        assert_eq!(info.waiting_for, None);
        assert_reaches_the_spawned_function(&functions(&info), "compute");
        done.store(true, Ordering::Relaxed);
        fiber.join().unwrap();
    }
}

#[test]
fn a_fiber_that_yields_is_ready_and_has_a_backtrace() {
    let scheduler = scheduler(1);
    let done = Arc::new(AtomicBool::new(false));
    let [over, hog_over] = [done.clone(), done.clone()];
    let yielder = scheduler.spawn(Builder::new().name("yielder"), move || {
        outer_function(|| {
            while !over.load(Ordering::Relaxed) {
                squall_fiber::yield_now();
            }
        });
    });
    // Keeps the worker, so that the other one stands still in the queue.
    let hog = scheduler.spawn(Builder::new().name("hog"), move || compute(&hog_over));
    let info = find("yielder", |fiber| fiber.state == FiberState::Ready);
    assert_reaches_the_spawned_function(&functions(&info), "yield_now");
    done.store(true, Ordering::Relaxed);
    yielder.join().unwrap();
    hog.join().unwrap();
}

/// Fibers that go on while they are looked at: whatever is reported must be consistent.
#[test]
fn backtraces_of_busy_fibers_are_never_nonsense() {
    let scheduler = scheduler(2);
    let done = Arc::new(AtomicBool::new(false));
    let fibers: Vec<_> = (0..8)
        .map(|number| {
            let over = done.clone();
            scheduler.spawn(Builder::new().name(format!("busy {number}")), move || {
                while !over.load(Ordering::Relaxed) {
                    outer_function(squall_fiber::yield_now);
                    outer_function(|| squall_fiber::sleep(Duration::from_micros(10)));
                }
            })
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut backtraces = 0;
    while backtraces < 200 {
        for fiber in squall_fiber::dump().fibers {
            let is_busy = fiber.name.as_deref().is_some_and(|name| name.starts_with("busy"));
            if let Some(backtrace) = fiber.backtrace.filter(|_| is_busy) {
                assert!(backtrace.is_complete(), "{:?}: {backtrace}", fiber.state);
                backtraces += 1;
            }
        }
        assert!(Instant::now() < deadline, "only {backtraces}");
    }
    done.store(true, Ordering::Relaxed);
    fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
}

#[test]
fn a_deadline_and_a_fiber_that_has_not_started_are_told() {
    let scheduler = scheduler(1);
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    let sleeper = scheduler.spawn(Builder::new().name("long sleeper"), || {
        squall_fiber::park_timeout(Duration::from_secs(3600));
    });
    let info = find("long sleeper", |fiber| fiber.state == FiberState::Waiting);
    let left = info.deadline_in.expect("a deadline");
    assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600), "{left:?}");
    let hog = scheduler.spawn(Builder::new().name("first"), move || compute(&over));
    find("first", |fiber| fiber.state == FiberState::Running);
    let late = scheduler.spawn(Builder::new().name("late"), || ());
    let info = find("late", |_| true);
    assert_eq!((info.state, info.runs, info.backtrace), (FiberState::New, 0, None));
    done.store(true, Ordering::Relaxed);
    sleeper.fiber().unpark();
    for fiber in [sleeper, hog, late] {
        fiber.join().unwrap();
    }
}

#[test]
fn a_fiber_may_dump_all_fibers_and_finds_itself() {
    let scheduler = scheduler(1);
    let dump: Dump = scheduler.spawn(Builder::new().name("dumper"), squall_fiber::dump).join().unwrap();
    let own = dump.fibers.iter().find(|fiber| fiber.name.as_deref() == Some("dumper")).expect("itself");
    assert!(own.backtrace.as_ref().expect("a backtrace").is_complete());
}

/// The child's part of the test below.
#[test]
fn child_that_is_asked_by_a_signal() {
    if std::env::var_os("SQUALL_DUMP_SIGNAL").is_none() {
        return;
    }
    let scheduler = scheduler(1);
    drop(scheduler.spawn(Builder::new().name("asked for"), || outer_function(squall_fiber::park)));
    find("asked for", |fiber| fiber.state == FiberState::Waiting);
    loop {
        // SAFETY: the signal has a handler.
        unsafe { libc::raise(libc::SIGUSR2) };
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_signal_writes_the_list_to_standard_error() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_that_is_asked_by_a_signal", "--exact", "--nocapture"])
        .env("SQUALL_DUMP_SIGNAL", "SIGUSR2")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut text = lines.map_while(Result::ok).inspect(|line| println!("{line}"));
    let told =
        text.any(|line| line.contains("'asked for'")) && text.any(|line| line.contains("outer_function"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told);
}

#[test]
fn the_text_groups_fibers_that_stand_at_the_same_place() {
    let scheduler = scheduler(1);
    let crowd: Vec<_> = (0..30)
        .map(|_| {
            scheduler.spawn(Builder::new().name("one of the crowd"), || outer_function(squall_fiber::park))
        })
        .collect();
    let dump = loop {
        let mut dump = squall_fiber::dump();
        dump.fibers.retain(|fiber| {
            fiber.name.as_deref() == Some("one of the crowd") && fiber.state == FiberState::Waiting
        });
        if dump.fibers.len() == 30 {
            break dump;
        }
    };
    let text = dump.to_string();
    assert_eq!(text.matches("'one of the crowd' on worker 0: parked for").count(), 16, "{text}");
    assert!(text.contains("and 14 more fibers"), "{text}");
    assert_eq!(text.matches("inner_function").count(), 1, "{text}");
    // The runtime's own frames are left out at the outer end.
    assert!(!text.contains("squall_fiber_root"), "{text}");
    crowd.iter().for_each(|fiber| fiber.fiber().unpark());
    crowd.into_iter().for_each(|fiber| fiber.join().unwrap());
}
