//! Spawning and ending fibers as fast as possible beside whoever lists, detaches, joins and stops.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls, yield_now};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

fn workers(threads: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig { threads, ..Default::default() }).unwrap()
}

/// Counts how many there are.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_list_names_every_parked_fiber_while_others_come_and_go() {
    let scheduler = workers(2);
    let parked: Vec<_> = (0..100)
        .map(|n| scheduler.spawn(Builder::new().name(format!("parked-{n}")), squall_fiber::park))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let churn: Vec<_> = (0..2)
        .map(|_| {
            let stop = Arc::clone(&stop);
            scheduler.spawn(Builder::new(), move || {
                let mut ended = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let batch: Vec<_> =
                        (0..50).map(|n| Builder::new().tls(Tls::Shared).spawn(move || n)).collect();
                    ended +=
                        batch.into_iter().map(|fiber| u64::from(fiber.join().unwrap() < 50)).sum::<u64>();
                    yield_now();
                }
                ended
            })
        })
        .collect();
    for _ in 0..300 {
        let listed = scheduler.fibers();
        let names =
            listed.iter().filter(|fiber| fiber.name.as_ref().is_some_and(|name| name.starts_with("parked-")));
        assert_eq!(names.count(), 100);
    }
    stop.store(true, Ordering::Relaxed);
    let ended: u64 = churn.into_iter().map(|fiber| fiber.join().unwrap()).sum();
    for fiber in parked {
        fiber.fiber().unpark();
        fiber.join().unwrap();
    }
    scheduler.stop();
    let metrics = scheduler.metrics();
    assert_eq!((metrics.fibers_live, metrics.fibers_spawned), (0, ended + 102));
}

#[test]
fn a_result_is_dropped_once_whoever_comes_last() {
    let scheduler = Arc::new(workers(2));
    let count = Arc::new(AtomicUsize::new(0));
    let droppers: Vec<_> = (0..2)
        .map(|_| {
            let (scheduler, count) = (Arc::clone(&scheduler), Arc::clone(&count));
            thread::spawn(move || {
                for n in 0..5_000u32 {
                    let value = Counted::new(&count);
                    let handle = scheduler.spawn(Builder::new().tls(Tls::Shared), move || {
                        if n.is_multiple_of(3) {
                            yield_now();
                        }
                        value
                    });
                    for _ in 0..n % 64 {
                        std::hint::spin_loop();
                    }
                    if n.is_multiple_of(5) { drop(handle.join().unwrap()) } else { drop(handle) }
                }
            })
        })
        .collect();
    for dropper in droppers {
        dropper.join().unwrap();
    }
    scheduler.stop();
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[test]
fn large_functions_and_results_are_carried_whole() {
    let scheduler = workers(1);
    let captured = [7u64; 512];
    let handle = scheduler.spawn(Builder::new(), move || captured.map(|word| word + 1));
    assert_eq!(handle.join().unwrap(), [8u64; 512]);
}

#[test]
fn fibers_spawned_here_and_ended_there_do_not_pile_up() {
    let scheduler = workers(2);
    // Each fiber yields, so that many are stolen, and ends where it is.
    let spawner = scheduler.spawn(Builder::new().worker(0), || {
        for _ in 0..200 {
            let batch: Vec<_> = (0..200)
                .map(|_| {
                    squall_fiber::spawn(|| {
                        for _ in 0..3 {
                            yield_now();
                        }
                    })
                })
                .collect();
            batch.into_iter().for_each(|fiber| fiber.join().unwrap());
        }
    });
    spawner.join().unwrap();
    scheduler.stop();
    assert_eq!(scheduler.metrics().fibers_live, 0);
}
