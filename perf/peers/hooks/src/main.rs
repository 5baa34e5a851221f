//! What a hooked call costs over the plain one, in a fiber and outside: the same call three ways in turn, in one process.

use squall::{Builder, IoManager, Tls};
use squall_bench_harness::HookFigure;
use std::ffi::{CStr, c_int, c_void};
use std::hint::black_box;
use std::io::{Read, Write};
use std::mem::transmute;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Calls that are timed together; as many messages fit into a socket's buffer.
const CALLS: usize = 64;
const MESSAGE_BYTES: usize = 64;
/// Times that each way has its turn, unless the first argument says otherwise.
const TURNS_DEFAULT: usize = 2000;

const FUTEX_WAKE_PRIVATE: i64 = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as i64;

/// `read` and `write`, `recv` and `send` (without their flags: 0, or MSG_DONTWAIT where that is the raw call).
type Transfer = unsafe extern "C" fn(c_int, *mut c_void, usize) -> isize;
type TransferFlags = unsafe extern "C" fn(c_int, *mut c_void, usize, c_int) -> isize;
type FutexCall = unsafe extern "C" fn(i64, *const u32, i64, i64) -> i64;

/// A system call that nothing can interpose.
fn raw(number: i64, arguments: [i64; 6]) -> i64 {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the callers pass what the kernel expects for the number: descriptors and buffers that live across the call.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

/// libc's own function, behind any hook.
fn plain(name: &CStr) -> *mut c_void {
    // SAFETY: asks the dynamic linker for a symbol by a terminated name.
    let address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!address.is_null(), "libc has {name:?}");
    address
}

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Read,
    Write,
    Recv,
    Send,
    FutexWake,
}

#[derive(Clone, Copy)]
enum Way {
    /// By the name that every program uses, which the hook has taken.
    Hooked,
    /// libc's function.
    Libc,
    /// The bare system call, not to wait.
    Raw,
}

struct Functions {
    transfer: Transfer,
    transfer_flags: TransferFlags,
    futex: FutexCall,
}

/// One call; the way is chosen outside the timed loop, so that all pay for the same indirect call.
fn call(
    call: Call,
    way: Way,
    functions: &Functions,
    descriptor: c_int,
    buffer: &mut [u8; MESSAGE_BYTES],
) -> i64 {
    let word = 0u32;
    let pointer = buffer.as_mut_ptr().cast::<c_void>();
    match (way, call) {
        (Way::Raw, Call::FutexWake) => {
            raw(libc::SYS_futex, [&raw const word as i64, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0])
        }
        (Way::Raw, _) => {
            let number = match call {
                Call::Read => libc::SYS_read,
                Call::Write => libc::SYS_write,
                Call::Recv => libc::SYS_recvfrom,
                _ => libc::SYS_sendto,
            };
            let flags = i64::from(libc::MSG_DONTWAIT);
            raw(number, [i64::from(descriptor), pointer as i64, MESSAGE_BYTES as i64, flags, 0, 0])
        }
        (_, Call::FutexWake) => {
            // SAFETY: the word lives across the call.
            unsafe { (functions.futex)(libc::SYS_futex, &raw const word, FUTEX_WAKE_PRIVATE, 1) }
        }
        // SAFETY: the buffer has the size that is said and lives across the call.
        (_, Call::Read | Call::Write) => unsafe {
            (functions.transfer)(descriptor, pointer, MESSAGE_BYTES) as i64
        },
        // SAFETY: as above.
        (_, Call::Recv | Call::Send) => unsafe {
            (functions.transfer_flags)(descriptor, pointer, MESSAGE_BYTES, 0) as i64
        },
    }
}

fn functions(call: Call, way: Way) -> Functions {
    let hooked = matches!(way, Way::Hooked);
    let reads = matches!(call, Call::Read | Call::Recv);
    let pick = |hook: *mut c_void, name: &CStr| if hooked { hook } else { plain(name) };
    let (transfer, transfer_flags) = if reads {
        (pick(libc::read as *mut c_void, c"read"), pick(libc::recv as *mut c_void, c"recv"))
    } else {
        (pick(libc::write as *mut c_void, c"write"), pick(libc::send as *mut c_void, c"send"))
    };
    let futex = pick(libc::syscall as *mut c_void, c"syscall");
    // SAFETY: the functions have these signatures; `syscall` is variadic, called with the four words that this futex operation
    // takes, which both ABIs pass in registers as for a function of fixed arguments. `*const` as `*mut` changes nothing of it.
    unsafe {
        Functions {
            transfer: transmute::<*mut c_void, Transfer>(black_box(transfer)),
            transfer_flags: transmute::<*mut c_void, TransferFlags>(black_box(transfer_flags)),
            futex: transmute::<*mut c_void, FutexCall>(black_box(futex)),
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds per call of each way, turn by turn.
fn measure(turns: usize, place: &str, which: Call, near: &UnixStream, far: &UnixStream) -> HookFigure {
    let ways = [Way::Hooked, Way::Libc, Way::Raw];
    let functions = ways.map(|way| functions(which, way));
    let mut buffer = [7u8; MESSAGE_BYTES];
    let mut times: [Vec<f64>; 3] = Default::default();
    let mut over_libc = Vec::with_capacity(turns);
    let mut over_raw = Vec::with_capacity(turns);
    let fill = |descriptor: c_int| {
        let mut buffer = [7u8; MESSAGE_BYTES];
        for _ in 0..CALLS {
            let arguments = [
                i64::from(descriptor),
                buffer.as_mut_ptr() as i64,
                MESSAGE_BYTES as i64,
                libc::MSG_DONTWAIT.into(),
                0,
                0,
            ];
            assert_eq!(raw(libc::SYS_sendto, arguments), MESSAGE_BYTES as i64);
        }
    };
    let drain = |descriptor: c_int| {
        let mut buffer = [0u8; MESSAGE_BYTES * CALLS];
        let mut left = buffer.len() as i64;
        while left > 0 {
            let arguments =
                [i64::from(descriptor), buffer.as_mut_ptr() as i64, left, libc::MSG_DONTWAIT.into(), 0, 0];
            let bytes = raw(libc::SYS_recvfrom, arguments);
            assert!(bytes > 0, "what was sent is there: {bytes}");
            left -= bytes;
        }
    };
    for turn in 0..turns + 50 {
        let mut now = [0.0; 3];
        for step in 0..3 {
            // Another one first each time, so that no way always follows the same other.
            let index = (turn + step) % 3;
            if matches!(which, Call::Read | Call::Recv) {
                fill(far.as_raw_fd());
            }
            let mut result = 0;
            let started = Instant::now();
            for _ in 0..CALLS {
                result += call(which, ways[index], &functions[index], near.as_raw_fd(), &mut buffer);
            }
            now[index] = started.elapsed().as_nanos() as f64 / CALLS as f64;
            let expected = if which == Call::FutexWake { 0 } else { (CALLS * MESSAGE_BYTES) as i64 };
            assert_eq!(result, expected);
            if matches!(which, Call::Write | Call::Send) {
                drain(far.as_raw_fd());
            }
        }
        if turn >= 50 {
            for (all, now) in times.iter_mut().zip(now) {
                all.push(now);
            }
            over_libc.push(now[0] - now[1]);
            over_raw.push(now[0] - now[2]);
        }
    }
    let name = match which {
        Call::Read => "read",
        Call::Write => "write",
        Call::Recv => "recv",
        Call::Send => "send",
        Call::FutexWake => "syscall(futex wake)",
    };
    let [hooked, libc, raw] = times.each_mut().map(|times| median(times));
    HookFigure {
        call: name.into(),
        place: place.into(),
        hooked_ns: hooked,
        libc_ns: libc,
        raw_ns: raw,
        over_libc_ns: median(&mut over_libc),
        over_raw_ns: median(&mut over_raw),
    }
}

fn measure_all(turns: usize, place: &str, near: &UnixStream, far: &UnixStream) {
    for which in [Call::Recv, Call::Send, Call::Read, Call::Write, Call::FutexWake] {
        println!("{}", measure(turns, place, which, near, far).to_json());
    }
}

fn main() {
    let turns = std::env::args().nth(1).and_then(|turns| turns.parse().ok()).unwrap_or(TURNS_DEFAULT);
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    measure_all(turns, "thread", &near, &far);
    for (place, tls) in [("fiber, private TLS", Tls::Private), ("fiber, shared TLS", Tls::Shared)] {
        let manager = IoManager::new(1, false).expect("a worker");
        let fiber = manager.spawn_with(Builder::new().tls(tls), move || {
            let (mut near, mut far) = UnixStream::pair().expect("a pair of sockets");
            // Each side has waited once: known to the reactor, as a connection in use is.
            let mut sender = far.try_clone().expect("a descriptor");
            let partner = Builder::new().tls(tls).spawn(move || {
                sender.write_all(b"x").expect("the other side reads");
                sender.read_exact(&mut [0; 1]).expect("the other side writes");
            });
            near.read_exact(&mut [0; 1]).expect("the partner writes");
            near.write_all(b"y").expect("the partner reads");
            partner.join().expect("the partner ends");
            measure_all(turns, place, &near, &far);
            far.flush().expect("nothing to do");
        });
        fiber.join().expect("a benchmark does not panic");
        manager.stop();
    }
}
