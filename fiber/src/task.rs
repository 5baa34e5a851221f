//! What a fiber is given to run, and the result it leaves: both in a few words inside the fiber itself.
//!
//! A function whose captures fit is stored without an allocation, and its result later takes its place. An allocation per fiber would
//! cost more than the words do: the function is allocated by the spawner, but freed in the fiber, whose malloc cache is
//! another one, so the spawner's cache would run dry and every spawn would take malloc's slow path.
//!
//! The storage is written and read in turns: the spawner stores the function before the fiber is queued; the fiber takes it and
//! leaves the result, or drops that if its handle is gone; once it has ended the result is the handle's, or, if that was dropped in
//! this very moment, the worker's, which has a fiber drop it.

use crate::fiber::Inner;
use core::cell::{Cell, UnsafeCell};
use core::mem::MaybeUninit;
use core::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::thread;

/// Words of storage: room for a closure with a handful of captures.
const WORDS: usize = 6;
type Words = [MaybeUninit<usize>; WORDS];

/// A function with its captures, to be run once in a fiber.
pub(crate) struct Task {
    words: UnsafeCell<Words>,
    /// Whether the words hold the result. Read and written by whose turn it is.
    has_result: Cell<bool>,
    kind: &'static Kind,
}

/// What is done with functions of one type.
struct Kind {
    run: unsafe fn(&Inner),
    discard: unsafe fn(&Task),
    drop_result: unsafe fn(&Task),
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
            has_result: Cell::new(false),
            kind: const {
                &Kind {
                    run: run::<F, T>,
                    // SAFETY: `new` has stored an `F`, and the caller of `discard` vouches for the rest.
                    discard: |task| drop(unsafe { task.take::<F>() }),
                    // SAFETY: `run` has stored it, and the caller of `drop_result` vouches for the rest.
                    drop_result: |task| drop(unsafe { task.take::<thread::Result<T>>() }),
                }
            },
        };
        // SAFETY: nobody else knows the task yet.
        unsafe { task.put(f) };
        task
    }

    /// Runs the function and leaves its result.
    ///
    /// # Safety
    /// The caller is the fiber whose task this is; once.
    pub(crate) unsafe fn run(fiber: &Inner) {
        // SAFETY: by the caller's contract; `run` was made for the function that `new` has stored.
        unsafe { (fiber.task.kind.run)(fiber) };
    }

    /// Drops the function that will not run.
    ///
    /// # Safety
    /// It has not run and will not.
    pub(crate) unsafe fn discard(&self) {
        // SAFETY: by the caller's contract.
        unsafe { (self.kind.discard)(self) };
    }

    /// Takes the result; `None` if there is none any more.
    ///
    /// # Safety
    /// It is the caller's turn, the function has run, and `T` is the type of its result.
    pub(crate) unsafe fn take_result<T>(&self) -> Option<thread::Result<T>> {
        // SAFETY: by the caller's contract, and there is one.
        self.has_result.replace(false).then(|| unsafe { self.take() })
    }

    /// Whether there is a result that nobody has taken.
    ///
    /// # Safety
    /// It is the caller's turn.
    pub(crate) unsafe fn has_result(&self) -> bool {
        self.has_result.get()
    }

    /// Drops the result, if there is one.
    ///
    /// # Safety
    /// It is the caller's turn.
    pub(crate) unsafe fn drop_result(&self) {
        if self.has_result.replace(false) {
            // SAFETY: by the caller's contract, and there is one.
            unsafe { (self.kind.drop_result)(self) };
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
    // SAFETY: the storage is empty, and the fiber's until it has ended.
    unsafe { task.put(result) };
    task.has_result.set(true);
    if fiber.completion.is_detached() {
        // SAFETY: as above.
        unsafe { task.drop_result() };
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
