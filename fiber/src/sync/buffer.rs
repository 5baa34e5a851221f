//! The values in a channel, first in, first out. Neither [`Buffer::push`] nor [`Buffer::pop`] allocates or frees memory, because both
//! run under the channel's lock: a bounded channel has all its room from the start, and an unbounded one is handed blocks that were
//! allocated before the lock was taken, and hands back those that it has emptied.

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use std::collections::VecDeque;

/// How many values a block holds.
const BLOCK_VALUES: usize = if cfg!(loom) { 2 } else { 32 };

pub(super) enum Buffer<T> {
    /// Never holds more than it had room for at first.
    Bounded(VecDeque<T>),
    Unbounded(Chain<T>),
}

impl<T> Buffer<T> {
    pub(super) fn bounded(capacity: usize) -> Self {
        Self::Bounded(VecDeque::with_capacity(capacity))
    }

    pub(super) const fn unbounded() -> Self {
        Self::Unbounded(Chain::new())
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bounded(values) => values.len(),
            Self::Unbounded(chain) => chain.len,
        }
    }

    /// Whether a block must be given before the next push.
    #[inline]
    pub(super) fn wants_block(&self) -> bool {
        match self {
            Self::Bounded(_) => false,
            Self::Unbounded(chain) => chain.is_tail_full() && chain.spare.is_none(),
        }
    }

    /// Gives a block, or has it back if there is no need for it.
    #[must_use = "a block that is not wanted must be freed without the lock"]
    pub(super) fn offer(&mut self, block: Box<Block<T>>) -> Option<Box<Block<T>>> {
        match self {
            Self::Unbounded(chain) if chain.spare.is_none() => {
                chain.spare = Some(block);
                None
            }
            _ => Some(block),
        }
    }

    /// The caller has seen to it that there is room.
    #[inline]
    pub(super) fn push(&mut self, value: T) {
        match self {
            Self::Bounded(values) => {
                debug_assert!(values.len() < values.capacity(), "a push must not allocate");
                values.push_back(value);
            }
            Self::Unbounded(chain) => chain.push(value),
        }
    }

    /// A block that has become empty is left in `retired`, to be freed without the lock.
    #[inline]
    pub(super) fn pop(&mut self, retired: &mut Option<Box<Block<T>>>) -> Option<T> {
        match self {
            Self::Bounded(values) => values.pop_front(),
            Self::Unbounded(chain) => chain.pop(retired),
        }
    }
}

pub(super) struct Block<T> {
    values: [MaybeUninit<T>; BLOCK_VALUES],
    next: *mut Block<T>,
}

impl<T> Block<T> {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self { values: [const { MaybeUninit::uninit() }; BLOCK_VALUES], next: ptr::null_mut() })
    }
}

/// A list of blocks.
///
/// Invariants: without a head there is no tail and no value. Initialised are, in the order of the list, the values from number
/// `first` of the head to before number `end` of the tail.
pub(super) struct Chain<T> {
    head: *mut Block<T>,
    first: usize,
    tail: *mut Block<T>,
    end: usize,
    len: usize,
    /// Kept, so that a channel whose length goes up and down does not allocate all the time.
    spare: Option<Box<Block<T>>>,
}

// SAFETY: the chain owns its blocks and the values in them.
unsafe impl<T: Send> Send for Chain<T> {}

impl<T> Chain<T> {
    const fn new() -> Self {
        Self { head: ptr::null_mut(), first: 0, tail: ptr::null_mut(), end: 0, len: 0, spare: None }
    }

    fn is_tail_full(&self) -> bool {
        self.tail.is_null() || self.end == BLOCK_VALUES
    }

    fn push(&mut self, value: T) {
        if self.is_tail_full() {
            let block = Box::into_raw(self.spare.take().expect("a block is given before it is needed"));
            match NonNull::new(self.tail) {
                // SAFETY: the tail is a block of the list, which the chain owns.
                Some(tail) => unsafe { (*tail.as_ptr()).next = block },
                None => self.head = block,
            }
            self.tail = block;
            self.end = 0;
        }
        // SAFETY: as above, and number `end` is in it and not initialised.
        unsafe { (&mut (*self.tail).values)[self.end].write(value) };
        self.end += 1;
        self.len += 1;
    }

    #[inline]
    fn pop(&mut self, retired: &mut Option<Box<Block<T>>>) -> Option<T> {
        if self.len == 0 { None } else { self.pop_first(retired) }
    }

    /// There is a value.
    fn pop_first(&mut self, retired: &mut Option<Box<Block<T>>>) -> Option<T> {
        // SAFETY: there is a value, so there is a head, and its number `first` is initialised; it is not read again.
        let value = unsafe { (&(*self.head).values)[self.first].assume_init_read() };
        self.first += 1;
        self.len -= 1;
        if self.len == 0 {
            // Head and tail are the same block or, if the last value was at the head's end, may not be.
            self.start_over(retired);
        } else if self.first == BLOCK_VALUES {
            self.drop_head(retired);
        }
        Some(value)
    }

    /// The last value has gone: the block that it was in serves again from its beginning.
    fn start_over(&mut self, retired: &mut Option<Box<Block<T>>>) {
        if self.head != self.tail {
            self.drop_head(retired);
        }
        self.first = 0;
        self.end = 0;
    }

    /// All values of the head have been read, and it is not the tail.
    fn drop_head(&mut self, retired: &mut Option<Box<Block<T>>>) {
        // SAFETY: the head came from `Box::into_raw`, and is no longer in the list after the next line.
        let mut block = unsafe { Box::from_raw(self.head) };
        self.head = block.next;
        self.first = 0;
        block.next = ptr::null_mut();
        match self.spare {
            None => self.spare = Some(block),
            Some(_) => *retired = Some(block),
        }
    }
}

impl<T> Drop for Chain<T> {
    fn drop(&mut self) {
        // Each block is freed as soon as it is empty, the last one by the line below the loop.
        while self.pop(&mut None).is_some() {}
        if let Some(last) = NonNull::new(self.head) {
            // SAFETY: the only block left, which came from `Box::into_raw`.
            drop(unsafe { Box::from_raw(last.as_ptr()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn push<T>(buffer: &mut Buffer<T>, value: T) {
        if buffer.wants_block() {
            assert!(buffer.offer(Block::new()).is_none());
        }
        buffer.push(value);
    }

    #[test]
    fn keeps_the_order_across_blocks() {
        let mut buffer = Buffer::unbounded();
        let (mut written, mut read, mut freed) = (0, 0, 0);
        // Grows to several blocks and runs empty, again and again.
        for round in 0..50 {
            for _ in 0..round * 3 % 200 {
                push(&mut buffer, written);
                written += 1;
            }
            for _ in 0..round * 7 % 200 {
                let mut retired = None;
                match buffer.pop(&mut retired) {
                    Some(value) => assert_eq!(value, read),
                    None => break,
                }
                read += 1;
                freed += usize::from(retired.is_some());
            }
            assert_eq!(buffer.len(), written - read);
        }
        assert!(freed > 5, "only {freed} blocks were given back");
    }

    #[test]
    fn does_not_allocate_while_its_length_goes_up_and_down() {
        let mut buffer = Buffer::unbounded();
        push(&mut buffer, 0);
        push(&mut buffer, 0);
        for _ in 0..10 * BLOCK_VALUES {
            assert_eq!(buffer.pop(&mut None), Some(0));
            assert_eq!(buffer.pop(&mut None), Some(0));
            assert!(!buffer.wants_block());
            buffer.push(0);
            buffer.push(0);
        }
    }

    #[test]
    fn drops_what_is_left() {
        let value = Rc::new(());
        for count in [0, 1, BLOCK_VALUES, 3 * BLOCK_VALUES + 1] {
            let mut buffer = Buffer::unbounded();
            for _ in 0..count {
                push(&mut buffer, Rc::clone(&value));
            }
            buffer.pop(&mut None);
            drop(buffer);
            assert_eq!(Rc::strong_count(&value), 1);
        }
    }

    #[test]
    fn refuses_blocks_that_it_does_not_need() {
        let mut buffer = Buffer::<u8>::unbounded();
        assert!(buffer.offer(Block::new()).is_none());
        assert!(buffer.offer(Block::new()).is_some());
        assert!(Buffer::<u8>::bounded(1).offer(Block::new()).is_some());
    }
}
