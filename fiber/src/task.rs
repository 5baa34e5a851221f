//! What a fiber is given to run, and the result it leaves: both in a few words inside the fiber itself.
//!
//! A function whose captures fit is stored without an allocation, and its result later takes its place. An allocation per fiber would
//! cost more than the words do: the function is allocated by the spawner, but freed in the fiber, whose malloc cache is
//! another one, so the spawner's cache would run dry and every spawn would take malloc's slow path.
//!
//! The storage is written and read in turns, and `outcome` says whose turn it is: the spawner stores the function before the fiber is
//! queued, the fiber takes it and leaves the result, and whoever comes last of the fiber and its handle disposes of that.

use crate::fiber::Inner;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicU8, Ordering};
use std::panic::catch_unwind;
use std::thread;

/// Words of storage: room for a closure with a handful of captures.
const WORDS: usize = 6;
type Words = [MaybeUninit<usize>; WORDS];

/// The fiber has not left its result.
const PENDING: u8 = 0;
/// The result is there, and the handle may take it.
const READY: u8 = 1;
/// The handle is gone: nobody wants the result.
const DETACHED: u8 = 2;
/// The handle has taken the result.
const TAKEN: u8 = 3;

/// A function with its captures, to be run once in a fiber.
pub(crate) struct Task {
    words: UnsafeCell<Words>,
    outcome: AtomicU8,
    run: unsafe fn(&Inner),
    discard: unsafe fn(&Task),
}

/// Whether a value lies in the words themselves, not in a box whose address does.
const fn fits<T>() -> bool {
    size_of::<T>() <= size_of::<Words>() && align_of::<T>() <= align_of::<Words>()
}

impl Task {
    /// Stores a function. It must be run or discarded, or it leaks.
    pub(crate) fn new<F, T>(f: F) -> Self
    where
        F: FnOnce() -> T,
    {
        let task = Self {
            words: UnsafeCell::new([MaybeUninit::uninit(); WORDS]),
            outcome: AtomicU8::new(PENDING),
            run: run::<F, T>,
            // SAFETY: `new` has stored an `F`, and the caller of `discard` vouches for the rest.
            discard: |task| drop(unsafe { task.take::<F>() }),
        };
        // SAFETY: nobody else knows the task yet.
        unsafe { task.put(f) };
        task
    }

    /// Runs the function and leaves its result, or drops that if the handle is gone.
    ///
    /// # Safety
    /// The caller is the fiber whose task this is; once.
    pub(crate) unsafe fn run(fiber: &Inner) {
        // SAFETY: by the caller's contract; `run` was made for the function that `new` has stored.
        unsafe { (fiber.task.run)(fiber) };
    }

    /// Drops the function that will not run.
    ///
    /// # Safety
    /// It has not run and will not.
    pub(crate) unsafe fn discard(&self) {
        // SAFETY: by the caller's contract.
        unsafe { (self.discard)(self) };
    }

    /// Takes the result for the handle; `None` if it has been taken before.
    ///
    /// # Safety
    /// The fiber has ended, `T` is the type of its function's result, and only its handle calls this, once at a time.
    pub(crate) unsafe fn take_result<T>(&self) -> Option<thread::Result<T>> {
        if self.outcome.load(Ordering::Relaxed) == TAKEN {
            return None;
        }
        self.outcome.store(TAKEN, Ordering::Relaxed);
        // SAFETY: by the caller's contract the fiber has left its result, and nobody else takes it.
        Some(unsafe { self.take() })
    }

    /// The handle goes away: if nobody has taken the result, it is dropped here, or by the fiber when there is one.
    ///
    /// # Safety
    /// `T` is the type of the function's result, and this is the handle's last use of the task.
    pub(crate) unsafe fn detach<T>(&self) {
        if self.outcome.load(Ordering::Relaxed) == TAKEN {
            return;
        }
        if self.outcome.swap(DETACHED, Ordering::AcqRel) == READY {
            // SAFETY: the fiber has left its result and will not touch it again.
            drop(unsafe { self.take::<thread::Result<T>>() });
        }
    }

    /// # Safety
    /// It is the caller's turn, and the storage is empty.
    unsafe fn put<V>(&self, value: V) {
        let words = self.words.get();
        // SAFETY: it is the caller's turn; `fits` has compared size and alignment, and a thin pointer always fits.
        unsafe {
            if fits::<V>() {
                words.cast::<V>().write(value);
            } else {
                words.cast::<*mut V>().write(Box::into_raw(Box::new(value)));
            }
        }
    }

    /// # Safety
    /// It is the caller's turn, and the storage holds a `V`.
    unsafe fn take<V>(&self) -> V {
        let words = self.words.get();
        // SAFETY: as in `put`, which wrote it; a box's address came from `into_raw`.
        unsafe {
            if fits::<V>() { words.cast::<V>().read() } else { *Box::from_raw(words.cast::<*mut V>().read()) }
        }
    }
}

/// # Safety
/// As [`Task::run`], with the types of the stored function.
unsafe fn run<F, T>(fiber: &Inner)
where
    F: FnOnce() -> T,
{
    let task = &fiber.task;
    // SAFETY: `new` has stored an `F`, and the fiber runs once.
    let f = unsafe { task.take::<F>() };
    let result = catch_unwind(AssertUnwindSafe(f));
    // SAFETY: the storage is empty, and nobody looks at it before `outcome` says so.
    unsafe { task.put(result) };
    if task.outcome.swap(READY, Ordering::AcqRel) == DETACHED {
        // SAFETY: the handle is gone, so nobody else will take what was just stored.
        drop(unsafe { task.take::<thread::Result<T>>() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_size_and_alignment_come_back() {
        #[repr(align(64))]
        #[derive(PartialEq, Debug, Clone, Copy)]
        struct Aligned(u8);
        let task = Task::new(|| ());
        // SAFETY: one thread, put and take in turns; the unit function that was stored needs no drop.
        unsafe {
            task.put([7u64; 6]);
            assert_eq!(task.take::<[u64; 6]>(), [7; 6]);
            task.put([9u8; 1000]);
            assert_eq!(task.take::<[u8; 1000]>(), [9; 1000]);
            task.put(Aligned(3));
            assert_eq!(task.take::<Aligned>(), Aligned(3));
            task.put(String::from("owned"));
            assert_eq!(task.take::<String>(), "owned");
        }
    }
}
