//! Numbers: a hundred thousand fibers at once, and memory that stays flat however many come and go.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The tests measure the process, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages: usize = statm.split(' ').nth(1).expect("a second field").parse().expect("a number");
    // SAFETY: sysconf only reads.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

#[test]
fn a_hundred_thousand_fibers_sleep_at_once() {
    const SHARED: usize = 95_000;
    const PRIVATE: usize = 5_000;
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let scheduler = Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).unwrap();
    let (asleep, woken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let fibers: Vec<_> = (0..SHARED + PRIVATE)
        .map(|number| {
            let (asleep, woken) = (Arc::clone(&asleep), Arc::clone(&woken));
            let tls = if number < SHARED { Tls::Shared } else { Tls::Private };
            scheduler.spawn(Builder::new().stack_bytes(16 * 1024).tls(tls), move || {
                asleep.fetch_add(1, Ordering::SeqCst);
                squall_fiber::park();
                squall_fiber::sleep(Duration::from_millis(100));
                woken.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    while asleep.load(Ordering::SeqCst) < SHARED + PRIVATE {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(scheduler.metrics().fibers_live, SHARED + PRIVATE);
    for fiber in &fibers {
        fiber.fiber().unpark();
    }
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert_eq!(woken.load(Ordering::SeqCst), SHARED + PRIVATE);
}

#[test]
fn fibers_that_come_and_go_leave_nothing_behind() {
    let _turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let scheduler = Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).unwrap();
    let run = |count: usize| {
        scheduler
            .spawn(Builder::new(), move || {
                for _ in 0..count {
                    // Allocates, so that a malloc cache that went with its fiber would show.
                    let sum = squall_fiber::spawn(|| {
                        let blocks: Vec<Box<[u8; 64]>> = (0..32).map(|_| Box::new([1; 64])).collect();
                        squall_fiber::yield_now();
                        blocks.iter().map(|block| block[7] as usize).sum::<usize>()
                    });
                    assert_eq!(sum.join().unwrap(), 32);
                }
            })
            .join()
            .unwrap();
    };
    run(1_000);
    let before = resident_bytes();
    run(50_000);
    let growth = resident_bytes().saturating_sub(before);
    // 100 bytes lost per fiber would be 5 MB; a fresh TLS block per fiber costs a hundred times that.
    assert!(growth < 4 << 20, "{growth} bytes more after 50,000 fibers");
}
