//! Where a fiber stands, and who may run it next: one word, and the flag that cancels it.
//!
//! The word packs a generation, the reason of the last wake-up, and where the fiber stands:
//!
//! ```text
//!   Running --begin--> Waiting --park (worker, after the switch)--> Parked
//!      ^                  |                                            |
//!      +------ wake ------+------------------ wake, and queue ---------+
//! ```
//!
//! 1. Only the fiber itself leaves `Running`; only the worker that it has switched to turns `Waiting` into `Parked`; anybody with
//!    the generation ends either.
//! 2. Every wait has its own generation, so a wake-up meant for an earlier wait (a timer or a readiness event that lost a race)
//!    finds another generation and does nothing: no wait ever ends for a reason that is not its own.
//! 3. Whoever takes the word from `Parked` to `Running` has the fiber in hand, and queues it. Nobody else does.
//! 4. While the fiber waits, the place of the reason says whether cancellation may end the wait.
//!
//! Nothing here allocates, blocks, or knows what a fiber is: loom checks it (at the end of this file).

use crate::barrier;
use crate::fiber::Wake;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const STANDING_MASK: u64 = 0b11;
const RUNNING: u64 = 0;
const WAITING: u64 = 1;
const PARKED: u64 = 2;
const REASON_SHIFT: u32 = 2;
const REASON_MASK: u64 = 0b11 << REASON_SHIFT;
/// In the place of the reason while the fiber waits: cancellation ends the wait.
const INTERRUPTIBLE: u64 = 1 << REASON_SHIFT;
const GENERATION_SHIFT: u32 = 4;

fn reason_bits(reason: Wake) -> u64 {
    match reason {
        Wake::Ready => 0,
        // Who waits knows by himself which of the deadlines was the earlier.
        Wake::TimedOut | Wake::Expired => 1,
        Wake::Closed => 2,
        Wake::Cancelled => 3,
    }
}

fn reason_of(word: u64) -> Wake {
    match (word & REASON_MASK) >> REASON_SHIFT {
        0 => Wake::Ready,
        1 => Wake::TimedOut,
        2 => Wake::Closed,
        _ => Wake::Cancelled,
    }
}

/// Loom takes sequentially consistent accesses for acquire and release; it knows such fences, though, which say the same.
#[inline(always)]
fn sequentially_consistent_for_loom() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// What a wake-up has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Woken {
    /// Nothing: the wait was over.
    Late,
    /// It has ended a wait before the fiber was parked; whoever runs it now goes on.
    Early,
    /// It has ended a wait, and the caller has the fiber in hand.
    InHand,
}

pub(crate) struct State {
    word: AtomicU64,
    /// Set by anybody, never cleared.
    cancelled: AtomicBool,
}

impl State {
    pub(crate) const WORD_OFFSET: usize = core::mem::offset_of!(State, word);

    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(1 << GENERATION_SHIFT), cancelled: AtomicBool::new(false) }
    }

    /// The generation of the wait that the fiber is in, or was in last.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.word.load(Ordering::Relaxed) >> GENERATION_SHIFT
    }

    pub(crate) fn is_running(&self) -> bool {
        (self.word.load(Ordering::Relaxed) & STANDING_MASK) == RUNNING
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Begins a wait and returns its generation. Called by the fiber.
    #[inline]
    pub(crate) fn begin(&self) -> u64 {
        // By rule 1 nobody else writes the word now.
        let generation = self.generation() + 1;
        // Whoever gets this generation gets it after this store, and by a hand-over that orders the two.
        self.word.store((generation << GENERATION_SHIFT) | WAITING, Ordering::Release);
        generation
    }

    /// As [`State::begin`], and cancellation ends the wait from the start, unless [`State::is_heard`] says that it has come already.
    #[inline]
    pub(crate) fn begin_listening(&self) -> u64 {
        let generation = self.generation() + 1;
        self.word.store((generation << GENERATION_SHIFT) | INTERRUPTIBLE | WAITING, Ordering::Release);
        generation
    }

    /// Whether the fiber has been cancelled before it began to listen. Called by the fiber, once it has.
    ///
    /// Why no wait sleeps through a `cancel`: here the word was written before the flag is read, there the flag is written before the
    /// word is read, and there is the barrier between the two on either side. So the flag is seen here, or the word there.
    #[inline]
    pub(crate) fn is_heard(&self) -> bool {
        barrier::light();
        self.cancelled.load(Ordering::Acquire)
    }

    /// From now on cancellation ends the wait that has begun; `Some` if the wait is over, because it has already. Called by the
    /// fiber.
    ///
    /// Why no wait sleeps through a `cancel`: here the word is written before the flag is read, there the flag before the word, and
    /// all four are sequentially consistent, so they have one order. If the read of the flag here comes before it is set, the word
    /// was written before `cancel` reads it, which so finds the wait and ends it, or finds a later state: then the wait has ended,
    /// and the next one goes through the same. If both see each other, the word lets one of them end the wait.
    #[inline]
    pub(crate) fn listen(&self, generation: u64) -> Option<Wake> {
        let waiting = (generation << GENERATION_SHIFT) | WAITING;
        let listening =
            self.word.compare_exchange(waiting, waiting | INTERRUPTIBLE, Ordering::SeqCst, Ordering::Acquire);
        sequentially_consistent_for_loom();
        match listening {
            Err(word) => Some(reason_of(word)),
            Ok(_) if !self.cancelled.load(Ordering::SeqCst) => None,
            Ok(_) => Some(self.end(generation, Wake::Cancelled)),
        }
    }

    /// Ends the wait that the fiber has begun, if nobody was faster; says for what reason it has ended. Called by the fiber.
    pub(crate) fn end(&self, generation: u64, reason: Wake) -> Wake {
        match self.wake(generation, reason) {
            Woken::Late => self.outcome().expect("a wait that is over has a reason"),
            Woken::Early | Woken::InHand => reason,
        }
    }

    /// Sets the flag, and ends the wait that listens to it.
    pub(crate) fn cancel(&self) -> Woken {
        self.cancelled.store(true, Ordering::SeqCst);
        // See `listen`.
        sequentially_consistent_for_loom();
        // What waits visibly needs no barrier. If that wait ends in this moment for another reason, the next one may have begun.
        match self.wake_listener() {
            Woken::Late => {}
            woken => return woken,
        }
        // See `is_heard`. A wait that is over by now is followed by one that begins after the barrier, and sees the flag.
        barrier::heavy();
        self.wake_listener()
    }

    fn wake_listener(&self) -> Woken {
        let word = self.word.load(Ordering::SeqCst);
        if (word & STANDING_MASK) != RUNNING && (word & INTERRUPTIBLE) != 0 {
            self.wake(word >> GENERATION_SHIFT, Wake::Cancelled)
        } else {
            Woken::Late
        }
    }

    /// Ends a wait.
    #[inline]
    pub(crate) fn wake(&self, generation: u64, reason: Wake) -> Woken {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let standing = word & STANDING_MASK;
            if (word >> GENERATION_SHIFT) != generation || standing == RUNNING {
                return Woken::Late;
            }
            let woken = (generation << GENERATION_SHIFT) | (reason_bits(reason) << REASON_SHIFT) | RUNNING;
            match self.word.compare_exchange_weak(word, woken, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if standing == PARKED => return Woken::InHand,
                Ok(_) => return Woken::Early,
                Err(current) => word = current,
            }
        }
    }

    /// Why the wait has ended; `None` if it has not. Called by the fiber.
    #[inline]
    pub(crate) fn outcome(&self) -> Option<Wake> {
        let word = self.word.load(Ordering::Acquire);
        ((word & STANDING_MASK) == RUNNING).then(|| reason_of(word))
    }

    /// Called by the worker once the fiber has switched away to wait: from now on whoever ends the wait has the fiber in hand.
    /// False if the wait has ended meanwhile; then the worker keeps it.
    #[inline]
    pub(crate) fn park(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        // By rule 1 only the end of the wait can come in between.
        while (word & STANDING_MASK) == WAITING {
            let parked = (word & !STANDING_MASK) | PARKED;
            match self.word.compare_exchange_weak(word, parked, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(current) => word = current,
            }
        }
        false
    }

    /// Ends the wait that the fiber has begun without waiting. True if a wake-up had come already. Called by the fiber.
    #[inline]
    pub(crate) fn abandon(&self, generation: u64) -> bool {
        let before = self.word.swap((generation << GENERATION_SHIFT) | RUNNING, Ordering::AcqRel);
        (before & STANDING_MASK) == RUNNING
    }

    /// Makes sure that the fiber, which the caller has in hand, is never woken again: whoever has the generation of its last wait
    /// finds another.
    pub(crate) fn give_up(&self) {
        self.word.store(((self.generation() + 1) << GENERATION_SHIFT) | RUNNING, Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    /// A fiber with its worker in one thread: how often it was put in somebody's hand, and how its wait ended.
    struct Model {
        state: State,
        in_hand: AtomicUsize,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self { state: State::new(), in_hand: AtomicUsize::new(0) })
        }

        fn note(&self, woken: Woken) {
            if woken == Woken::InHand {
                self.in_hand.fetch_add(1, Ordering::SeqCst);
            }
        }

        /// Waits as `Wait::block_interruptible` and the worker do. True if the fiber is left parked.
        fn wait(&self, generation: u64) -> bool {
            self.state.listen(generation).is_none() && self.state.outcome().is_none() && self.state.park()
        }
    }

    #[test]
    fn loom_no_wait_sleeps_through_a_cancel() {
        loom::model(|| {
            let model = Model::new();
            let canceller = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.note(model.state.cancel()))
            };
            let parked = model.wait(model.state.begin());
            canceller.join().unwrap();
            assert_eq!(model.state.outcome(), Some(Wake::Cancelled));
            assert_eq!(model.in_hand.load(Ordering::SeqCst), usize::from(parked));
        });
    }

    #[test]
    fn loom_no_wait_that_listens_from_the_start_sleeps_through_a_cancel() {
        loom::model(|| {
            let model = Model::new();
            let canceller = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.note(model.state.cancel()))
            };
            // One wait that ends at once, and one that nobody but the canceller ends.
            let first = model.state.begin_listening();
            let _ = model.state.is_heard();
            model.state.abandon(first);
            model.state.begin_listening();
            let parked = !model.state.is_heard() && model.state.outcome().is_none() && model.state.park();
            canceller.join().unwrap();
            if parked {
                assert_eq!(model.state.outcome(), Some(Wake::Cancelled));
            }
            assert_eq!(model.in_hand.load(Ordering::SeqCst), usize::from(parked));
        });
    }

    #[test]
    fn loom_a_wait_without_errors_is_not_cancelled() {
        loom::model(|| {
            let model = Model::new();
            let canceller = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.note(model.state.cancel()))
            };
            let generation = model.state.begin();
            assert!(model.state.park());
            canceller.join().unwrap();
            assert_eq!(model.state.outcome(), None);
            assert_eq!(model.state.wake(generation, Wake::Ready), Woken::InHand);
            // The next one that listens is.
            assert!(!model.wait(model.state.begin()));
            assert_eq!(model.state.outcome(), Some(Wake::Cancelled));
        });
    }

    /// A waker and a canceller at once: one of them ends the wait, the other learns that it did not.
    #[test]
    fn loom_one_of_waker_and_canceller_ends_the_wait() {
        let mut model = loom::model::Builder::new();
        // In full, three threads take minutes.
        model.preemption_bound = Some(3);
        model.check(|| {
            let model = Model::new();
            let generation = model.state.begin();
            let waker = {
                let model = Arc::clone(&model);
                thread::spawn(move || {
                    let woken = model.state.wake(generation, Wake::Ready);
                    model.note(woken);
                    woken != Woken::Late
                })
            };
            let canceller = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.note(model.state.cancel()))
            };
            let parked = model.wait(generation);
            let was_heard = waker.join().unwrap();
            canceller.join().unwrap();
            let outcome = model.state.outcome();
            assert_eq!(outcome, Some(if was_heard { Wake::Ready } else { Wake::Cancelled }));
            assert_eq!(model.in_hand.load(Ordering::SeqCst), usize::from(parked));
        });
    }

    /// A waker of the wait before meets the next wait.
    #[test]
    fn loom_a_late_wake_up_does_nothing_to_the_next_wait() {
        loom::model(|| {
            let model = Model::new();
            let first = model.state.begin();
            let late = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.state.wake(first, Wake::Closed))
            };
            let heard = model.state.abandon(first);
            let second = model.state.begin();
            assert!(model.wait(second));
            assert_eq!(late.join().unwrap() != Woken::Late, heard);
            assert_eq!(model.state.wake(second, Wake::Ready), Woken::InHand);
            assert_eq!(model.state.outcome(), Some(Wake::Ready));
        });
    }
}
