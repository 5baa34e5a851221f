//! Where fibers stand: the chain of calls on a fiber's stack, from what it does now out to the function that was spawned.
//!
//! A fiber that does not run has left its instruction and frame pointers on its stack when it switched away; one that runs is
//! interrupted by a signal (`probe.rs`). From there the chain of frame pointers leads to `squall_fiber_root`, which ends it. The
//! build keeps frame pointers, and so does std; where C code without them is on the stack, the chain is taken up again at the next
//! frame from which the root can be reached, so at worst some of the frames of such code are missing.
//!
//! This file reads stacks and names addresses. It never writes to a stack, and reads only within the bounds of one: stacks are
//! never unmapped, so that is safe even while the fiber runs on, which [`Trace::capture`] notices.

use crate::arch::{self, Saved};
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A place in running code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Standpoint {
    pub(crate) pc: usize,
    pub(crate) fp: usize,
    pub(crate) sp: usize,
}

/// Where a fiber stands while it does not run, noted by the switch away from it, for the worker that resumes it and for those who look at
/// it from outside.
///
/// `runs` is the version of a sequence lock: it changes before the fiber's stack can change.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// Null while the fiber runs, and before and after its life.
    stands: AtomicPtr<Saved>,
    /// How often the fiber was resumed.
    runs: AtomicU64,
    /// The highest address of its stack, exclusive; 0 before the start.
    stack_top: AtomicUsize,
    /// When its last wait began, on its worker's coarse clock.
    since_ms: AtomicU64,
}

impl Trace {
    pub(crate) const STANDS_OFFSET: usize = offset_of!(Trace, stands);
    pub(crate) const RUNS_OFFSET: usize = offset_of!(Trace, runs);
    pub(crate) const STACK_TOP_OFFSET: usize = offset_of!(Trace, stack_top);
    pub(crate) const SINCE_OFFSET: usize = offset_of!(Trace, since_ms);

    /// Called by the worker that gives the fiber its stack.
    pub(crate) fn prepared(&self, stack_top: usize, stands: *mut Saved) {
        self.stack_top.store(stack_top, Ordering::Relaxed);
        self.stands.store(stands, Ordering::Relaxed);
    }

    /// Called by the worker right before it switches to where this says.
    #[inline(always)]
    pub(crate) fn resumed(&self) -> *mut Saved {
        let stands = self.stands.load(Ordering::Relaxed);
        self.runs.store(self.runs.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.stands.store(core::ptr::null_mut(), Ordering::Relaxed);
        // What the fiber writes to its stack from here on is seen later than the new count.
        fence(Ordering::Release);
        stands
    }

    /// Where the switch away from the fiber has to note it.
    #[inline(always)]
    pub(crate) fn stands(&self) -> *mut *mut Saved {
        self.stands.as_ptr()
    }

    /// Called by the worker after the fiber has ended, before its stack is another's.
    pub(crate) fn ended(&self) {
        self.stands.store(core::ptr::null_mut(), Ordering::Relaxed);
    }

    /// Called by the worker right after the fiber has switched away to wait.
    #[inline(always)]
    pub(crate) fn waits(&self, now_ms: u64) {
        self.since_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Whether the fiber has been started.
    pub(crate) fn has_started(&self) -> bool {
        self.runs.load(Ordering::Relaxed) != 0
    }

    /// How often it was resumed.
    pub(crate) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Whether it is switched away.
    pub(crate) fn is_suspended(&self) -> bool {
        !self.stands.load(Ordering::Relaxed).is_null()
    }

    pub(crate) fn since_ms(&self) -> u64 {
        self.since_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn stack_top(&self) -> usize {
        self.stack_top.load(Ordering::Relaxed)
    }

    /// Bytes of stack in use as of the last switch; 0 while it runs.
    pub(crate) fn stack_depth(&self) -> usize {
        match self.stands.load(Ordering::Relaxed) as usize {
            0 => 0,
            sp => self.stack_top().saturating_sub(sp),
        }
    }

    /// The chain of calls of a fiber that does not run; `None` if it runs, or ran meanwhile. `stack_low` is the lowest address of
    /// its stack that may be read.
    pub(crate) fn capture(&self, stack_low: usize) -> Option<Chain> {
        let runs = self.runs.load(Ordering::Acquire);
        let stands = self.stands.load(Ordering::Acquire);
        let top = self.stack_top();
        if stack_low == 0 || !(stack_low..top).contains(&(stands as usize).wrapping_add(size_of::<Saved>())) {
            return None;
        }
        // SAFETY: it lies within a stack.
        let at = unsafe { arch::standpoint(stands) };
        let mut chain = Chain::new();
        // SAFETY: `at.sp` lies within a stack, which stays mapped.
        unsafe { chain.walk(at, top) };
        fence(Ordering::Acquire);
        (self.runs.load(Ordering::Relaxed) == runs).then_some(chain)
    }
}

/// How many of the innermost calls of a chain are kept.
const INNERMOST: usize = 192;
/// How many of the outermost are, so that even an endless recursion says where it began.
const OUTERMOST: usize = 64;
const WORD: usize = size_of::<usize>();

/// Return addresses from the innermost call outwards. Made without allocating: in signal handlers, too.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    innermost: [usize; INNERMOST],
    /// A ring.
    outermost: [usize; OUTERMOST],
    count: usize,
    /// It ends at the root.
    complete: bool,
}

impl Chain {
    pub(crate) const fn new() -> Self {
        Self { innermost: [0; INNERMOST], outermost: [0; OUTERMOST], count: 0, complete: false }
    }

    /// Forgets all calls.
    pub(crate) fn clear(&mut self) {
        (self.count, self.complete) = (0, false);
    }

    fn push(&mut self, address: usize) {
        match self.innermost.get_mut(self.count) {
            Some(place) => *place = address,
            None => self.outermost[(self.count - INNERMOST) % OUTERMOST] = address,
        }
        self.count += 1;
    }

    /// How many calls there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The innermost calls, at most `limit`.
    pub(crate) fn innermost(&self, limit: usize) -> impl Iterator<Item = usize> + '_ {
        self.innermost[..self.count.min(INNERMOST).min(limit)].iter().copied()
    }

    /// The outermost calls that are not among the `inner` innermost ones, at most `limit`.
    pub(crate) fn outermost(&self, inner: usize, limit: usize) -> impl Iterator<Item = usize> + '_ {
        let first = self.count.saturating_sub(limit).max(inner.min(self.count));
        let kept = if self.count > INNERMOST + OUTERMOST { self.count - OUTERMOST } else { 0 };
        (first..self.count).filter_map(move |index| match self.innermost.get(index) {
            Some(address) => Some(*address),
            None if index >= kept => Some(self.outermost[(index - INNERMOST) % OUTERMOST]),
            None => None,
        })
    }

    /// As [`Chain::walk`], from where a signal has interrupted the code.
    ///
    /// # Safety
    /// As for [`Chain::walk`], and `at` is where the code was interrupted.
    pub(crate) unsafe fn walk_interrupted(&mut self, at: Standpoint, top: usize) {
        self.push(at.pc);
        if at.sp + 2 * WORD <= top
            // SAFETY: two words may be read, as just checked.
            && let Some(caller) = unsafe { arch::return_address_without_frame(at) }
        {
            self.push(caller);
        }
        // SAFETY: by the contract.
        unsafe { self.follow(at, top) };
    }

    /// Follows the frame records from `at` outwards, in a stack that ends below `top`.
    ///
    /// # Safety
    /// `at.sp..top` is readable. It may change meanwhile; then the chain is nonsense, but nothing worse happens.
    pub(crate) unsafe fn walk(&mut self, at: Standpoint, top: usize) {
        self.push(at.pc);
        // SAFETY: by the contract.
        unsafe { self.follow(at, top) };
    }

    /// # Safety
    /// As for [`Chain::walk`].
    unsafe fn follow(&mut self, at: Standpoint, top: usize) {
        let low = at.sp.next_multiple_of(WORD);
        // SAFETY: by the contract.
        let start = if unsafe { leads_to_root(at.fp, low, top) } {
            Some(at.fp)
        } else {
            // SAFETY: by the contract.
            unsafe { find_frame(low, top) }
        };
        self.complete = start.is_some();
        // Without a way to the root, as far as the records make sense.
        let mut frame = start.unwrap_or(at.fp);
        let mut low = low;
        // SAFETY: `read_record` checks the bounds that the contract gives.
        while let Some((next, return_address)) = unsafe { read_record(frame, low, top) } {
            if return_address == 0 {
                return;
            }
            self.push(return_address);
            (low, frame) = (frame + 2 * WORD, next);
        }
    }
}

/// The record at `frame`, (next frame, return address), if one can be there.
///
/// # Safety
/// `low..top` is readable.
unsafe fn read_record(frame: usize, low: usize, top: usize) -> Option<(usize, usize)> {
    if frame < low || frame >= top.saturating_sub(2 * WORD - 1) || !frame.is_multiple_of(WORD) {
        return None;
    }
    // SAFETY: in bounds and aligned. Volatile, because another thread may be running on that stack.
    Some(unsafe { ((frame as *const usize).read_volatile(), (frame as *const usize).add(1).read_volatile()) })
}

/// Whether the records from `frame` on end at the function under every fiber.
///
/// # Safety
/// `low..top` is readable.
unsafe fn leads_to_root(mut frame: usize, mut low: usize, top: usize) -> bool {
    // SAFETY: by the contract.
    while let Some((next, return_address)) = unsafe { read_record(frame, low, top) } {
        if next == 0 {
            return return_address == arch::root_return_address();
        }
        (low, frame) = (frame + 2 * WORD, next);
    }
    false
}

/// The innermost frame whose address somebody has saved and from which the root can be reached: what is left when the code that was
/// interrupted, or that called the hook, uses the frame pointer's register for something else.
///
/// # Safety
/// `low..top` is readable.
unsafe fn find_frame(low: usize, top: usize) -> Option<usize> {
    (low..top).step_by(WORD).find_map(|address| {
        // SAFETY: in bounds and aligned, since `low` is.
        let saved = unsafe { (address as *const usize).read_volatile() };
        // SAFETY: by the contract.
        unsafe { leads_to_root(saved, address + WORD, top) }.then_some(saved)
    })
}

/// The calls on a fiber's stack, innermost first.
///
/// Only addresses are taken down at first; [`Backtrace::frames`] and the text form look up their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Backtrace {
    innermost: Vec<usize>,
    outermost: Vec<usize>,
    omitted: usize,
    complete: bool,
    /// The innermost address is that of the interrupted instruction itself.
    interrupted: bool,
}

impl Backtrace {
    /// All that the chain has kept. `interrupted`: it begins where a signal came in, not at a call.
    pub(crate) fn new(chain: &Chain, interrupted: bool) -> Self {
        Self { interrupted, ..Self::of(chain, INNERMOST, OUTERMOST) }
    }

    /// As a signal has found it, but no more than the given numbers of calls.
    pub(crate) fn shortened(chain: &Chain, innermost: usize, outermost: usize) -> Self {
        Self { interrupted: true, ..Self::of(chain, innermost, outermost) }
    }

    fn of(chain: &Chain, innermost: usize, outermost: usize) -> Self {
        let innermost: Vec<usize> = chain.innermost(innermost).collect();
        let outermost: Vec<usize> = chain.outermost(innermost.len(), outermost).collect();
        let omitted = chain.count() - innermost.len() - outermost.len();
        Self { innermost, outermost, omitted, complete: chain.complete, interrupted: false }
    }

    /// Whether it reaches out to the function that was spawned.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// How many calls there are, with those in the middle of a very long chain that are left out.
    pub fn depth(&self) -> usize {
        self.innermost.len() + self.omitted + self.outermost.len()
    }

    /// The addresses that are not left out: where the innermost function stands, then return addresses.
    pub fn addresses(&self) -> impl Iterator<Item = usize> + '_ {
        self.innermost.iter().chain(&self.outermost).copied()
    }

    /// The functions, looked up in the debug information; without it, only their addresses are known. A function that the compiler
    /// has put into its caller has a frame of its own.
    ///
    /// # Blocking
    /// Reads the program's file the first time, which takes a while: suspends no fiber, but may block the thread.
    pub fn frames(&self) -> Vec<Frame> {
        let mut names = Names::default();
        self.addresses()
            .enumerate()
            .flat_map(|(index, address)| names.of(self.call_site(index, address)).to_vec())
            .collect()
    }

    /// Return addresses lie behind the call that they belong to, by one byte at least.
    fn call_site(&self, index: usize, address: usize) -> usize {
        if index == 0 && self.interrupted { address } else { address.saturating_sub(1) }
    }

    /// The functions, those of the runtime around the spawned function left out. `None` stands for those that a very long chain
    /// has lost.
    pub(crate) fn own_lines(&self, names: &mut Names) -> Vec<Option<Frame>> {
        let mut lines: Vec<Option<Frame>> = Vec::new();
        for (index, address) in self.addresses().enumerate() {
            if index == self.innermost.len() && self.omitted > 0 {
                lines.push(None);
            }
            lines.extend(names.of(self.call_site(index, address)).iter().cloned().map(Some));
        }
        let is = |line: &Option<Frame>, test: fn(&Frame) -> bool| line.as_ref().is_some_and(test);
        let is_ours = |line| is(line, |frame| frame.is_of_runtime() || frame.is_of_hooks());
        let is_foreign = |line| is(line, |frame| !frame.is_of_runtime() && !frame.is_of_std());
        // Outside the function that was spawned are those that start a fiber; inside the one that waits those that suspend it, of
        // which the last is the one that it has called.
        let end = lines.iter().rposition(is_foreign).map_or(lines.len(), |last| last + 1);
        let start = lines[..end].iter().position(|line| !is_ours(line)).unwrap_or(0).saturating_sub(1);
        lines.drain(start..end).collect()
    }

    /// Writes one line per function, see [`Backtrace::own_lines`].
    pub(crate) fn write(&self, out: &mut dyn fmt::Write, names: &mut Names) -> fmt::Result {
        for line in &self.own_lines(names) {
            match line {
                Some(frame) => writeln!(out, "    {frame}")?,
                None => writeln!(out, "    ... {} more calls ...", self.omitted)?,
            }
        }
        if !self.complete {
            writeln!(out, "    ... (the rest has no frame pointers)")?;
        }
        Ok(())
    }
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &mut Names::default())
    }
}

/// One function in a [`Backtrace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The instruction that it stands at.
    pub address: usize,
    /// Its name, if the program has symbols.
    pub function: Option<String>,
    /// The source file, if the program has debug information.
    pub file: Option<PathBuf>,
    /// The line in that file, from 1.
    pub line: Option<u32>,
}

impl Frame {
    /// By its source file: the debug information of a release build has no full names for functions that were put into their callers.
    fn is_of_runtime(&self) -> bool {
        let sources = Path::new(file!()).parent().expect("a source file is in a folder");
        let in_sources = |file: &PathBuf| file.ancestors().any(|folder| folder.ends_with(sources));
        self.file.as_ref().is_some_and(in_sources) || self.function.as_deref() == Some("squall_fiber_root")
    }

    /// Of the crates between libc's names and this one.
    fn is_of_hooks(&self) -> bool {
        let own = Path::new(file!()).ancestors().nth(2).expect("a source file is in the folder of a crate");
        let in_crate = |file: &PathBuf, name| {
            let sources = own.with_file_name(name).join("src");
            file.ancestors().any(|folder| folder.ends_with(&sources))
        };
        self.file.as_ref().is_some_and(|file| in_crate(file, "hook") || in_crate(file, "iomanager"))
    }

    fn is_of_std(&self) -> bool {
        let in_library = |file: &PathBuf| {
            file.starts_with("/rustc") || file.components().any(|part| part.as_os_str() == "library")
        };
        self.file.as_ref().is_some_and(in_library) || self.function.as_deref() == Some("__rust_try")
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            Some(function) => f.write_str(function)?,
            None => write!(f, "{:#x}", self.address)?,
        }
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, " ({}:{line})", file.display())?;
        }
        Ok(())
    }
}

/// Functions by address; looking them up is slow, and the fibers of a program stand in few places.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<usize, Vec<Frame>>);

impl Names {
    /// The function at an address, and outside it those that it was put into.
    fn of(&mut self, address: usize) -> &[Frame] {
        self.0.entry(address).or_insert_with(|| {
            let mut frames = Vec::new();
            // The crate takes what it is given for a return address.
            backtrace::resolve((address + 1) as *mut _, |symbol| {
                frames.push(Frame {
                    address,
                    function: symbol.name().map(|name| format!("{name:#}")),
                    file: symbol.filename().map(|path| path.to_owned()),
                    line: symbol.lineno(),
                });
            });
            if frames.is_empty() {
                frames.push(Frame { address, function: None, file: None, line: None });
            }
            frames
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_chain_keeps_both_ends() {
        let mut chain = Chain::new();
        (1..=1000).for_each(|address| chain.push(address));
        let inner: Vec<_> = chain.innermost(3).collect();
        assert_eq!(inner, [1, 2, 3]);
        let outer: Vec<_> = chain.outermost(3, 2).collect();
        assert_eq!(outer, [999, 1000]);
        let backtrace = Backtrace::new(&chain, false);
        assert_eq!(backtrace.depth(), 1000);
        assert_eq!(backtrace.omitted, 1000 - INNERMOST - OUTERMOST);
        assert_eq!(backtrace.addresses().last(), Some(1000));
    }

    #[test]
    fn a_short_chain_is_kept_whole() {
        for count in [0, 1, INNERMOST, INNERMOST + 1, INNERMOST + OUTERMOST] {
            let mut chain = Chain::new();
            (1..=count).for_each(|address| chain.push(address));
            let backtrace = Backtrace::new(&chain, false);
            assert_eq!(backtrace.omitted, 0);
            assert!(backtrace.addresses().eq(1..=count), "{count}");
        }
    }

    /// A stack of frames made by hand: `[next, return address]` pairs at the given places, the last one the root's.
    fn walk(words: &mut [usize], frames: &[usize], first: usize) -> (Vec<usize>, bool) {
        let base = words.as_ptr() as usize;
        let address = |index: usize| base + index * WORD;
        for (number, place) in frames.iter().enumerate() {
            let next = frames.get(number + 1);
            words[*place] = next.map_or(0, |next| address(*next));
            words[place + 1] = next.map_or(arch::root_return_address(), |_| 1000 + number);
        }
        let at =
            Standpoint { pc: 999, fp: if first == usize::MAX { 12345 } else { address(first) }, sp: base };
        let mut chain = Chain::new();
        // SAFETY: the words are readable.
        unsafe { chain.walk(at, base + words.len() * WORD) };
        (chain.innermost(usize::MAX).collect(), chain.complete)
    }

    #[test]
    fn frames_are_followed_to_the_root() {
        let (addresses, complete) = walk(&mut [0; 64], &[4, 10, 62], 4);
        assert_eq!(addresses, [999, 1000, 1001, arch::root_return_address()]);
        assert!(complete);
    }

    #[test]
    fn a_lost_frame_pointer_is_found_again_where_it_was_saved() {
        let mut words = [0; 64];
        // Saved by a function that uses the register for something else, in no frame of its own.
        words[2] = words.as_ptr() as usize + 10 * WORD;
        let (addresses, complete) = walk(&mut words, &[10, 20, 40], usize::MAX);
        assert_eq!(addresses, [999, 1000, 1001, arch::root_return_address()]);
        assert!(complete);
    }

    #[test]
    fn nonsense_ends_the_walk() {
        // In a circle; downwards; out of bounds; not aligned.
        for next in [4usize, 0, 64, 1] {
            let mut words = Box::new([0usize; 64]);
            let base = words.as_ptr() as usize;
            words[4] = if next == 1 { base + 12 * WORD + 1 } else { base + next * WORD };
            words[5] = 7;
            std::hint::black_box(&words);
            let mut chain = Chain::new();
            // SAFETY: the words are readable.
            unsafe { chain.walk(Standpoint { pc: 999, fp: base + 4 * WORD, sp: base }, base + 64 * WORD) };
            assert!(!chain.complete);
            assert_eq!(chain.innermost(9).collect::<Vec<_>>(), [999, 7]);
        }
    }
}
