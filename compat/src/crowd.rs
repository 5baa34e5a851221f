//! Many fibers that do the same at once, and the proof that the workers went on meanwhile.

use squall::{Builder, IoManager};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Workers of every test. Two are enough to move fibers between threads, and few enough that a crate which blocks its thread
/// stops the crowd.
pub const WORKERS: usize = 2;

/// Fibers of a test that has no reason for another number.
pub const FIBERS: usize = 200;

/// How long a crowd may take before it counts as hung.
const HANG_DEADLINE: Duration = Duration::from_secs(180);

/// How often the heart of a worker beats.
const BEAT: Duration = Duration::from_millis(5);

/// One of the crowd.
#[derive(Debug)]
pub struct Member {
    /// Its number, from 0.
    pub index: usize,
    meeting: Arc<Barrier>,
}

impl Member {
    /// Waits until every fiber of the crowd has come here as often as this one.
    ///
    /// A crate that holds its connection across this call has shown that it does not block the thread: with more members
    /// than workers nobody would get past.
    ///
    /// # Blocking
    /// Until all have come.
    pub fn meet(&self) {
        self.meeting.wait();
    }
}

/// Runs `act` in `fibers` fibers at once on two workers and waits for them. Every member must call [`Member::meet`] equally often.
///
/// # Panics
/// When the manager cannot be made, or when the heart of a worker did not beat while the crowd was at work.
///
/// A panic in a member, or a crowd that takes longer than three minutes, ends the process with a list of what the fibers
/// wait for: the others of a crowd may be waiting for the one that failed.
///
/// # Blocking
/// Until all members are done.
pub fn run(what: &str, fibers: usize, act: impl Fn(&Member) + Send + Sync + 'static) {
    let act = Arc::new(act);
    let meeting = Arc::new(Barrier::new(fibers));
    let started = Instant::now();
    let manager = IoManager::new(WORKERS, false).expect("a manager");
    let over = Arc::new(AtomicBool::new(false));
    let hearts: Vec<_> = (0..WORKERS).map(|worker| Heart::start(&manager, worker, &over)).collect();

    let (sender, ended) = mpsc::channel();
    for index in 0..fibers {
        let member = Member { index, meeting: Arc::clone(&meeting) };
        let (act, sender) = (Arc::clone(&act), sender.clone());
        manager.spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&member)));
            let _ = sender.send(result.map_err(|_| index));
        });
    }
    for done in 0..fibers {
        match ended.recv_timeout(HANG_DEADLINE.saturating_sub(started.elapsed())) {
            Ok(Ok(())) => {}
            Ok(Err(index)) => {
                give_up(&format_args!("{what}: fiber {index} panicked, {done} of {fibers} were done"))
            }
            Err(_) => give_up(&format_args!("{what}: hangs, {done} of {fibers} fibers are done")),
        }
    }
    let took = started.elapsed();
    over.store(true, Ordering::SeqCst);
    manager.stop();
    for heart in hearts {
        let beats = heart.beats.load(Ordering::SeqCst);
        let longest = Duration::from_micros(heart.longest_gap_us.load(Ordering::SeqCst));
        println!(
            "{what}: {fibers} fibers in {took:?}; worker {}: {beats} beats, {longest:?} apart at most",
            heart.worker
        );
        assert!(beats > 0, "{what}: worker {} was blocked", heart.worker);
    }
}

/// Says why, with what every fiber waits for, and ends the process.
fn give_up(why: &dyn Display) -> ! {
    eprintln!("FAILED: {why}");
    for fiber in squall::fibers() {
        eprintln!("  {fiber:?}");
    }
    std::process::exit(101);
}

/// A fiber pinned to a worker that goes on as long as the worker does.
struct Heart {
    worker: usize,
    beats: Arc<AtomicU64>,
    longest_gap_us: Arc<AtomicU64>,
}

impl Heart {
    fn start(manager: &IoManager, worker: usize, over: &Arc<AtomicBool>) -> Self {
        let heart = Self { worker, beats: Arc::default(), longest_gap_us: Arc::default() };
        let (beats, longest_gap_us, over) =
            (Arc::clone(&heart.beats), Arc::clone(&heart.longest_gap_us), Arc::clone(over));
        manager.spawn_with(Builder::new().name(format!("heart {worker}")).worker(worker), move || {
            let mut last = Instant::now();
            while !over.load(Ordering::SeqCst) {
                thread::sleep(BEAT);
                let now = Instant::now();
                longest_gap_us.fetch_max(now.duration_since(last).as_micros() as u64, Ordering::SeqCst);
                beats.fetch_add(1, Ordering::SeqCst);
                last = now;
            }
        });
        heart
    }
}
