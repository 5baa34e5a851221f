//! A fiber that keeps its worker is found, named, counted, and reported once more when it lets go.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
    }
    fn flush(&self) {}
}

/// Never dropped: that would wait for the fibers of a test that has failed.
fn scheduler(threads: usize) -> &'static Scheduler {
    static COLLECT: Once = Once::new();
    COLLECT.call_once(|| {
        log::set_logger(&Collector).expect("the only logger");
        log::set_max_level(log::LevelFilter::Warn);
        squall_fiber::set_watchdog(Duration::from_millis(30));
    });
    let scheduler = Scheduler::new(SchedulerConfig { threads, ..Default::default() });
    Box::leak(Box::new(scheduler.expect("a scheduler")))
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: {:#?}", LINES.lock().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lines_with(words: &str) -> Vec<String> {
    LINES.lock().unwrap().iter().filter(|line| line.contains(words)).cloned().collect()
}

#[inline(never)]
fn compute_for_long(until: &AtomicBool) {
    while !until.load(Ordering::Relaxed) {
        black_box(());
    }
}

#[test]
fn a_hog_is_reported_once_with_its_backtrace_and_when_it_lets_go() {
    for (name, tls) in [("private hog", Tls::Private), ("shared hog", Tls::Shared)] {
        let scheduler = scheduler(1);
        let done = Arc::new(AtomicBool::new(false));
        let over = done.clone();
        let hog = scheduler.spawn(Builder::new().name(name).tls(tls), move || {
            compute_for_long(&over);
        });
        let quoted = format!("'{name}' keeps worker 0");
        eventually("the report", || !lines_with(&quoted).is_empty());
        // The watchdog looks several times more before this wait is over.
        std::thread::sleep(Duration::from_millis(100));
        done.store(true, Ordering::Relaxed);
        hog.join().unwrap();
        let let_go = format!("'{name}' has let go of worker 0");
        eventually("the end", || !lines_with(&let_go).is_empty());
        let reports = lines_with(&quoted);
        assert_eq!(reports.len(), 1, "{reports:#?}");
        assert!(reports[0].starts_with("WARN") && reports[0].contains("compute_for_long"), "{}", reports[0]);
        assert_eq!(scheduler.metrics().watchdog_incidents, 1);
        assert_eq!(scheduler.metrics().workers[0].watchdog_incidents, 1);
        assert!(squall_fiber::metrics().watchdog_incidents >= 1);
    }
}

#[test]
fn fibers_that_wait_or_yield_are_no_hogs() {
    let scheduler = scheduler(2);
    let fibers: Vec<_> = (0..4)
        .map(|number| {
            scheduler.spawn(Builder::new().name("polite"), move || {
                let end = Instant::now() + Duration::from_millis(200);
                while Instant::now() < end {
                    match number {
                        0 => squall_fiber::sleep(Duration::from_millis(60)),
                        _ => squall_fiber::yield_now(),
                    }
                }
            })
        })
        .collect();
    fibers.into_iter().for_each(|fiber| fiber.join().unwrap());
    assert_eq!(lines_with("'polite'"), Vec::<String>::new());
}

/// What is queued behind a hog runs on another worker, even when all others were asleep when it was queued.
#[test]
fn what_waits_behind_a_hog_is_run_by_another_worker() {
    let scheduler = scheduler(2);
    let done = Arc::new(AtomicBool::new(false));
    let over = done.clone();
    let hog = scheduler.spawn(Builder::new().name("greedy"), move || {
        let behind = Builder::new().name("behind").spawn(|| ());
        compute_for_long(&over);
        behind
    });
    eventually("the one behind to run", || {
        squall_fiber::dump().fibers.iter().all(|fiber| fiber.name.as_deref() != Some("behind"))
    });
    done.store(true, Ordering::Relaxed);
    hog.join().unwrap().join().unwrap();
}
