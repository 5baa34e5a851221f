//! Invariant 3: whatever a fiber waits for passes the `Os` seam. A scheduler with another operating system attached never reaches the
//! real one: an hour's sleep takes no time, and descriptors that no kernel knows can be read, written, polled and synced.

use squall_fiber::Current;
use squall_hook::{AddressMut, Buffer, BufferMut, Errno, Os, OsExtension, PollEntry, Result};
use squall_iomanager::IoManager;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Descriptors far above what the process has open.
const FIRST_FD: RawFd = 900_000;

/// Notes every call and answers it out of thin air.
struct Pretending(Mutex<Vec<String>>);

impl Pretending {
    fn note(&self, call: String) {
        self.0.lock().unwrap().push(call);
    }
}

fn fill(buffer: &mut BufferMut, bytes: &[u8]) -> usize {
    let room = buffer.as_mut_slice();
    let count = room.len().min(bytes.len());
    for (slot, byte) in room.iter_mut().zip(bytes) {
        slot.write(*byte);
    }
    count
}

impl Os for Pretending {
    fn sleep_until(&self, _: Current<'_>, deadline: Option<Instant>) {
        let minutes = deadline.map(|deadline| (deadline - Instant::now()).as_secs_f64() / 60.0);
        self.note(format!("sleep {:.0} min", minutes.unwrap()));
    }
    fn connect(&self, _: Current<'_>, _: RawFd, address: &[u8]) -> Result<()> {
        self.note(format!("connect, {} bytes of address", address.len()));
        Err(Errno(libc::EHOSTUNREACH))
    }
    fn accept(&self, _: Current<'_>, fd: RawFd, mut peer: AddressMut, _: i32) -> Result<RawFd> {
        self.note(format!("accept {fd}"));
        let mut address = [0u8; 16];
        address[..8].copy_from_slice(&[2, 0, 0x12, 0x34, 10, 1, 2, 3]);
        peer.set(&address);
        Ok(FIRST_FD + 1)
    }
    fn receive(
        &self,
        _: Current<'_>,
        fd: RawFd,
        mut buffer: BufferMut,
        _: i32,
        _: Option<AddressMut>,
    ) -> Result<usize> {
        self.note(format!("receive {fd}"));
        Ok(fill(&mut buffer, b"made up"))
    }
    fn send(&self, _: Current<'_>, fd: RawFd, buffer: Buffer, _: i32, to: Option<&[u8]>) -> Result<usize> {
        self.note(format!("send {fd} {:?} {}", buffer.as_slice(), to.is_some()));
        Ok(buffer.len())
    }
    fn receive_message(&self, _: Current<'_>, fd: RawFd, _: &mut libc::msghdr, _: i32) -> Result<usize> {
        self.note(format!("receive_message {fd}"));
        Ok(0)
    }
    fn send_message(&self, _: Current<'_>, fd: RawFd, _: &libc::msghdr, _: i32) -> Result<usize> {
        self.note(format!("send_message {fd}"));
        Ok(0)
    }
    fn read(&self, _: Current<'_>, fd: RawFd, buffers: &mut [BufferMut]) -> Result<usize> {
        self.note(format!("read {fd}"));
        Ok(fill(&mut buffers[0], b"file"))
    }
    fn write(&self, _: Current<'_>, fd: RawFd, buffers: &[Buffer]) -> Result<usize> {
        self.note(format!("write {fd} in {}", buffers.len()));
        Ok(buffers.iter().map(Buffer::len).sum())
    }
    fn poll(&self, _: Current<'_>, entries: &mut [PollEntry], timeout: Option<Duration>) -> Result<usize> {
        self.note(format!("poll {} for {timeout:?}", entries.len()));
        entries[0].revents = libc::POLLIN;
        Ok(1)
    }
    fn wait_events(
        &self,
        _: Current<'_>,
        epoll: RawFd,
        _: &mut [core::mem::MaybeUninit<libc::epoll_event>],
        timeout: Option<Duration>,
    ) -> Result<usize> {
        self.note(format!("wait_events {epoll} for {timeout:?}"));
        Ok(0)
    }
    fn send_file(
        &self,
        _: Current<'_>,
        out: RawFd,
        input: RawFd,
        offset: Option<&mut i64>,
        count: usize,
    ) -> Result<usize> {
        self.note(format!("send_file {input} to {out} from {offset:?}"));
        Ok(count)
    }
    fn control(&self, _: Current<'_>, fd: RawFd, command: i32, _: core::ffi::c_ulong) -> Result<i32> {
        // std asks in debug builds whether a descriptor that it closes is open.
        assert_eq!((command, fd >= 0), (libc::F_GETFD, true));
        Ok(0)
    }
    fn close(&self, _: Current<'_>, fd: RawFd) -> Result<()> {
        self.note(format!("close {fd}"));
        Ok(())
    }
    fn sync_file(&self, _: Current<'_>, fd: RawFd, data_only: bool) -> Result<()> {
        self.note(format!("sync {fd} {data_only}"));
        Err(Errno(libc::EIO))
    }
}

#[test]
fn std_calls_in_a_fiber_reach_the_attached_operating_system_only() {
    let os: &'static Pretending = Box::leak(Box::new(Pretending(Mutex::new(Vec::new()))));
    let extension: &'static OsExtension = Box::leak(Box::new(OsExtension(os)));
    let manager = IoManager::with_extension(1, false, Some(extension)).unwrap();
    let fiber = manager.spawn(|| {
        std::thread::sleep(Duration::from_secs(3600));

        // SAFETY: the descriptor belongs to nobody else: the real operating system has none of this number.
        let listener = unsafe { TcpListener::from_raw_fd(FIRST_FD) };
        let (mut stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.to_string(), "10.1.2.3:4660");
        let mut buffer = [0; 7];
        stream.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"made up");
        stream.write_all(b"hi").unwrap();
        assert_eq!(stream.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"bc")]).unwrap(), 3);
        let mut entry = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live entry.
        assert_eq!(unsafe { libc::poll(&mut entry, 1, 60_000) }, 1);
        assert_eq!(entry.revents, libc::POLLIN);

        // SAFETY: one live event, and an hour that does not pass.
        unsafe {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            assert_eq!(libc::epoll_wait(FIRST_FD + 7, &mut event, 1, 3_600_000), 0);
            assert_eq!(libc::sendfile(FIRST_FD + 8, FIRST_FD + 9, &mut 5, 10), 10);
        }

        // SAFETY: as above.
        let socket = unsafe { UdpSocket::from_raw_fd(FIRST_FD + 2) };
        socket.send_to(b"x", "10.9.9.9:9").unwrap();

        // SAFETY: as above.
        let mut file = unsafe { File::from_raw_fd(FIRST_FD + 3) };
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"file");
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));

        assert_eq!(TcpStream::connect("10.0.0.1:1").unwrap_err().kind(), std::io::ErrorKind::HostUnreachable);
    });
    fiber.join().unwrap();
    let calls = os.0.lock().unwrap().clone();
    // The socket that `connect` makes is a real one, with a number of the kernel's choice; its end is noted, too.
    let (ends, calls): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| call.starts_with("close "));
    assert_eq!(
        calls,
        [
            "sleep 60 min",
            "accept 900000",
            "receive 900001",
            "send 900001 [104, 105] false",
            "write 900001 in 2",
            "poll 1 for Some(60s)",
            "wait_events 900007 for Some(3600s)",
            "send_file 900009 to 900008 from Some(5)",
            "send 900002 [120] true",
            "read 900003",
            "sync 900003 true",
            "connect, 16 bytes of address",
        ]
    );
    for fd in FIRST_FD..FIRST_FD + 4 {
        assert!(ends.contains(&format!("close {fd}")), "{fd} was closed past the seam: {ends:?}");
    }
}
