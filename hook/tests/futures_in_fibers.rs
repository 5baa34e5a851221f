//! Futures and fibers together, with the hooks in place: what an executor's code may do when a fiber wakes it.

use squall_hook::{block_on, sleep, spawn};
use squall_iomanager::IoManager;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// The only worker must not wait for the lock itself: the fiber that holds it would never run again.
#[test]
fn a_waker_may_take_a_lock_that_a_sleeping_fiber_of_the_same_worker_holds() {
    #[derive(Default)]
    struct Task {
        lock: Mutex<()>,
        woken: AtomicBool,
    }
    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            let _guard = self.lock.lock().unwrap();
            self.woken.store(true, Ordering::SeqCst);
        }
    }

    let manager = IoManager::new(1, false).unwrap();
    let main = manager.spawn(|| {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let (go_on, wait) = mpsc::channel::<()>();
        let mut awaited = spawn(move || wait.recv().unwrap());
        assert!(pin!(&mut awaited).poll(&mut Context::from_waker(&waker)).is_pending());
        let guard = task.lock.lock().unwrap();
        go_on.send(()).unwrap();
        while !awaited.is_finished() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(5));
        assert!(!task.woken.load(Ordering::SeqCst));
        drop(guard);
        while !task.woken.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(1));
        }
    });
    main.join().unwrap();
    manager.stop();
}

#[test]
fn a_future_that_blocks_while_it_is_polled_blocks_only_its_fiber() {
    let manager = IoManager::new(1, false).unwrap();
    let main = manager.spawn(|| {
        let (say, hear) = mpsc::channel();
        let blocked = spawn(move || {
            block_on(async {
                // No executor would like this; here it suspends the fiber.
                hear.recv().unwrap()
            })
        });
        say.send(5).unwrap();
        blocked.join().unwrap()
    });
    assert_eq!(main.join().unwrap(), 5);
    manager.stop();
}

#[test]
fn threads_and_fibers_wake_each_others_futures() {
    let manager = IoManager::new(2, false).unwrap();
    let main = manager.spawn(|| {
        let slot = Arc::new(Mutex::new((0, None::<Waker>)));
        let counting = {
            let slot = Arc::clone(&slot);
            spawn(move || {
                block_on(poll_fn(|context| {
                    let mut slot = slot.lock().unwrap();
                    slot.1 = Some(context.waker().clone());
                    if slot.0 == 10_000 { Poll::Ready(()) } else { Poll::Pending }
                }));
            })
        };
        let add = move || {
            for _ in 0..5_000 {
                let waker = {
                    let mut slot = slot.lock().unwrap();
                    slot.0 += 1;
                    slot.1.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        };
        let thread = std::thread::spawn(add.clone());
        spawn(add).join().unwrap();
        thread.join().unwrap();
        counting.join().unwrap();
    });
    main.join().unwrap();
    manager.stop();
}
