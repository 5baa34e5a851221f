//! `squall_fiber::sync` among fibers of both kinds, plain threads, and mixtures, on one worker and on several.

mod channels;
mod conditions;
mod crowds;
mod locks;
mod properties;
mod selects;

use squall_fiber::{Builder, Scheduler, SchedulerConfig, Tls};
use std::thread;
use std::time::Duration;

/// Longer than anything here takes: a test that waits so long hangs.
const FOREVER: Duration = Duration::from_secs(60);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(5);

fn scheduler(threads: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig { threads, ..Default::default() }).unwrap()
}

/// Who takes part in a test.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Private,
    Shared,
    Thread,
}

const KINDS: [Kind; 3] = [Kind::Private, Kind::Shared, Kind::Thread];

/// A fiber or a thread.
enum Member<T> {
    Fiber(squall_fiber::JoinHandle<T>),
    Thread(thread::JoinHandle<T>),
}

impl<T: Send + 'static> Member<T> {
    fn start(scheduler: &Scheduler, kind: Kind, f: impl FnOnce() -> T + Send + 'static) -> Self {
        match kind {
            Kind::Private => Member::Fiber(scheduler.spawn(Builder::new().tls(Tls::Private), f)),
            Kind::Shared => Member::Fiber(scheduler.spawn(Builder::new().tls(Tls::Shared), f)),
            Kind::Thread => Member::Thread(thread::spawn(f)),
        }
    }

    fn join(self) -> T {
        match self {
            Member::Fiber(fiber) => fiber.join(),
            Member::Thread(thread) => thread.join(),
        }
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Runs `f` for each of so many members, of the kinds in turn, on so many workers, and collects what they return.
fn mixture<T: Send + 'static>(
    workers: usize,
    members: usize,
    kinds: &[Kind],
    f: impl Fn(usize) -> T + Send + Sync + Clone + 'static,
) -> Vec<T> {
    let scheduler = scheduler(workers);
    let members: Vec<_> = (0..members)
        .map(|n| {
            let f = f.clone();
            Member::start(&scheduler, kinds[n % kinds.len()], move || f(n))
        })
        .collect();
    members.into_iter().map(Member::join).collect()
}

/// Lets others run, whoever the caller is.
fn pause() {
    squall_fiber::yield_now();
}

/// Waits until the fiber waits for such a thing.
fn until_it_waits(scheduler: &Scheduler, fiber: &squall_fiber::Fiber, kind: squall_fiber::WaitKind) {
    let waits = || scheduler.fibers().iter().any(|info| info.id == fiber.id() && info.waits_for == kind);
    while !waits() {
        thread::yield_now();
    }
}
