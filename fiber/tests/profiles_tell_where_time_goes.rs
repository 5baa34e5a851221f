//! Profiles that a program takes of itself: what computes, what waits, and what only waits for its turn.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, profile_off_cpu, profile_on_cpu};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

#[inline(never)]
fn function_that_computes(until: &AtomicBool) {
    while !until.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    black_box(());
}

#[inline(never)]
fn function_that_yields(until: &AtomicBool) {
    while !until.load(Ordering::Relaxed) {
        squall_fiber::yield_now();
    }
    black_box(());
}

#[inline(never)]
fn function_that_waits() {
    squall_fiber::park();
    black_box(());
}

/// The weight of the lines that have all of these parts.
fn weight_us(folded: &str, parts: &[&str]) -> u64 {
    let lines = folded.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// Profiles until there is one with such a line: on a busy machine threads may get no processor for a while.
fn until_seen(mut profile: impl FnMut() -> String, parts: &[&str]) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let folded = profile();
        if weight_us(&folded, parts) > 0 {
            return folded;
        }
        assert!(Instant::now() < deadline, "no {parts:?}: {folded}");
    }
}

/// On one worker, which the first of them keeps: one computes, one could, one waits.
#[test]
fn each_fiber_is_in_the_profile_that_it_belongs_to() {
    let scheduler =
        Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).expect("a scheduler");
    let done = Arc::new(AtomicBool::new(false));
    let [yielder_over, hog_over] = [done.clone(), done.clone()];
    let (hog_began, began) = mpsc::channel();
    let waiter = scheduler.spawn(Builder::new().name("waiter 1"), function_that_waits);
    let yielder =
        scheduler.spawn(Builder::new().name("yielder 2"), move || function_that_yields(&yielder_over));
    let hog = scheduler.spawn(Builder::new().name("hog 3"), move || {
        hog_began.send(()).expect("the test waits for it");
        function_that_computes(&hog_over);
    });
    // From here on it keeps the worker.
    began.recv().expect("it is spawned");

    let on_cpu = || profile_on_cpu(Duration::from_millis(300), 99).folded();
    let folded = until_seen(on_cpu, &["hog #;", "function_that_computes"]);
    for other in ["waiter", "yielder"] {
        assert_eq!(weight_us(&folded, &[other]), 0, "{folded}");
    }

    let off_cpu = || profile_off_cpu(Duration::from_millis(300), 50).folded();
    let folded = until_seen(off_cpu, &["waiter #;", "function_that_waits", ";[parked] "]);
    assert!(weight_us(&folded, &["yielder #;", "function_that_yields", ";[ready] "]) > 0, "{folded}");
    assert_eq!(weight_us(&folded, &["hog"]), 0, "{folded}");
    // Of the same looks, so of the same weight.
    assert_eq!(weight_us(&folded, &["waiter"]), weight_us(&folded, &["yielder"]), "{folded}");

    done.store(true, Ordering::Relaxed);
    waiter.fiber().unpark();
    for fiber in [waiter, yielder, hog] {
        fiber.join().expect("it does not panic");
    }
}

#[test]
fn a_fiber_that_profiles_is_itself_in_it() {
    let scheduler =
        Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).expect("a scheduler");
    let profile = || profile_off_cpu(Duration::from_millis(100), 50).folded();
    let folded = scheduler.spawn(Builder::new().name("profiler"), profile).join().expect("it does not panic");
    assert!(weight_us(&folded, &["profiler;", ";[blocking-pool] "]) > 0, "{folded}");
}
