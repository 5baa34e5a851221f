//! Threads for calls that nothing can make non-blocking: file sync, name resolution, joining a thread.
//!
//! A fiber hands over a call and waits; the worker goes on. Threads are started when all are busy, up to a limit, and end
//! after ten idle seconds. Calls beyond the limit wait in a queue.

use crate::context::with_current;
use crate::fiber::{WaitKind, Wake, Waker};
use crate::lock::Lock;
use crate::metrics::BlockingMetrics;
use crate::sys;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::VecDeque;
use std::panic::{catch_unwind, resume_unwind};
use std::thread;
use std::time::Duration;

/// More than any disk or resolver answers at once, few enough to be harmless.
const THREADS_MAX: usize = 128;
const IDLE_TIME: Duration = Duration::from_secs(10);

struct Job {
    run: unsafe fn(*mut ()),
    data: *mut (),
}

// SAFETY: the job's data is a `Call` whose parts are `Send` (see `run_blocking`), used by one thread, once.
unsafe impl Send for Job {}

struct Pool {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    calls: u64,
}

static POOL: Lock<Pool> = Lock::new(Pool { jobs: VecDeque::new(), threads: 0, idle: 0, calls: 0 });
/// Changes with every job, so that a thread that saw an empty queue does not sleep past a new one.
static BELL: AtomicU32 = AtomicU32::new(0);

/// One call, on the stack of the fiber that waits for it.
struct Call<F, R> {
    f: Option<F>,
    result: Option<thread::Result<R>>,
    waker: Waker,
}

/// Runs `f` on the pool while the calling fiber waits; outside a fiber, runs it right here.
///
/// The closure runs on a plain thread: hooks pass through, thread-locals are that thread's.
///
/// # Panics
/// With `f`'s own panic.
///
/// # Blocking
/// Suspends the fiber until `f` has returned; the wait cannot be cut short, because `f` may borrow from the caller.
pub fn run_blocking<F, R>(f: F) -> R
where
    F: FnOnce() -> R + Send,
    R: Send,
{
    with_current(|current| {
        let Some(current) = current.filter(|current| current.may_suspend()) else { return f() };
        let wait = current.begin_wait(WaitKind::Blocking, 0);
        let mut call = Call { f: Some(f), result: None, waker: wait.waker() };
        submit(Job { run: run_call::<F, R>, data: (&raw mut call).cast() });
        wait.block(None);
        match call.result.take().expect("the wait ends when the result is there") {
            Ok(result) => result,
            Err(payload) => resume_unwind(payload),
        }
    })
}

/// # Safety
/// `data` is a `Call<F, R>` that lives until its waker has fired.
unsafe fn run_call<F: FnOnce() -> R, R>(data: *mut ()) {
    // SAFETY: by the contract; the fiber does not touch it before the waker has fired.
    let call = unsafe { &mut *data.cast::<Call<F, R>>() };
    let f = call.f.take().expect("a job runs once");
    call.result = Some(catch_unwind(AssertUnwindSafe(f)));
    // Cloned, because the call is gone as soon as the fiber runs.
    let waker = call.waker.clone();
    waker.wake(Wake::Ready);
}

fn submit(job: Job) {
    let start_thread = {
        let mut pool = POOL.lock();
        pool.jobs.push_back(job);
        pool.calls += 1;
        let start = pool.idle < pool.jobs.len() && pool.threads < THREADS_MAX;
        pool.threads += usize::from(start);
        start
    };
    if start_thread {
        let started = thread::Builder::new().name("squall-blocking".into()).spawn(serve);
        if started.is_err() {
            let lone_job = {
                let mut pool = POOL.lock();
                pool.threads -= 1;
                // With other threads the job is served by one of them, later; with none, by this one, now.
                if pool.threads == 0 { pool.jobs.pop_back() } else { None }
            };
            if let Some(job) = lone_job {
                // SAFETY: the job was made by `run_blocking` and taken out of the queue once.
                unsafe { (job.run)(job.data) };
            }
        }
    }
    BELL.fetch_add(1, Ordering::Release);
    sys::futex_wake(&BELL, 1);
}

fn serve() {
    let mut idle_since = None;
    loop {
        let bell = BELL.load(Ordering::Acquire);
        let job = {
            let mut pool = POOL.lock();
            let job = pool.jobs.pop_front();
            match (&job, idle_since) {
                (Some(_), Some(_)) => pool.idle -= 1,
                (None, None) => pool.idle += 1,
                (None, Some(since)) if std::time::Instant::elapsed(&since) >= IDLE_TIME => {
                    pool.idle -= 1;
                    pool.threads -= 1;
                    return;
                }
                _ => {}
            }
            job
        };
        match job {
            Some(job) => {
                idle_since = None;
                // SAFETY: the job was made by `run_blocking` and taken out of the queue once.
                unsafe { (job.run)(job.data) };
            }
            None => {
                idle_since.get_or_insert_with(std::time::Instant::now);
                sys::futex_wait(&BELL, bell, Some(IDLE_TIME));
            }
        }
    }
}

pub(crate) fn metrics() -> BlockingMetrics {
    let pool = POOL.lock();
    BlockingMetrics { queued: pool.jobs.len(), threads: pool.threads, calls: pool.calls }
}
