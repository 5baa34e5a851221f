//! `spawn_local`: spawner and spawned stay on one thread, while everything around them is stolen.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls, spawn_local};
use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

/// The kernel's name for the thread, which private thread-locals do not hide.
fn thread() -> i64 {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_gettid) }
}

/// Fibers that yield and sleep for as long as the guard lives, so that there is always something to steal and somebody to do it.
struct Crowd(Arc<AtomicBool>);

impl Crowd {
    fn on(scheduler: &Scheduler) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for n in 0..20 {
            let over = Arc::clone(&over);
            scheduler.spawn(Builder::new(), move || {
                while !over.load(Ordering::Relaxed) {
                    squall_fiber::yield_now();
                    if n % 4 == 0 {
                        squall_fiber::sleep(Duration::from_micros(50));
                    }
                }
            });
        }
        Self(over)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn scheduler() -> Scheduler {
    Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).unwrap()
}

#[test]
fn spawner_and_spawned_stay_on_one_thread() {
    for tls in [Tls::Private, Tls::Shared] {
        let scheduler = scheduler();
        let crowd = Crowd::on(&scheduler);
        let families: Vec<_> = (0..8)
            .map(|_| {
                scheduler.spawn(Builder::new(), move || {
                    // Wherever it may have come to.
                    squall_fiber::sleep(Duration::from_micros(300));
                    let count = Rc::new(Cell::new(0));
                    let seen = Rc::new(RefCell::new(Vec::new()));
                    let children: Vec<_> = (0..10)
                        .map(|_| {
                            let (count, seen) = (Rc::clone(&count), Rc::clone(&seen));
                            Builder::new().tls(tls).spawn_local(move || {
                                for round in 0..100 {
                                    seen.borrow_mut().push(thread());
                                    count.set(count.get() + 1);
                                    if round % 10 == 0 {
                                        squall_fiber::sleep(Duration::from_micros(20));
                                    } else {
                                        squall_fiber::yield_now();
                                    }
                                }
                            })
                        })
                        .collect();
                    for _ in 0..100 {
                        seen.borrow_mut().push(thread());
                        squall_fiber::yield_now();
                    }
                    for child in children {
                        child.join().unwrap();
                    }
                    assert_eq!(Rc::strong_count(&seen), 1);
                    assert_eq!(count.get(), 1000);
                    assert!(seen.borrow().iter().all(|one| *one == thread()));
                })
            })
            .collect();
        for family in families {
            family.join().unwrap();
        }
        drop(crowd);
    }
}

#[test]
fn a_result_that_is_not_send_comes_back() {
    let scheduler = scheduler();
    let fiber = scheduler.spawn(Builder::new(), || {
        let given = Rc::new(5);
        let lent = Rc::clone(&given);
        let returned = spawn_local(move || lent).join().unwrap();
        Rc::ptr_eq(&given, &returned)
    });
    assert!(fiber.join().unwrap());
}

/// Counts itself out on the thread where it is dropped.
struct Native(i64, Rc<()>);
static DROPPED_AT_HOME: AtomicUsize = AtomicUsize::new(0);

impl Drop for Native {
    fn drop(&mut self) {
        assert_eq!(Rc::strong_count(&self.1), 1);
        DROPPED_AT_HOME.fetch_add(usize::from(thread() == self.0), Ordering::SeqCst);
    }
}

/// The handle goes away in the one moment when neither it nor the fiber can drop the result: the fiber is destroying its
/// thread-locals, and waits there.
#[test]
fn a_result_that_nobody_wants_is_dropped_on_its_thread() {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            squall_fiber::sleep(Duration::from_millis(20));
        }
    }
    thread_local! {
        static SLOW: Slow = const { Slow };
    }
    const FIBERS: usize = 50;
    let scheduler = scheduler();
    let parent = scheduler.spawn(Builder::new(), || {
        let children: Vec<_> = (0..FIBERS)
            .map(|_| {
                spawn_local(|| {
                    SLOW.with(|_| {});
                    Native(thread(), Rc::new(()))
                })
            })
            .collect();
        squall_fiber::sleep(Duration::from_millis(5));
        drop(children);
        // From now on the results are dropped. The other worker has nothing to do but to take what this one does not come to.
        squall_fiber::sleep(Duration::from_millis(10));
        for _ in 0..200 {
            std::thread::sleep(Duration::from_micros(100));
            squall_fiber::yield_now();
        }
    });
    parent.join().unwrap();
    scheduler.stop();
    assert_eq!(DROPPED_AT_HOME.load(Ordering::SeqCst), FIBERS);
}

#[test]
fn the_builders_worker_gives_way_to_the_callers() {
    let scheduler = scheduler();
    let fiber = scheduler.spawn(Builder::new(), || {
        let children = [0, 1].map(|worker| Builder::new().worker(worker).spawn_local(thread));
        // A spawner that has not waited since is where it was.
        let here = thread();
        children.map(|child| child.join().unwrap() == here)
    });
    assert_eq!(fiber.join().unwrap(), [true, true]);
}

#[test]
fn a_plain_thread_has_no_worker_to_stay_on() {
    assert!(catch_unwind(|| spawn_local(|| ())).is_err());
}

/// Others may still move: only families stay.
#[test]
fn a_local_fiber_may_spawn_one_that_moves() {
    let scheduler = scheduler();
    let last = Arc::new(AtomicI64::new(0));
    let writer = Arc::clone(&last);
    let fiber = scheduler.spawn(Builder::new(), move || {
        spawn_local(move || {
            let free = squall_fiber::spawn(move || writer.store(thread(), Ordering::Relaxed));
            // Only the other worker can run it now.
            while !free.is_finished() {
                core::hint::spin_loop();
            }
            thread()
        })
        .join()
        .unwrap()
    });
    assert_ne!(fiber.join().unwrap(), last.load(Ordering::Relaxed));
}
