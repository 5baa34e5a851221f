//! What a wait for a descriptor does not do: after the first on a connection there is no call to change the registration, and no
//! allocation.
//!
//! One test, because it counts what the whole process registers.

use squall_iomanager::IoManager;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_long, c_void};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// The kernel's id of the worker's thread; 0 before it is known.
static WORKER: AtomicI64 = AtomicI64::new(0);
/// Allocations made on that thread.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static REGISTRATIONS: AtomicU64 = AtomicU64::new(0);

fn thread() -> i64 {
    // SAFETY: takes nothing and changes nothing.
    unsafe { squall_fiber::sys::raw_syscall(libc::SYS_gettid, [0; 6]) }
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if WORKER.load(Ordering::Relaxed) == thread() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: by the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes the place of libc's, for the reactor as for everybody.
#[unsafe(no_mangle)]
extern "C" fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut c_void) -> c_int {
    REGISTRATIONS.fetch_add(1, Ordering::Relaxed);
    let arguments = [epoll as c_long, operation as c_long, fd as c_long, event as c_long, 0, 0];
    // SAFETY: the caller's own arguments.
    let result = unsafe { squall_fiber::sys::raw_syscall(libc::SYS_epoll_ctl, arguments) };
    if result < 0 {
        // SAFETY: errno belongs to the caller.
        unsafe { *libc::__errno_location() = -result as c_int };
        return -1;
    }
    0
}

fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return,
            count => stream.write_all(&buffer[..count]).unwrap(),
        }
    }
}

#[test]
fn no_registration_and_no_allocation_after_the_first_wait() {
    const ROUNDS: usize = 2000;
    let manager = IoManager::new(1, false).unwrap();
    let counts = manager.spawn(|| {
        WORKER.store(thread(), Ordering::Relaxed);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, _) = listener.accept().unwrap();
        let server = squall_hook::spawn(move || serve(connection));
        let mut buffer = [0; 4096];
        let mut round = || {
            client.write_all(b"ping").unwrap();
            assert_eq!(client.read(&mut buffer).unwrap(), 4);
        };
        // The queues of the worker find their size, and the lazy initialisations have their turn.
        (0..100).for_each(|_| round());
        let before = (ALLOCATIONS.load(Ordering::Relaxed), REGISTRATIONS.load(Ordering::Relaxed));
        (0..ROUNDS).for_each(|_| round());
        let after = (ALLOCATIONS.load(Ordering::Relaxed), REGISTRATIONS.load(Ordering::Relaxed));
        drop(client);
        server.join().unwrap();
        (before, after)
    });
    let (before, after) = counts.join().unwrap();
    manager.stop();
    assert!(before.1 >= 2, "both ends of the connection have been registered through the counting function");
    assert_eq!(after.1 - before.1, 0, "waits changed registrations");
    assert_ne!(before.0, 0, "the beginning allocates, and is counted");
    assert_eq!(after.0 - before.0, 0, "waits allocated");
}
