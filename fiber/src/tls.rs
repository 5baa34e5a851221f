//! Private thread-local storage: what makes a fiber a thread to every crate and to libc.
//!
//! A [`TlsBlock`] is a whole thread control block with static TLS and dtv, made by the dynamic linker's own
//! `_dl_allocate_tls`, the function that `pthread_create` uses. A worker points the CPU's thread pointer at a fiber's block
//! while the fiber runs, so every `thread_local!`, `errno` and `pthread_self()` inside is the fiber's own, and stays
//! right when the fiber continues on another worker, because the block goes along.
//!
//! What is filled in by hand, and what fails without it:
//! - the self pointers: every `fs:0` access and `pthread_self()`;
//! - the stack-protector canary and the pointer guard: C code checks its own frames against them;
//! - `multiple_threads`: glibc would skip its atomics and corrupt the heap;
//! - a pseudo thread id: recursive pthread mutexes of two fibers would take each other for their own;
//! - the robust-mutex list head: it must point at itself, or the first robust mutex dereferences null;
//! - the link in glibc's list of threads: a forked child takes its thread out of that list, and would dereference null;
//! - the rseq area: `sched_getcpu()` would report CPU 0 for ever.
//!
//! Blocks are pooled, first by worker, then by process. On reuse the images of the executable and its libraries are reset, libc's own is not: the malloc
//! cache lives there and glibc 2.36 exports no way to free it, so a fresh block per fiber would grow the heap for ever.
//! A block that has gained storage for a library loaded later (`dlopen`) is not pooled, because that storage cannot be reset.
//!
//! Where any of it is missing, [`support`] says why, and fibers share their worker's thread-locals.

use crate::arch;
use crate::lock::Lock;
use crate::sys;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ops::Range;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::OnceLock;

type AllocateTls = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type DeallocateTls = unsafe extern "C" fn(*mut c_void, bool);
type Plain = unsafe extern "C" fn();

/// glibc's `(locale_t) -1`: the locale that `setlocale` sets.
const LC_GLOBAL_LOCALE: libc::locale_t = usize::MAX as libc::locale_t;

/// Pseudo thread ids start above any that the kernel gives (`PID_MAX_LIMIT` is 2^22) and stay below the bits of the
/// futex word that pthread mutexes use for flags.
const PSEUDO_THREAD_ID_FIRST: i32 = 0x0800_0000;
const PSEUDO_THREAD_ID_LAST: i32 = 0x1FFF_FFFF;
/// How far from the thread pointer `struct pthread` is searched, in bytes: its size is 2,304 in glibc 2.36.
const PTHREAD_BYTES_MAX: usize = 2304;

/// The mechanism, resolved and measured once.
#[derive(Debug)]
struct Mechanism {
    allocate: AllocateTls,
    deallocate: DeallocateTls,
    ctype_init: Plain,
    call_tls_dtors: Plain,
    /// Offset of the thread id from the thread pointer.
    thread_id_offset: isize,
    /// Offset of the robust-list head from the thread pointer.
    robust_list_offset: isize,
    /// Offset of the link in the list of threads from the thread pointer.
    thread_link_offset: Option<isize>,
    rseq_offset: Option<isize>,
    images: Vec<Image>,
}

/// The static TLS of one loaded module, except libc's own.
#[derive(Debug)]
struct Image {
    /// Offset of its storage from the thread pointer.
    offset: isize,
    /// Where the initial values are.
    initial: usize,
    initial_bytes: usize,
    /// Storage beyond the initial values starts as zeroes.
    total_bytes: usize,
}

/// Whether private thread-locals work here, or why not.
///
/// # Errors
/// The reason, in words, when they do not.
pub fn support() -> Result<(), &'static str> {
    mechanism().as_ref().map(|_| ()).map_err(|reason| *reason)
}

fn mechanism() -> &'static Result<Mechanism, &'static str> {
    static MECHANISM: OnceLock<Result<Mechanism, &'static str>> = OnceLock::new();
    MECHANISM.get_or_init(Mechanism::find)
}

impl Mechanism {
    fn find() -> Result<Self, &'static str> {
        if !cfg!(all(target_os = "linux", target_env = "gnu")) {
            return Err("the C library is not glibc");
        }
        if !arch::can_set_thread_pointer() {
            return Err("the kernel does not allow the thread pointer to be set (no FSGSBASE)");
        }
        let allocate = symbol(c"_dl_allocate_tls").ok_or("the dynamic linker exports no _dl_allocate_tls")?;
        let deallocate =
            symbol(c"_dl_deallocate_tls").ok_or("the dynamic linker exports no _dl_deallocate_tls")?;
        let ctype_init = symbol(c"__ctype_init").ok_or("libc exports no __ctype_init")?;
        let call_tls_dtors = symbol(c"__call_tls_dtors").ok_or("libc exports no __call_tls_dtors")?;
        let thread_pointer = arch::thread_pointer();
        // SAFETY: the symbols were found under glibc's names for these functions, whose signatures are those that glibc's
        // own pthread code calls them with.
        let (allocate, deallocate, ctype_init, call_tls_dtors) = unsafe {
            (
                core::mem::transmute::<*mut c_void, AllocateTls>(allocate),
                core::mem::transmute::<*mut c_void, DeallocateTls>(deallocate),
                core::mem::transmute::<*mut c_void, Plain>(ctype_init),
                core::mem::transmute::<*mut c_void, Plain>(call_tls_dtors),
            )
        };
        let thread_id_offset =
            find_thread_id(thread_pointer).ok_or("the thread id is not where glibc keeps it")?;
        let robust_list_offset =
            find_robust_list(thread_pointer).ok_or("the thread has no robust-mutex list")?;
        Ok(Self {
            allocate,
            deallocate,
            ctype_init,
            call_tls_dtors,
            thread_id_offset,
            robust_list_offset,
            // In glibc: the link's two pointers, the thread id, an unused int, a pointer, the robust list. Where the second half
            // is as expected, so is the first.
            thread_link_offset: (robust_list_offset == thread_id_offset + 16)
                .then_some(thread_id_offset - 16),
            // SAFETY: glibc 2.35 and later export this constant as a ptrdiff_t.
            rseq_offset: symbol(c"__rseq_offset").map(|at| unsafe { *(at as *const isize) }),
            images: static_tls_images(thread_pointer),
        })
    }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: `name` is a C string; dlsym only looks it up.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Scans `struct pthread` for the one word that holds this thread's id.
fn find_thread_id(thread_pointer: usize) -> Option<isize> {
    let id = sys::thread_id();
    let range = if cfg!(target_arch = "aarch64") {
        -(PTHREAD_BYTES_MAX as isize)..0
    } else {
        // The first 0x2c0 bytes are the ABI's header; the thread id is behind it.
        0x2c0..PTHREAD_BYTES_MAX as isize
    };
    range.step_by(4).find(|offset| {
        // SAFETY: the range lies inside this thread's own `struct pthread`.
        unsafe { *(thread_pointer.wrapping_add_signed(*offset) as *const i32) == id }
    })
}

fn find_robust_list(thread_pointer: usize) -> Option<isize> {
    let mut head: usize = 0;
    let mut bytes: usize = 0;
    // SAFETY: get_robust_list writes the calling thread's list head and its length through the two pointers.
    let result = unsafe {
        sys::raw_syscall(
            libc::SYS_get_robust_list,
            [0, (&raw mut head) as i64, (&raw mut bytes) as i64, 0, 0, 0],
        )
    };
    let offset = head.wrapping_sub(thread_pointer) as isize;
    (result == 0 && head != 0 && offset.unsigned_abs() < PTHREAD_BYTES_MAX).then_some(offset)
}

/// The static TLS of every module loaded so far, but for libc and the dynamic linker.
fn static_tls_images(thread_pointer: usize) -> Vec<Image> {
    struct Search {
        thread_pointer: usize,
        images: Vec<Image>,
    }
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
        // SAFETY: the dynamic linker passes a valid description, and `data` is the search below.
        let (info, search) = unsafe { (&*info, &mut *(data as *mut Search)) };
        // SAFETY: the name is a C string of the linker's.
        let name = unsafe { CStr::from_ptr(info.dlpi_name as *const c_char) }.to_bytes();
        let file = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
        if file.starts_with(b"libc.so") || file.starts_with(b"libc-") || file.starts_with(b"ld-linux") {
            return 0;
        }
        // SAFETY: the linker describes `dlpi_phnum` program headers at `dlpi_phdr`.
        let headers = unsafe { core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
        let Some(header) = headers.iter().find(|header| header.p_type == libc::PT_TLS) else { return 0 };
        let storage = info.dlpi_tls_data as usize;
        // Null: this thread has not touched the module's TLS, so it is dynamic and comes and goes with the dtv.
        let offset = storage.wrapping_sub(search.thread_pointer) as isize;
        let is_static = storage != 0 && offset.unsigned_abs() <= static_tls_bytes();
        if is_static {
            search.images.push(Image {
                offset,
                initial: (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize),
                initial_bytes: header.p_filesz as usize,
                total_bytes: header.p_memsz as usize,
            });
        }
        0
    }
    let mut search = Search { thread_pointer, images: Vec::new() };
    // SAFETY: the callback gets the search it expects, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.images
}

/// How large the static TLS area with the TCB is.
fn static_tls_bytes() -> usize {
    let Some(info) = symbol(c"_dl_get_tls_static_info") else { return 64 * 1024 };
    let (mut bytes, mut alignment) = (0usize, 0usize);
    // SAFETY: glibc's signature of that function; it writes through both pointers.
    unsafe {
        core::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut usize, *mut usize)>(info)(
            &mut bytes,
            &mut alignment,
        );
    }
    bytes
}

/// One fiber's thread control block, static TLS and dtv.
#[derive(Debug)]
pub(crate) struct TlsBlock {
    thread_pointer: usize,
}

/// What no worker keeps for itself.
static POOL: Lock<Vec<TlsBlock>> = Lock::new(Vec::new());
/// Blocks that move between a worker and the pool at a time.
const BATCH: usize = 64;
/// The most free blocks that a worker keeps.
const CACHE_BLOCKS_MAX: usize = 2048;
/// Thread ids that a worker takes at a time.
const THREAD_IDS: i32 = 256;

/// One worker's free blocks and unused thread ids, taken without a lock.
pub(crate) struct TlsCache {
    blocks: Vec<TlsBlock>,
    thread_ids: Range<i32>,
}

impl TlsCache {
    pub(crate) const fn new() -> Self {
        Self { blocks: Vec::new(), thread_ids: 0..0 }
    }

    /// A block as a new thread would find it, reused or fresh. `None` without [`support`] or without memory.
    #[inline]
    pub(crate) fn acquire(&mut self) -> Option<TlsBlock> {
        let mechanism = mechanism().as_ref().ok()?;
        if self.blocks.is_empty() {
            let mut pool = POOL.lock();
            let keep = pool.len().saturating_sub(BATCH);
            self.blocks.extend(pool.drain(keep..));
        }
        let block = match self.blocks.pop() {
            Some(block) => {
                // SAFETY: a pooled block belongs to nobody else, and no thread runs on it.
                unsafe { block.reset_images(mechanism) };
                block
            }
            None => TlsBlock::allocate(mechanism)?,
        };
        let id = self.thread_ids.next().unwrap_or_else(|| {
            self.thread_ids = take_thread_ids();
            self.thread_ids.next().expect("a range of ids is not empty")
        });
        // SAFETY: the offset was found by looking at glibc's own field, and nobody runs on the block.
        unsafe { *block.at::<i32>(mechanism.thread_id_offset) = id };
        Some(block)
    }

    /// Takes a block back after its fiber has ended and [`finish_thread`] has run.
    #[inline]
    pub(crate) fn release(&mut self, block: TlsBlock) {
        if block.has_dynamic_storage() {
            block.deallocate();
            return;
        }
        self.blocks.push(block);
        if self.blocks.len() > CACHE_BLOCKS_MAX {
            let keep = self.blocks.len() - BATCH;
            POOL.lock().extend(self.blocks.drain(keep..));
        }
    }
}

impl Drop for TlsCache {
    /// The worker has ended; others use its blocks.
    fn drop(&mut self) {
        POOL.lock().append(&mut self.blocks);
    }
}

fn take_thread_ids() -> Range<i32> {
    static NEXT: AtomicI32 = AtomicI32::new(PSEUDO_THREAD_ID_FIRST);
    let mut first = NEXT.fetch_add(THREAD_IDS, Ordering::Relaxed);
    if !(PSEUDO_THREAD_ID_FIRST..=PSEUDO_THREAD_ID_LAST - THREAD_IDS).contains(&first) {
        // After 400 million fibers the ids start again; a collision needs a fiber that lived through all of them.
        NEXT.store(PSEUDO_THREAD_ID_FIRST + THREAD_IDS, Ordering::Relaxed);
        first = PSEUDO_THREAD_ID_FIRST;
    }
    first..first + THREAD_IDS
}

impl TlsBlock {
    fn allocate(mechanism: &Mechanism) -> Option<Self> {
        // SAFETY: null asks the linker to allocate the block itself.
        let thread_pointer = unsafe { (mechanism.allocate)(core::ptr::null_mut()) } as usize;
        if thread_pointer == 0 {
            return None;
        }
        let block = Self { thread_pointer };
        // SAFETY: fresh from the linker, used by nobody yet.
        unsafe { block.fill_header(mechanism) };
        Some(block)
    }

    fn deallocate(self) {
        if let Ok(mechanism) = mechanism() {
            // SAFETY: nobody runs on the block, and it came from `_dl_allocate_tls`.
            unsafe { (mechanism.deallocate)(self.thread_pointer as *mut c_void, true) };
        }
    }

    /// The value for the CPU's thread pointer while the fiber runs.
    pub(crate) fn thread_pointer(&self) -> usize {
        self.thread_pointer
    }

    fn at<T>(&self, offset: isize) -> *mut T {
        self.thread_pointer.wrapping_add_signed(offset) as *mut T
    }

    /// # Safety
    /// The block is fresh from `_dl_allocate_tls` and in use by nobody.
    unsafe fn fill_header(&self, mechanism: &Mechanism) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: words 0, 2, 5 and 6 of the x86_64 TCB are self, self, canary and pointer guard, and the int at byte 24 is
        // `multiple_threads`; the calling thread's own header is the source of what all threads share.
        unsafe {
            let header = self.at::<usize>(0);
            let own = arch::thread_pointer() as *const usize;
            *header = self.thread_pointer;
            *header.add(2) = self.thread_pointer;
            *header.add(5) = *own.add(5);
            *header.add(6) = *own.add(6);
            *self.at::<i32>(24) = 1;
        }
        // SAFETY: the offsets were found in the calling thread's own `struct pthread`, and all threads have the same
        // layout. A robust list is empty when its head points at itself; the word before the head is glibc's back
        // pointer, the word after it the futex offset, which is the same in every thread.
        unsafe {
            let head = self.at::<usize>(mechanism.robust_list_offset);
            let own =
                arch::thread_pointer().wrapping_add_signed(mechanism.robust_list_offset) as *const usize;
            *head = head as usize;
            *head.sub(1) = head as usize;
            *head.add(1) = *own.add(1);
            if let Some(offset) = mechanism.thread_link_offset {
                // Linked to itself: on its own, and safe to take out.
                let link = self.at::<usize>(offset);
                *link = link as usize;
                *link.add(1) = link as usize;
            }
            if let Some(offset) = mechanism.rseq_offset {
                // struct rseq { cpu_id_start, cpu_id, .. }: -1 says "not registered", so glibc asks the kernel.
                *self.at::<i32>(offset) = 0;
                *self.at::<i32>(offset + 4) = -1;
            }
        }
    }

    /// # Safety
    /// Nobody runs on the block.
    unsafe fn reset_images(&self, mechanism: &Mechanism) {
        for image in &mechanism.images {
            // SAFETY: every block has the static images at the same offsets, and the initial values are mapped for as
            // long as the module is; modules with static TLS cannot be unloaded.
            unsafe {
                let storage = self.at::<u8>(image.offset);
                core::ptr::copy_nonoverlapping(image.initial as *const u8, storage, image.initial_bytes);
                core::ptr::write_bytes(
                    storage.add(image.initial_bytes),
                    0,
                    image.total_bytes - image.initial_bytes,
                );
            }
        }
    }

    /// Whether the dtv names storage outside the static area: a library loaded by `dlopen` was used here.
    fn has_dynamic_storage(&self) -> bool {
        // glibc's dtv: entry -1 counts the entries, entry 0 is a generation, then per module { value, to_free }.
        const UNALLOCATED: usize = usize::MAX;
        let dtv_word = if cfg!(target_arch = "aarch64") { 0 } else { 8 };
        // SAFETY: the dtv pointer of a block from `_dl_allocate_tls` is valid until the block is freed, and its first
        // entry says how long it is.
        unsafe {
            let dtv = *self.at::<*const [usize; 2]>(dtv_word);
            let entries = (*dtv.sub(1))[0];
            (1..=entries).any(|module| {
                let [value, to_free] = *dtv.add(module);
                value != UNALLOCATED && value != 0 && to_free != 0
            })
        }
    }
}

/// What libc does when a thread starts. To be called on the fiber's own block, first thing.
pub(crate) fn start_thread() {
    if let Ok(mechanism) = mechanism() {
        // SAFETY: runs on the fiber's own block, as pthread's start routine does; the last fiber of a pooled block may
        // have left its own locale and errno.
        unsafe {
            (mechanism.ctype_init)();
            libc::uselocale(LC_GLOBAL_LOCALE);
            *libc::__errno_location() = 0;
        }
    }
}

/// What libc does when a thread ends: destructors of thread-locals, then of pthread keys. To be called on the fiber's
/// own block, as the last thing that may run user code.
pub(crate) fn finish_thread() {
    if let Ok(mechanism) = mechanism() {
        // SAFETY: runs on the fiber's own block, once, at its end.
        unsafe { (mechanism.call_tls_dtors)() };
    }
    run_key_destructors();
}

/// glibc's `PTHREAD_KEYS_MAX`.
const KEYS_MAX: usize = 1024;
/// POSIX's `PTHREAD_DESTRUCTOR_ITERATIONS`: destructors may set values again, so often.
const DESTRUCTOR_ROUNDS: usize = 4;
static KEY_DESTRUCTORS: [AtomicUsize; KEYS_MAX] = [const { AtomicUsize::new(0) }; KEYS_MAX];
/// One more than the highest key that ever had a destructor.
static KEYS_END: AtomicUsize = AtomicUsize::new(0);

/// Tells the runtime of a pthread key, so that its destructor runs when a fiber ends: glibc runs destructors only for
/// threads that it started itself. The hook of `pthread_key_create` calls this.
pub fn note_pthread_key(key: u32, destructor: Option<unsafe extern "C" fn(*mut c_void)>) {
    if let Some(slot) = KEY_DESTRUCTORS.get(key as usize) {
        slot.store(destructor.map_or(0, |function| function as usize), Ordering::Release);
        KEYS_END.fetch_max(key as usize + 1, Ordering::Release);
    }
}

/// Forgets a pthread key. The hook of `pthread_key_delete` calls this.
pub fn forget_pthread_key(key: u32) {
    if let Some(slot) = KEY_DESTRUCTORS.get(key as usize) {
        slot.store(0, Ordering::Release);
    }
}

fn run_key_destructors() {
    for _ in 0..DESTRUCTOR_ROUNDS {
        let mut ran = false;
        let keys_end = KEYS_END.load(Ordering::Acquire);
        for (key, destructor) in KEY_DESTRUCTORS.iter().enumerate().take(keys_end) {
            let destructor = destructor.load(Ordering::Acquire);
            if destructor == 0 {
                continue;
            }
            let key = key as libc::pthread_key_t;
            // SAFETY: the key exists, or existed, in which case the calls fail harmlessly; the destructor is the one
            // that its creator registered, called with a value that the fiber itself stored.
            unsafe {
                let value = libc::pthread_getspecific(key);
                if !value.is_null() {
                    libc::pthread_setspecific(key, core::ptr::null());
                    core::mem::transmute::<usize, unsafe extern "C" fn(*mut c_void)>(destructor)(value);
                    ran = true;
                }
            }
        }
        if !ran {
            break;
        }
    }
}
