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
//! microseconds on a virtual machine. Slabs are never unmapped. What a fiber with an unusually deep stack has touched is given back
//! to the kernel when a look at its stack finds it.

use crate::lock::Lock;
use core::sync::atomic::{AtomicUsize, Ordering};
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

/// A guarded piece of memory to run a fiber on. Goes back to a worker's cache when its
/// fiber has ended.
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

    /// The high end, where the fiber begins; aligned to a page.
    pub(crate) fn base(&self) -> usize {
        self.bottom + self.bytes
    }

    /// How far down from its base the stack has been touched; `None` if the kernel does not say.
    fn resident_depth_bytes(&self) -> Option<usize> {
        // Enough for 16 MiB; deeper than that counts as that.
        let mut pages = [0u8; 4096];
        let usable = (self.bytes - page_bytes()).min(pages.len() * page_bytes());
        let low = self.bottom + self.bytes - usable;
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(low as *mut _, usable, pages.as_mut_ptr()) };
        let untouched = pages[..usable / page_bytes()].iter().take_while(|page| **page & 1 == 0).count();
        (result == 0).then(|| usable - untouched * page_bytes())
    }

    /// Gives the pages back that lie deeper than `keep_bytes`.
    fn trim(&self, keep_bytes: usize) {
        let low = self.bottom + page_bytes();
        let high = (self.bottom + self.bytes).saturating_sub(keep_bytes.next_multiple_of(page_bytes()));
        if high > low {
            // SAFETY: free pages of a stack that nothing runs on; reads of them give zeroes from now on.
            unsafe { libc::madvise(low as *mut _, high - low, libc::MADV_DONTNEED) };
        }
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

/// What no worker keeps for itself, by size class: class `n` holds stacks of `STACK_BYTES_MIN << n` bytes.
static POOLS: [Lock<Vec<FiberStack>>; CLASSES] = [const { Lock::new(Vec::new()) }; CLASSES];
const CLASSES: usize = (STACK_BYTES_MAX / STACK_BYTES_MIN).trailing_zeros() as usize + 1;

fn class_of(bytes: usize) -> usize {
    let bytes = bytes.clamp(STACK_BYTES_MIN, STACK_BYTES_MAX).next_power_of_two();
    (bytes / STACK_BYTES_MIN).trailing_zeros() as usize
}

/// One worker's free stacks: taken and given back without a lock, most recently used first. What is missing or too much comes from
/// and goes to the pools that all workers share.
pub(crate) struct StackCache {
    classes: [Vec<FiberStack>; CLASSES],
    releases: u32,
    /// How deep stacks were used, as a moving average of the samples.
    usual_depth_bytes: usize,
}

/// Stacks that move between a worker and the shared pool at a time.
const BATCH: usize = 64;
/// Bytes of address space that a worker keeps in free stacks of one class: 2,048 of the default ones.
const CACHE_BYTES_MAX: usize = 512 << 20;
/// One release in so many is looked at: a look is a system call.
const RELEASES_BETWEEN_SAMPLES: u32 = 64;
/// Stacks from this size on are looked at whenever they are given back: they are few, and each may hold a lot.
const ALWAYS_SAMPLED_BYTES: usize = 1 << 20;
/// What a free stack may always keep.
const KEPT_BYTES_MIN: usize = 32 * 1024;

/// The deepest use of any stack that a sample has seen.
static DEPTH_BYTES_MAX: AtomicUsize = AtomicUsize::new(0);

/// The deepest use of a fiber's stack that has been seen, in bytes. Stacks are looked at when their fibers end: every one of 1 MiB or
/// more, of others one in 64.
pub fn stack_high_water_bytes() -> usize {
    DEPTH_BYTES_MAX.load(Ordering::Relaxed)
}

impl StackCache {
    pub(crate) const fn new() -> Self {
        Self { classes: [const { Vec::new() }; CLASSES], releases: 0, usual_depth_bytes: KEPT_BYTES_MIN / 2 }
    }

    /// A stack of at least `bytes`.
    ///
    /// # Errors
    /// The kernel's error when no memory can be mapped.
    #[inline]
    pub(crate) fn acquire(&mut self, bytes: usize) -> io::Result<FiberStack> {
        let class = class_of(bytes);
        match self.classes[class].pop() {
            Some(stack) => Ok(stack),
            None => self.refill(class),
        }
    }

    #[cold]
    fn refill(&mut self, class: usize) -> io::Result<FiberStack> {
        let free = &mut self.classes[class];
        {
            let mut pool = POOLS[class].lock();
            let keep = pool.len().saturating_sub(BATCH);
            free.extend(pool.drain(keep..));
        }
        if free.is_empty() {
            map_slab(class, free)?;
        }
        Ok(free.pop().expect("a slab holds at least one stack"))
    }

    /// Takes a stack back for reuse. Nothing may run on it any more.
    #[inline]
    pub(crate) fn release(&mut self, stack: FiberStack) {
        stack.check_canary();
        self.releases = self.releases.wrapping_add(1);
        if stack.bytes >= ALWAYS_SAMPLED_BYTES || self.releases.is_multiple_of(RELEASES_BETWEEN_SAMPLES) {
            self.sample(&stack);
        }
        let class = class_of(stack.bytes);
        let free = &mut self.classes[class];
        free.push(stack);
        if free.len() > (CACHE_BYTES_MAX >> class) / STACK_BYTES_MIN + 1 {
            let keep = free.len() - free.len().min(BATCH);
            POOLS[class].lock().extend(free.drain(keep..));
        }
    }

    /// Looks how deep a stack was used, and gives the memory back that stacks do not usually take.
    #[cold]
    fn sample(&mut self, stack: &FiberStack) {
        let Some(depth_bytes) = stack.resident_depth_bytes() else { return };
        DEPTH_BYTES_MAX.fetch_max(depth_bytes, Ordering::Relaxed);
        let keep_bytes = (2 * self.usual_depth_bytes).max(KEPT_BYTES_MIN);
        self.usual_depth_bytes = (7 * self.usual_depth_bytes + depth_bytes) / 8;
        if depth_bytes > keep_bytes {
            stack.trim(keep_bytes);
        }
    }
}

impl Drop for StackCache {
    /// The worker has ended; others use its stacks.
    fn drop(&mut self) {
        for (class, free) in self.classes.iter_mut().enumerate() {
            if !free.is_empty() {
                POOLS[class].lock().append(free);
            }
        }
    }
}

/// Stacks that were ever mapped, and their bytes.
static MAPPED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// How many stacks there are, in use or free, and how many bytes of address space they take.
pub(crate) fn mapped() -> (usize, usize) {
    let [stacks, bytes] = &MAPPED;
    (stacks.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
}

/// Maps a slab and adds its stacks to `free`.
fn map_slab(class: usize, free: &mut Vec<FiberStack>) -> io::Result<()> {
    let stack_bytes = STACK_BYTES_MIN << class;
    let slab_bytes = SLAB_BYTES.max(stack_bytes);
    let slab = map(slab_bytes)?;
    MAPPED[0].fetch_add(slab_bytes / stack_bytes, Ordering::Relaxed);
    MAPPED[1].fetch_add(slab_bytes, Ordering::Relaxed);
    // From the top down, so that the low ones are handed out first.
    for bottom in (slab..slab + slab_bytes).step_by(stack_bytes).rev() {
        free.push(FiberStack { bottom, bytes: stack_bytes, guard: install_guard(bottom) });
    }
    Ok(())
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
        let mut cache = StackCache::new();
        let first = cache.acquire(8 << 20).unwrap();
        let bottom = first.bottom;
        assert!(first.base() - (8 << 20) <= first.guard_range().start);
        cache.release(first);
        let again = cache.acquire(8 << 20).unwrap();
        assert_eq!(again.bottom, bottom);
        cache.release(again);
        drop(cache);
        // A worker that has ended leaves its stacks to the others.
        let inherited = StackCache::new().acquire(8 << 20).unwrap();
        assert!((bottom..bottom + (16 << 20)).contains(&inherited.bottom) || inherited.bottom < bottom);
    }

    #[test]
    fn what_a_deep_fiber_touched_is_given_back() {
        let mut cache = StackCache::new();
        let stack = cache.acquire(4 << 20).unwrap();
        let (bottom, top) = (stack.bottom, stack.bottom + stack.bytes);
        for page in (bottom + page_bytes()..top).step_by(page_bytes()) {
            // SAFETY: the stack's own memory, on which nothing runs.
            unsafe { core::ptr::write_volatile(page as *mut u8, 1) };
        }
        assert_eq!(stack.resident_depth_bytes(), Some((4 << 20) - page_bytes()));
        cache.release(stack);
        let again = cache.acquire(4 << 20).unwrap();
        assert_eq!(again.bottom, bottom);
        assert_eq!(again.resident_depth_bytes(), Some(KEPT_BYTES_MIN));
        assert!(stack_high_water_bytes() >= (4 << 20) - page_bytes());
    }
}
