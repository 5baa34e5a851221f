//! Runs a case on a plain thread and in fibers and compares what it noted; and what many cases need: companions, connected pairs, the C
//! structs. Only the cases of this suite call it.

use crate::calls;
use squall_fiber::{Tls, with_current};
use squall_hook::Builder;
use squall_iomanager::IoManager;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What a case has seen.
pub type Notes = Vec<String>;

/// How long a case lets the others run: long enough that whoever is to wait by then waits.
pub fn pause() -> Duration {
    Duration::from_millis(20) * SLOWNESS.load(Ordering::Relaxed)
}

/// How much longer the pauses are while some case is run again.
static SLOWNESS: AtomicU32 = AtomicU32::new(1);

/// Runs a case in every way. `waits` says whether it has to wait somewhere.
///
/// On a machine that is busy otherwise a pause may be too short for a companion to get where the case means it to be, on the plain
/// thread as well as in the fiber. So a difference counts if it shows with pauses of any length; a case that had to be run again says so.
pub fn differ(waits: bool, case: fn(&mut Notes)) {
    let mut answer = compare(waits, case);
    for slowness in [4, 16] {
        let Err(difference) = &answer else { return };
        println!("once more, slower, since {difference}");
        SLOWNESS.store(slowness, Ordering::Relaxed);
        answer = compare(waits, case);
        SLOWNESS.store(1, Ordering::Relaxed);
    }
    if let Err(difference) = answer {
        panic!("{difference}");
    }
}

/// Runs a case in all ways at the same time: nearly all of its time are pauses.
fn compare(waits: bool, case: fn(&mut Notes)) -> Result<(), String> {
    let (plain, in_fibers) = thread::scope(|scope| {
        let ways = [Way::Private, Way::PrivateOnTwo, Way::Shared];
        let in_fibers = ways.map(|way| (way, scope.spawn(move || in_fiber(way, case))));
        let mut plain = Notes::new();
        case(&mut plain);
        let in_fibers = in_fibers.map(|(way, run)| match run.join() {
            Ok((hooked, went_on)) => (way, hooked, went_on),
            Err(panic) => std::panic::resume_unwind(panic),
        });
        (plain, in_fibers)
    });
    for (way, hooked, went_on) in in_fibers {
        if hooked != plain {
            return Err(format!("plain and hooked ({way:?}) differ:\n  {plain:?}\n  {hooked:?}"));
        }
        // With two workers the counting fiber may be with the other.
        if waits && !went_on && way != Way::PrivateOnTwo {
            return Err(format!("the wait blocked the worker ({way:?})"));
        }
    }
    Ok(())
}

/// The kinds of fiber that a case runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With thread-locals of its own; the only worker serves its companions, too.
    Private,
    /// The same with a second worker, so that companions run at the same time, and either may move.
    PrivateOnTwo,
    /// With the worker's thread-locals.
    Shared,
}

impl Way {
    fn builder(self) -> Builder {
        Builder::new().tls(if self == Way::Shared { Tls::Shared } else { Tls::Private })
    }
}

/// Runs a case in a fiber. Says also whether another fiber went on meanwhile.
fn in_fiber(way: Way, case: fn(&mut Notes)) -> (Notes, bool) {
    let manager = IoManager::new(if way == Way::PrivateOnTwo { 2 } else { 1 }, false).unwrap();
    let (ticks, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counter, stop) = (Arc::clone(&ticks), Arc::clone(&done));
    manager.spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let fiber = manager.spawn_with(way.builder(), move || {
        // Ends the counting also when the case panics, or the manager would wait for it for ever.
        let _stop = StopOnDrop(done);
        let mut notes = Notes::new();
        case(&mut notes);
        notes
    });
    manager.stop();
    let notes = fiber.join().unwrap_or_else(|_| panic!("the case panicked in a fiber ({way:?})"));
    (notes, ticks.load(Ordering::SeqCst) > 1)
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Starts a companion: a thread beside a plain case, beside a hooked one a fiber of the same kind. The answer waits for its end.
pub fn companion(f: impl FnOnce() + Send + 'static) -> Box<dyn FnOnce()> {
    match with_current(|current| current.map(|current| current.has_private_tls())) {
        None => {
            let thread = thread::spawn(f);
            Box::new(move || thread.join().unwrap())
        }
        Some(is_private) => {
            let tls = if is_private { Tls::Private } else { Tls::Shared };
            let fiber = Builder::new().tls(tls).spawn(f);
            Box::new(move || fiber.join().unwrap())
        }
    }
}

/// Notes what a C call returned, and errno if it failed.
pub fn raw(notes: &mut Notes, what: &str, result: impl Into<i64>) {
    let result = result.into();
    let errno = std::io::Error::last_os_error().raw_os_error();
    notes.push(format!("{what}: {result} {:?}", (result < 0).then_some(errno)));
}

/// As [`raw`], for calls that return a size.
pub fn raw_size(notes: &mut Notes, what: &str, result: isize) {
    raw(notes, what, result as i64);
}

/// Notes what a call of std returned.
pub fn kind<T: std::fmt::Debug>(notes: &mut Notes, what: &str, result: std::io::Result<T>) {
    notes.push(format!("{what}: {:?}", result.map_err(|error| (error.kind(), error.raw_os_error()))));
}

/// Two ends of a TCP connection.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Sets SO_RCVTIMEO or SO_SNDTIMEO.
pub fn set_timeout(fd: RawFd, option: libc::c_int, timeout: Duration) {
    let value =
        libc::timeval { tv_sec: timeout.as_secs() as i64, tv_usec: i64::from(timeout.subsec_micros()) };
    // SAFETY: the option takes a timeval.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::timeval>() as u32,
        )
    };
    assert_eq!(result, 0);
}

pub fn poll(entries: &mut [libc::pollfd], timeout_ms: i32) -> i32 {
    // SAFETY: the entries are a live slice.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) }
}

pub fn entry(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Messages of one vector each, for `recvmmsg` and `sendmmsg`.
pub fn messages(vectors: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: an all-zero message is valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect()
}

/// The order of events between a case and its companions. An event that causes another is noted before it does.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn note(&self, event: impl Into<String>) {
        self.0.lock().unwrap().push(event.into());
    }

    /// Waits until so many events have been noted.
    pub fn until(&self, count: usize) {
        while self.0.lock().unwrap().len() < count {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Moves the events so far to the case's notes.
    pub fn close(&self, notes: &mut Notes) {
        notes.append(&mut self.0.lock().unwrap());
    }
}

/// Two connected stream sockets of each kind, which hold little.
pub fn stream_pairs() -> [(&'static str, OwnedFd, OwnedFd); 2] {
    let (client, server) = tcp_pair();
    let (a, b) = calls::socketpair(libc::SOCK_STREAM);
    let pairs = [("tcp", client.into(), server.into()), ("unix", a, b)];
    for (_, ours, theirs) in &pairs {
        small_buffers(ours);
        small_buffers(theirs);
    }
    pairs
}

/// Keeps a case that fills a socket's buffers short.
pub fn small_buffers(socket: &impl AsRawFd) {
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        assert_eq!(calls::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, option, 32 * 1024), 0);
    }
}

/// Sends until nothing more fits, without waiting, and no more fits a little later, when TCP has moved to its peer what it can. Says how
/// many bytes that were.
pub fn fill(fd: RawFd) -> usize {
    let piece = [0u8; 4096];
    let mut total = 0;
    loop {
        let before = total;
        while let Ok(count @ 1..) = usize::try_from(calls::send_with(fd, &piece, libc::MSG_DONTWAIT)) {
            total += count;
        }
        if total == before {
            return total;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a sender elsewhere has filled the buffer of `fd`, so that it waits by now.
pub fn until_full(fd: RawFd) {
    while poll(&mut [entry(fd, libc::POLLOUT)], 0) > 0 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(pause());
}

/// Receives until the end, slowly enough that a sender with much to say has to wait. Says how many bytes that were.
pub fn drain(fd: RawFd) -> usize {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        thread::sleep(Duration::from_micros(200));
        match calls::read(fd, &mut buffer) {
            count if count > 0 => total += count as usize,
            _ => return total,
        }
    }
}

/// The cases of one call: `condition waits` makes a test of the function `condition(notes, call)` beside the macro's use.
macro_rules! cases {
    ($call:ident: $($condition:ident $waits:literal)*) => {
        mod $call {
            $(
                #[test]
                fn $condition() {
                    crate::harness::differ($waits, |notes| super::$condition(notes, crate::calls::$call));
                }
            )*
        }
    };
}
pub(crate) use cases;
