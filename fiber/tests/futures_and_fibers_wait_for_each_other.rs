//! `block_on` in fibers and threads, and join handles as futures under an executor that knows nothing of fibers.

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls, block_on};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Ready once it has been set from elsewhere.
#[derive(Default)]
struct Flag {
    set: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Flag {
    fn set(&self) {
        self.set.store(true, Ordering::Release);
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn wait(&self) -> impl Future<Output = ()> {
        poll_fn(|context| {
            *self.waker.lock().unwrap() = Some(context.waker().clone());
            if self.set.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

#[test]
fn block_on_waits_in_a_thread() {
    let flag = Arc::new(Flag::default());
    let setter = Arc::clone(&flag);
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        setter.set();
    });
    block_on(flag.wait());
    thread.join().unwrap();
}

#[test]
fn block_on_leaves_the_worker_to_others() {
    for tls in [Tls::Private, Tls::Shared] {
        let scheduler = Scheduler::new(SchedulerConfig { threads: 1, ..Default::default() }).unwrap();
        let flag = Arc::new(Flag::default());
        let setter = Arc::clone(&flag);
        let waiting = scheduler.spawn(Builder::new().tls(tls), move || block_on(flag.wait()));
        let setting = scheduler.spawn(Builder::new().tls(tls), move || setter.set());
        setting.join().unwrap();
        waiting.join().unwrap();
    }
}

#[test]
fn block_on_keeps_out_of_the_park_token() {
    let fiber = squall_fiber::spawn(|| {
        let me = squall_fiber::current().unwrap();
        let flag = Arc::new(Flag::default());
        // For a park of the fiber's own, later.
        me.unpark();
        let setter = Arc::clone(&flag);
        squall_fiber::spawn(move || {
            squall_fiber::sleep(Duration::from_millis(5));
            setter.set();
        });
        block_on(async {
            // Takes a token: that must not be the one that the flag leaves.
            squall_fiber::park();
            flag.wait().await;
        });
        me.unpark();
        block_on(async {});
        squall_fiber::park();
    });
    fiber.join().unwrap();
}

#[test]
fn a_future_that_wakes_itself_is_polled_again() {
    let mut polls = 0;
    let answer = block_on(poll_fn(|context| {
        polls += 1;
        context.waker().wake_by_ref();
        if polls == 1000 { Poll::Ready(polls) } else { Poll::Pending }
    }));
    assert_eq!(answer, 1000);
}

#[test]
fn block_on_is_not_cancelled() {
    let flag = Arc::new(Flag::default());
    let setter = Arc::clone(&flag);
    let fiber = squall_fiber::spawn(move || block_on(flag.wait()));
    fiber.cancel();
    std::thread::sleep(Duration::from_millis(5));
    assert!(!fiber.is_finished());
    setter.set();
    fiber.join().unwrap();
}

#[test]
fn a_handle_gives_the_result_or_the_panic() {
    assert_eq!(block_on(squall_fiber::spawn(|| 5)).unwrap(), 5);
    let payload = block_on(squall_fiber::spawn(|| -> () { panic!("told to the future") })).unwrap_err();
    assert_eq!(*payload.downcast_ref::<&str>().unwrap(), "told to the future");
    let ended = squall_fiber::spawn(|| 6);
    while !ended.is_finished() {
        std::thread::yield_now();
    }
    assert_eq!(block_on(ended).unwrap(), 6);
}

#[test]
fn the_task_that_polled_last_is_woken() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let go_on = Arc::new(Flag::default());
    let waiting = Arc::clone(&go_on);
    let mut handle = squall_fiber::spawn(move || block_on(waiting.wait()));
    let counts = [Arc::new(Count(AtomicUsize::new(0))), Arc::new(Count(AtomicUsize::new(0)))];
    for count in [&counts[0], &counts[1], &counts[1]] {
        let waker = Waker::from(Arc::clone(count));
        assert!(pin!(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    // Only the handle's registration is left of the first one's wakers: none.
    assert_eq!(Arc::strong_count(&counts[0]), 1);
    go_on.set();
    while counts[1].0.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(counts[0].0.load(Ordering::SeqCst), 0);
    let waker = Waker::noop();
    assert!(pin!(&mut handle).poll(&mut Context::from_waker(waker)).is_ready());
}

#[test]
fn the_last_fiber_of_a_scheduler_that_stops_is_awaited_too() {
    let scheduler = Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).unwrap();
    let go_on = Arc::new(Flag::default());
    let waiting = Arc::clone(&go_on);
    let handle = scheduler.spawn(Builder::new(), move || block_on(waiting.wait()));
    let stopping = std::thread::spawn(move || scheduler.stop());
    let awaiting = std::thread::spawn(move || block_on(handle));
    std::thread::sleep(Duration::from_millis(5));
    go_on.set();
    awaiting.join().unwrap().unwrap();
    stopping.join().unwrap();
}

/// A small executor whose run queue is behind std's own lock.
#[derive(Default)]
struct Executor {
    ready: Mutex<VecDeque<Arc<Task>>>,
    some_ready: Condvar,
    live: AtomicUsize,
}

struct Task {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    executor: Arc<Executor>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let executor = Arc::clone(&self.executor);
        executor.ready.lock().unwrap().push_back(self);
        executor.some_ready.notify_one();
    }
}

impl Executor {
    fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        self.live.fetch_add(1, Ordering::SeqCst);
        let task = Task { future: Mutex::new(Some(Box::pin(future))), executor: Arc::clone(self) };
        Wake::wake(Arc::new(task));
    }

    fn run(&self) {
        while self.live.load(Ordering::SeqCst) > 0 {
            let task = {
                let mut ready = self.ready.lock().unwrap();
                loop {
                    match ready.pop_front() {
                        Some(task) => break task,
                        None => ready = self.some_ready.wait(ready).unwrap(),
                    }
                }
            };
            let waker = Waker::from(Arc::clone(&task));
            let mut future = task.future.lock().unwrap();
            let Some(running) = future.as_mut() else { continue };
            if running.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                *future = None;
                self.live.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

#[test]
fn thousands_of_handles_are_awaited_by_an_executor() {
    const FIBERS: usize = 5_000;
    let executor = Arc::new(Executor::default());
    let sum = Arc::new(AtomicUsize::new(0));
    for n in 0..FIBERS {
        let fiber = squall_fiber::spawn(move || {
            if n % 3 == 0 {
                squall_fiber::sleep(Duration::from_micros(n as u64 % 700));
            }
            n
        });
        let sum = Arc::clone(&sum);
        executor.spawn(async move {
            sum.fetch_add(fiber.await.unwrap(), Ordering::SeqCst);
        });
    }
    executor.run();
    assert_eq!(sum.load(Ordering::SeqCst), FIBERS * (FIBERS - 1) / 2);
}
