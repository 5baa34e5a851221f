//! What a simulation needs of fibers: something attached that their children inherit, and an end without a trace.

use squall_fiber::{
    Builder, Scheduler, SchedulerConfig, abandon, park, sleep, spawn, with_current, yield_now,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

type Extension = &'static (dyn Any + Send + Sync);

static FIRST: u32 = 1;
static SECOND: u32 = 2;

fn attached() -> Option<u32> {
    with_current(|current| current?.extension()?.downcast_ref::<u32>().copied())
}

fn scheduler(extension: Option<Extension>) -> Scheduler {
    Scheduler::new(SchedulerConfig { threads: 1, extension, ..Default::default() }).expect("a scheduler")
}

#[test]
fn a_fiber_inherits_what_is_attached_to_its_parent() {
    let scheduler = scheduler(Some(&FIRST));
    let fiber = scheduler.spawn(Builder::new(), || {
        let child = Builder::new().extension(&SECOND).spawn(|| {
            let grandchild = spawn(attached);
            (attached(), grandchild.join().unwrap())
        });
        (attached(), child.join().unwrap())
    });
    assert_eq!(fiber.join().unwrap(), (Some(1), (Some(2), Some(2))));
    assert_eq!(spawn(attached).join().unwrap(), None);
}

/// Counts when it is dropped.
struct Noted(Arc<AtomicUsize>);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn abandoned_fibers_neither_run_nor_drop_anything_and_the_scheduler_ends_without_them() {
    let scheduler = scheduler(None);
    let dropped = Arc::new(AtomicUsize::new(0));
    let ran = Arc::new(AtomicUsize::new(0));
    let (noted, counted) = (Arc::clone(&dropped), Arc::clone(&ran));
    let fiber = scheduler.spawn(Builder::new(), move || {
        let lost = |wait: fn()| {
            let (noted, ran) = (Noted(Arc::clone(&noted)), Arc::clone(&counted));
            Builder::new().extension(&SECOND).spawn(move || {
                let _noted = noted;
                wait();
                ran.fetch_add(1, Ordering::SeqCst);
            })
        };
        // Parked, sleeping, waiting for another, ready to go on, and not begun.
        let parked = lost(park);
        lost(|| sleep(Duration::from_secs(3600)));
        lost(|| spawn(park).join().unwrap());
        yield_now();
        lost(yield_now);
        yield_now();
        lost(|| {});
        let other = spawn(attached);
        assert_eq!(abandon(&SECOND), 6);
        parked.fiber().unpark();
        assert_eq!(other.join().unwrap(), None);
        for _ in 0..10 {
            yield_now();
        }
        assert_eq!(abandon(&SECOND), 0);
    });
    fiber.join().unwrap();
    scheduler.stop();
    assert_eq!((ran.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_fiber_cannot_abandon_itself() {
    let scheduler = scheduler(None);
    let own = Builder::new().extension(&SECOND);
    let fiber = scheduler.spawn(own, || catch_unwind(AssertUnwindSafe(|| abandon(&SECOND))).is_err());
    assert!(fiber.join().unwrap());
}
