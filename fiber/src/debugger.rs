//! What a debugger needs to find the fibers of a process or of a core file, without any debug information but symbols: one static
//! table with the place of the slots of all registers, and the offsets of what is in a fiber. `tools/gdb/squall.py` reads it.
//!
//! Nothing here is read by the runtime itself. What is in the table and how it is laid out is agreed with the script by the number in
//! [`Table::magic`].

use crate::arch::Saved;
use crate::backtrace::Trace;
use crate::fiber::{Inner, WaitKind};
use crate::lock::Lock;
use crate::state::State;
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Slots that are allocated at a time.
pub(crate) const CHUNK: usize = 512;

/// Slots of a register, in a list that a debugger can follow.
#[repr(C)]
pub(crate) struct Chunk {
    next: AtomicPtr<Chunk>,
    previous: AtomicPtr<Chunk>,
    pub(crate) slots: [AtomicPtr<Inner>; CHUNK],
}

/// Guards the links of all chunks.
static LINKS: Lock<()> = Lock::new(());

impl Chunk {
    /// With empty slots. Listed until it is dropped.
    pub(crate) fn new() -> Box<Self> {
        let empty = || AtomicPtr::new(ptr::null_mut());
        let mut chunk = Box::new(Self {
            next: empty(),
            previous: empty(),
            slots: [const { AtomicPtr::new(ptr::null_mut()) }; CHUNK],
        });
        let _links = LINKS.lock();
        let first = SQUALL_DEBUGGER.first_chunk.load(Ordering::Relaxed);
        chunk.next.store(first, Ordering::Relaxed);
        let this = ptr::from_mut(&mut *chunk);
        // SAFETY: a listed chunk is alive, because dropping it takes it out, under the same lock.
        if let Some(first) = unsafe { first.as_ref() } {
            first.previous.store(this, Ordering::Relaxed);
        }
        SQUALL_DEBUGGER.first_chunk.store(this, Ordering::Release);
        chunk
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let _links = LINKS.lock();
        let (next, previous) = (self.next.load(Ordering::Relaxed), self.previous.load(Ordering::Relaxed));
        // SAFETY: as in `new`.
        unsafe {
            if let Some(next) = next.as_ref() {
                next.previous.store(previous, Ordering::Relaxed);
            }
            match previous.as_ref() {
                Some(previous) => previous.next.store(next, Ordering::Relaxed),
                None => SQUALL_DEBUGGER.first_chunk.store(next, Ordering::Relaxed),
            }
        }
    }
}

/// All in machine words but for the texts at both ends. Offsets are in bytes.
#[repr(C)]
struct Table {
    magic: [u8; 8],
    first_chunk: AtomicPtr<Chunk>,
    chunk_next: usize,
    chunk_slots: usize,
    chunk_slot_count: usize,
    fiber_id: usize,
    /// Two words: where the name is, 0 if there is none, and its length.
    fiber_name: usize,
    fiber_home: usize,
    fiber_stack_bytes: usize,
    fiber_guard_end: usize,
    fiber_stack_top: usize,
    fiber_stands: usize,
    fiber_runs: usize,
    fiber_since_ms: usize,
    /// The lowest two bits are 0 unless it waits.
    fiber_state: usize,
    /// One byte, which counts in `wait_kinds`.
    fiber_wait_kind: usize,
    fiber_wait_detail: usize,
    /// Where a fiber stands: the instruction, the frame pointer, one more register that it expects back, and how much of its
    /// stack all that takes.
    saved_pc: usize,
    saved_fp: usize,
    saved_register: usize,
    saved_bytes: usize,
    /// Names, with a space after each.
    wait_kinds: [u8; 256],
}

/// Kept by its name, so that a debugger finds it.
#[used]
#[unsafe(no_mangle)]
static SQUALL_DEBUGGER: Table = Table {
    magic: *b"SQUALL01",
    first_chunk: AtomicPtr::new(ptr::null_mut()),
    chunk_next: offset_of!(Chunk, next),
    chunk_slots: offset_of!(Chunk, slots),
    chunk_slot_count: CHUNK,
    fiber_id: offset_of!(Inner, id),
    fiber_name: offset_of!(Inner, name),
    fiber_home: offset_of!(Inner, home),
    fiber_stack_bytes: offset_of!(Inner, stack_bytes),
    fiber_guard_end: offset_of!(Inner, guard_end),
    fiber_stack_top: offset_of!(Inner, trace) + Trace::STACK_TOP_OFFSET,
    fiber_stands: offset_of!(Inner, trace) + Trace::STANDS_OFFSET,
    fiber_runs: offset_of!(Inner, trace) + Trace::RUNS_OFFSET,
    fiber_since_ms: offset_of!(Inner, trace) + Trace::SINCE_OFFSET,
    fiber_state: offset_of!(Inner, state) + State::WORD_OFFSET,
    fiber_wait_kind: Inner::WAIT_KIND_OFFSET,
    fiber_wait_detail: Inner::WAIT_DETAIL_OFFSET,
    saved_pc: Saved::PC_OFFSET,
    saved_fp: Saved::FP_OFFSET,
    saved_register: Saved::REGISTER_OFFSET,
    saved_bytes: size_of::<Saved>(),
    wait_kinds: wait_kinds(),
};

const fn wait_kinds() -> [u8; 256] {
    let mut names = [0; 256];
    let mut length = 0;
    let mut kind = 0;
    while kind < WaitKind::NAMES.len() {
        let name = WaitKind::NAMES[kind].as_bytes();
        let mut at = 0;
        while at < name.len() {
            names[length + at] = name[at];
            at += 1;
        }
        names[length + at] = b' ';
        length += at + 1;
        kind += 1;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_waits_are_in_the_order_of_their_numbers() {
        for (number, kind) in WaitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
            assert!(!WaitKind::NAMES[number].contains(' '));
        }
    }

    #[test]
    fn a_name_is_laid_out_as_the_table_says() {
        let words = |name: &Option<Box<str>>| {
            assert_eq!(size_of_val(name), size_of::<[usize; 2]>());
            // SAFETY: two words, as just checked; the second may be uninitialised only if there is no name.
            unsafe { ptr::from_ref(name).cast::<[core::mem::MaybeUninit<usize>; 2]>().read() }
        };
        let name: Option<Box<str>> = Some("somebody".into());
        let address = name.as_ref().map_or(0, |name| name.as_ptr() as usize);
        // SAFETY: there is a name.
        assert_eq!(words(&name).map(|word| unsafe { word.assume_init() }), [address, 8]);
        // SAFETY: the first word tells that there is none.
        assert_eq!(unsafe { words(&None)[0].assume_init() }, 0);
    }

    #[test]
    fn chunks_leave_the_list_from_either_end_and_from_the_middle() {
        let listed = |chunk: &Chunk| {
            let _links = LINKS.lock();
            let mut next = SQUALL_DEBUGGER.first_chunk.load(Ordering::Relaxed);
            // SAFETY: listed chunks are alive, and the lock keeps them so.
            while let Some(listed) = unsafe { next.as_ref() } {
                if ptr::eq(listed, chunk) {
                    return true;
                }
                next = listed.next.load(Ordering::Relaxed);
            }
            false
        };
        let [first, second, third] = [Chunk::new(), Chunk::new(), Chunk::new()];
        assert!(listed(&first) && listed(&second) && listed(&third));
        drop(second);
        assert!(listed(&first) && listed(&third));
        drop(third);
        assert!(listed(&first));
    }
}
