//! Fiber stacks: where their memory comes from, what guards it, and how it is reused.
//!
//! One mapping (a slab) holds many stacks, because the kernel limits mappings (`vm.max_map_count`, 65,530) and one
//! mapping with a guard page per stack ends at about 32,000 fibers. Each stack has a guard page at its low end:
//!
//! ```text
//!   slab:  | guard | stack 0 ......... <- grows down | guard | stack 1 ......... | ...
//!          ^ low addresses                      base ^
//! ```
//!
//! Stacks are handed out last-in-first-out, so the pages of a reused one are still mapped and in cache: a first touch costs
//! microseconds on a virtual machine. Slabs are never unmapped.

use crate::lock::Lock;
use corosensei::stack::{MIN_STACK_SIZE, Stack, StackPointer};
use std::io;
use std::sync::OnceLock;

/// Bytes of stack that a fiber gets unless its builder says otherwise; virtual, touched lazily.
pub const STACK_BYTES_DEFAULT: usize = 256 * 1024;
const STACK_BYTES_MIN: usize = 16 * 1024;
const STACK_BYTES_MAX: usize = 1 << 30;
/// How much is mapped at once, so that a slab of default stacks holds 64.
const SLAB_BYTES: usize = 16 * 1024 * 1024;
/// Linux 6.13: a guard that is a mark in the page table and costs no mapping.
const MADV_GUARD_INSTALL: libc::c_int = 102;
/// What the lowest words of a stack hold when there is no guard page.
const CANARY: usize = 0x5175_6C6C_C0A1_A7ED_u64 as usize;

/// How the end of a stack is guarded; the best that the kernel offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardMethod {
    /// `MADV_GUARD_INSTALL`: an access faults, and a million guards are one mapping.
    GuardInstall,
    /// `mprotect`: an access faults; about 32,000 fit in a process.
    Mprotect,
    /// A known pattern, checked when the fiber ends: an overflow is noticed late.
    Canary,
}

/// The method in use for new stacks.
pub fn guard_method() -> GuardMethod {
    static METHOD: OnceLock<GuardMethod> = OnceLock::new();
    *METHOD.get_or_init(|| {
        let Ok(page) = map(page_bytes()) else { return GuardMethod::Mprotect };
        // SAFETY: the page was mapped above and nobody else knows it.
        let installed = unsafe { libc::madvise(page as *mut _, page_bytes(), MADV_GUARD_INSTALL) } == 0;
        // SAFETY: as above; unmapping ends its use.
        unsafe { libc::munmap(page as *mut _, page_bytes()) };
        if installed { GuardMethod::GuardInstall } else { GuardMethod::Mprotect }
    })
}

/// A guarded piece of memory to run a fiber on. Belongs to the pool it came from: give it back with [`release`].
#[derive(Debug)]
pub(crate) struct FiberStack {
    /// The lowest address, where the guard is.
    bottom: usize,
    bytes: usize,
    guard: GuardMethod,
}

impl FiberStack {
    /// The addresses whose access means that this stack overflowed.
    pub(crate) fn guard_range(&self) -> core::ops::Range<usize> {
        self.bottom..self.bottom + page_bytes()
    }

    /// Panics if the canary of a stack without a guard page was overwritten.
    fn check_canary(&self) {
        if self.guard == GuardMethod::Canary {
            // SAFETY: the stack is mapped and, being released, not in use.
            let word = unsafe { core::ptr::read_volatile(self.bottom as *const usize) };
            assert_eq!(word, CANARY, "a fiber overflowed its stack of {} bytes", self.bytes);
        }
    }
}

// SAFETY: `bottom..bottom+bytes` is mapped for the life of the process and used by one fiber at a time; the limit
// excludes the guard page at the low end, and the size is at least MIN_STACK_SIZE, checked by `class_of`.
unsafe impl Stack for FiberStack {
    fn base(&self) -> StackPointer {
        StackPointer::new(self.bottom + self.bytes).expect("a mapping does not end at address 0")
    }

    fn limit(&self) -> StackPointer {
        StackPointer::new(self.bottom + page_bytes()).expect("a mapping does not start at address 0")
    }
}

/// Free stacks by size class: class `n` holds stacks of `STACK_BYTES_MIN << n` bytes.
static POOLS: [Lock<Vec<FiberStack>>; CLASSES] = [const { Lock::new(Vec::new()) }; CLASSES];
const CLASSES: usize = (STACK_BYTES_MAX / STACK_BYTES_MIN).trailing_zeros() as usize + 1;
const _: () = assert!(STACK_BYTES_MIN > MIN_STACK_SIZE);

fn class_of(bytes: usize) -> usize {
    let bytes = bytes.clamp(STACK_BYTES_MIN, STACK_BYTES_MAX).next_power_of_two();
    (bytes / STACK_BYTES_MIN).trailing_zeros() as usize
}

/// A stack of at least `bytes`, from the pool or newly mapped.
///
/// # Errors
/// The kernel's error when no memory can be mapped.
pub(crate) fn acquire(bytes: usize) -> io::Result<FiberStack> {
    let class = class_of(bytes);
    if let Some(stack) = POOLS[class].lock().pop() {
        return Ok(stack);
    }
    let stack_bytes = STACK_BYTES_MIN << class;
    let slab_bytes = SLAB_BYTES.max(stack_bytes);
    let slab = map(slab_bytes)?;
    let mut stacks = Vec::with_capacity(slab_bytes / stack_bytes);
    // From the top down, so that the pool hands out the low ones first.
    for bottom in (slab..slab + slab_bytes).step_by(stack_bytes).rev() {
        stacks.push(FiberStack { bottom, bytes: stack_bytes, guard: install_guard(bottom) });
    }
    let stack = stacks.pop().expect("a slab holds at least one stack");
    POOLS[class].lock().append(&mut stacks);
    Ok(stack)
}

/// Gives a stack back for reuse. Nothing may run on it any more.
pub(crate) fn release(stack: FiberStack) {
    stack.check_canary();
    POOLS[class_of(stack.bytes)].lock().push(stack);
}

fn install_guard(bottom: usize) -> GuardMethod {
    let page = bottom as *mut libc::c_void;
    let guarded = match guard_method() {
        // SAFETY: the page is the lowest of a stack that was just mapped and is not in use.
        GuardMethod::GuardInstall => unsafe { libc::madvise(page, page_bytes(), MADV_GUARD_INSTALL) },
        // SAFETY: as above.
        _ => unsafe { libc::mprotect(page, page_bytes(), libc::PROT_NONE) },
    };
    if guarded == 0 {
        return guard_method();
    }
    // The mapping limit is reached: an overflow will be noticed late, which is better than no fiber at all.
    // SAFETY: the page is mapped, writable and unused.
    unsafe { core::ptr::write_volatile(bottom as *mut usize, CANARY) };
    GuardMethod::Canary
}

fn map(bytes: usize) -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
    let address =
        unsafe { libc::mmap(core::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // With transparent huge pages on, the first touch of one stack would commit the memory of eight.
    // SAFETY: advice about the mapping made above.
    unsafe { libc::madvise(address, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(address as usize)
}

fn page_bytes() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    // SAFETY: sysconf only reads.
    *PAGE.get_or_init(|| unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_up_to_a_class() {
        for (asked, got) in [(0, 16 << 10), (16 << 10, 16 << 10), (16385, 32 << 10), (256 << 10, 256 << 10)] {
            assert_eq!(STACK_BYTES_MIN << class_of(asked), got);
        }
        assert_eq!(class_of(usize::MAX), CLASSES - 1);
    }

    #[test]
    fn a_released_stack_is_reused_first() {
        // A size that no other test uses, so that the pool is this test's own.
        let first = acquire(8 << 20).unwrap();
        let bottom = first.bottom;
        assert!(first.limit().get() >= first.guard_range().end);
        release(first);
        let again = acquire(8 << 20).unwrap();
        assert_eq!(again.bottom, bottom);
        release(again);
    }
}
