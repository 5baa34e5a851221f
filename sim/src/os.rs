//! The operating system that one simulated program sees.
//!
//! Every call begins at the gate, where a paused program is held up, one that has ended stays for ever, and now and then other fibers
//! run first. Then it is tried on the world's state, again and again with waits in between, until there is a result; and that is recorded.

use crate::kernel::address::Address;
use crate::kernel::datagrams::Datagrams;
use crate::kernel::net::ConnectionId;
use crate::kernel::{
    Attempt, Exit, FIRST_FD, Host, HostId, Kernel, Kind, ProcessId, Queue, Standing, State, Stop,
};
use crate::trace::{Call, digest};
use core::ffi::{CStr, c_int, c_ulong};
use core::mem::MaybeUninit;
use squall_fiber::{Current, WaitKind, Wake};
use squall_hook::{
    AddressMut, Buffer, BufferMut, DirectoryEntry, Errno, FileName, FileStatus, Os, PollEntry, RealOs,
    Result, World,
};
use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a sync on a disk that hangs looks whether it still does.
const HANG: Duration = Duration::from_millis(10);
/// How long a connection is asked for before TCP gives up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);

pub(crate) struct ProcessOs {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) id: ProcessId,
    pub(crate) host: HostId,
}

impl ProcessOs {
    /// Holds the caller up as long as its program must not go on.
    fn gate(&self, current: Current<'_>) {
        loop {
            let wait = {
                let mut state = self.kernel.lock();
                match state.processes[self.id].standing {
                    Standing::Running => return,
                    Standing::Paused => {
                        let wait = current.begin_wait(WaitKind::Park, 0);
                        state.enqueue(Queue::Process(self.id), wait.waker());
                        wait
                    }
                    // Nobody has a waker of this wait.
                    Standing::Ended => current.begin_wait(WaitKind::Park, 0),
                }
            };
            wait.block(None);
        }
    }

    fn enter(&self, current: Current<'_>) {
        self.gate(current);
        let (yields, dies) = {
            let mut state = self.kernel.lock();
            let yields = state.begin_call();
            let left = &mut state.processes[self.id].calls_left;
            let dies = *left == Some(0);
            *left = left.map(|left| left.saturating_sub(1));
            if dies {
                state.note(Some(self.host), "the program is killed in the middle of a call".into());
                state.end_process(self.id, Exit::Killed);
            }
            (yields, dies)
        };
        if yields && !dies {
            current.yield_now();
        }
        if yields || dies {
            self.gate(current);
        }
    }

    /// Makes a call that never waits.
    fn call<T>(
        &self,
        current: Current<'_>,
        call: Call,
        about: u64,
        attempt: impl FnOnce(&mut State) -> Result<T>,
        size: impl FnOnce(&T) -> u64,
    ) -> Result<T> {
        self.enter(current);
        let mut state = self.kernel.lock();
        let result = attempt(&mut state);
        let recorded = result.as_ref().map(size).map_err(|errno| *errno);
        state.record_call(self.id, call, about, recorded);
        result
    }

    /// Tries until there is a result, or the time is up: then the answer is `late`.
    fn wait<T>(
        &self,
        current: Current<'_>,
        kind: WaitKind,
        fd: RawFd,
        timeout: Option<Duration>,
        late: Errno,
        mut attempt: impl FnMut(&mut State) -> Attempt<T>,
    ) -> Result<T> {
        let mut deadline = None;
        loop {
            let (wait, queue) = {
                let mut state = self.kernel.lock();
                match attempt(&mut state) {
                    Ok(result) => return Ok(result),
                    Err(Stop::Fail(errno)) => return Err(errno),
                    Err(Stop::Wait(queue)) => {
                        deadline = deadline.or(timeout.map(|timeout| state.now + timeout.as_nanos() as u64));
                        let wait = current.begin_wait(kind, fd as u64);
                        state.enqueue(queue, wait.waker());
                        (wait, queue)
                    }
                }
            };
            let waker = wait.waker();
            let wake = wait.block_interruptible(deadline.map(|deadline| self.kernel.instant(deadline)));
            self.gate(current);
            if wake == Wake::Ready {
                continue;
            }
            self.kernel.lock().dequeue(queue, &waker);
            return Err(match wake {
                Wake::TimedOut => late,
                Wake::Cancelled => Errno::CANCELED,
                Wake::Expired => Errno::TIMEDOUT,
                _ => Errno::BADF,
            });
        }
    }

    fn record<T>(
        &self,
        call: Call,
        about: u64,
        result: Result<T>,
        size: impl FnOnce(&T) -> u64,
    ) -> Result<T> {
        let recorded = result.as_ref().map(size).map_err(|errno| *errno);
        self.kernel.lock().record_call(self.id, call, about, recorded);
        result
    }

    fn host_of<'a>(&self, state: &'a mut State) -> &'a mut Host {
        &mut state.hosts[self.host]
    }

    /// Sleeps for a time of the world's own, such as a disk takes.
    fn pass(&self, current: Current<'_>, time: Duration) {
        let until = self.kernel.lock().now + time.as_nanos() as u64;
        current.begin_wait(WaitKind::Sleep, 0).block(Some(self.kernel.instant(until)));
        self.gate(current);
    }

    fn connection(state: &mut State, process: ProcessId, fd: RawFd) -> Result<(ConnectionId, usize)> {
        match state.object(process, fd)?.kind {
            Kind::Connection { id, side } => Ok((id, side)),
            Kind::Socket { .. } | Kind::Listener { .. } => Err(Errno(libc::ENOTCONN)),
            _ => Err(Errno::NOTSOCK),
        }
    }

    fn receive_some(
        state: &mut State,
        process: ProcessId,
        fd: RawFd,
        buffers: &mut [BufferMut],
        flags: i32,
    ) -> Attempt<usize> {
        let (connection, side) = Self::connection(state, process, fd)?;
        let nonblocking = state.object(process, fd)?.nonblocking || (flags & libc::MSG_DONTWAIT) != 0;
        let Some(end) = state.end(connection, side) else { return Err(Errno::BADF.into()) };
        let wanted: usize = buffers.iter().map(BufferMut::len).sum();
        if wanted == 0 {
            return Ok(0);
        }
        if !end.unread.is_empty() {
            let mut taken = 0;
            let (first, second) = end.unread.as_slices();
            let mut rest = [first, second];
            for buffer in buffers {
                let mut room = buffer.as_mut_slice();
                for part in &mut rest {
                    let count = room.len().min(part.len());
                    room[..count].write_copy_of_slice(&part[..count]);
                    *part = &part[count..];
                    room = &mut room[count..];
                    taken += count;
                }
            }
            if (flags & libc::MSG_PEEK) == 0 {
                end.unread.drain(..taken);
                state.bytes_read(connection, side, taken);
            }
            return Ok(taken);
        }
        if let Some(errno) = end.error.take() {
            return Err(Errno(errno).into());
        }
        if end.finished || end.deaf || end.broken {
            return Ok(0);
        }
        Err(if nonblocking { Errno::AGAIN.into() } else { Stop::Wait(Queue::End { connection, side }) })
    }

    fn receive_into(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffers: &mut [BufferMut],
        flags: i32,
    ) -> Result<usize> {
        self.enter(current);
        let timeout = self.kernel.lock().object(self.id, fd)?.receive_timeout;
        let result = self.wait(current, WaitKind::Readable, fd, timeout, Errno::AGAIN, |state| {
            Self::receive_some(state, self.id, fd, buffers, flags)
        });
        self.record(Call::Receive, fd as u64, result, |size| *size as u64)
    }

    fn send_from(&self, current: Current<'_>, fd: RawFd, buffers: &[Buffer], flags: i32) -> Result<usize> {
        self.enter(current);
        let timeout = self.kernel.lock().object(self.id, fd)?.send_timeout;
        let total: usize = buffers.iter().map(Buffer::len).sum();
        let mut sent = 0_usize;
        let mut content = 0;
        let result = self.wait(current, WaitKind::Writable, fd, timeout, Errno::AGAIN, |state| {
            let (connection, side) = Self::connection(state, self.id, fd)?;
            let nonblocking = state.object(self.id, fd)?.nonblocking || (flags & libc::MSG_DONTWAIT) != 0;
            let Some(end) = state.end(connection, side) else { return Err(Errno::BADF.into()) };
            if let Some(errno) = end.error.take() {
                return Err(Errno(errno).into());
            }
            if end.sent_finish || end.broken {
                return Err(Errno(libc::EPIPE).into());
            }
            if end.open {
                let mut skipped = 0;
                for buffer in buffers {
                    let bytes = buffer.as_slice();
                    let from = sent.saturating_sub(skipped).min(bytes.len());
                    skipped += bytes.len();
                    let rest = &bytes[from..];
                    let count = state.send_bytes(connection, side, rest);
                    content ^= digest(&rest[..count]);
                    sent += count;
                    if count < rest.len() {
                        break;
                    }
                }
            }
            match sent {
                _ if sent == total => Ok(sent),
                0 if nonblocking => Err(Errno::AGAIN.into()),
                _ if nonblocking => Ok(sent),
                _ => Err(Stop::Wait(Queue::End { connection, side })),
            }
        });
        // What was sent before the trouble came counts first.
        let result = if sent > 0 { Ok(sent) } else { result };
        self.record(Call::Send, content, result, |size| *size as u64)
    }

    fn has_datagrams(&self, fd: RawFd) -> bool {
        let mut state = self.kernel.lock();
        state.object(self.id, fd).is_ok_and(|object| matches!(object.kind, Kind::Datagrams(_)))
    }

    fn receive_datagram(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffers: &mut [BufferMut],
        flags: i32,
        from: Option<AddressMut>,
    ) -> Result<usize> {
        self.enter(current);
        let timeout = self.kernel.lock().object(self.id, fd)?.receive_timeout;
        let result = self.wait(current, WaitKind::Readable, fd, timeout, Errno::AGAIN, |state| {
            let id = state.object_id(self.id, fd)?;
            let nonblocking = state.objects[id].nonblocking || (flags & libc::MSG_DONTWAIT) != 0;
            let Some(socket) = state.datagrams(id) else { return Err(Errno::NOTSOCK.into()) };
            let next = match (flags & libc::MSG_PEEK) != 0 {
                true => socket.inbox.front().cloned(),
                false => socket.inbox.pop_front(),
            };
            match next {
                Some(next) => {
                    // Whoever found the inbox full.
                    socket.waiters.drain(..).for_each(|waiter| {
                        waiter.wake(Wake::Ready);
                    });
                    Ok(next)
                }
                None if nonblocking => Err(Errno::AGAIN.into()),
                None => Err(Stop::Wait(Queue::Datagrams(id))),
            }
        });
        let (sender, bytes) = self.record(Call::Receive, fd as u64, result, |(_, bytes)| digest(bytes))?;
        let mut rest = &bytes[..];
        for buffer in buffers {
            let room = buffer.as_mut_slice();
            let count = room.len().min(rest.len());
            room[..count].write_copy_of_slice(&rest[..count]);
            rest = &rest[count..];
        }
        if let Some(mut from) = from {
            from.set(&sender.encode());
        }
        Ok(if (flags & libc::MSG_TRUNC) != 0 { bytes.len() } else { bytes.len() - rest.len() })
    }

    fn send_datagram(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffers: &[Buffer],
        flags: i32,
        to: Option<&[u8]>,
    ) -> Result<usize> {
        self.enter(current);
        let to = to.map(Address::decode).transpose()?;
        let bytes = buffers.iter().flat_map(|buffer| buffer.as_slice()).copied().collect::<Vec<u8>>();
        let timeout = self.kernel.lock().object(self.id, fd)?.send_timeout;
        let result = self.wait(current, WaitKind::Writable, fd, timeout, Errno::AGAIN, |state| {
            let id = state.object_id(self.id, fd)?;
            let nonblocking = state.objects[id].nonblocking || (flags & libc::MSG_DONTWAIT) != 0;
            let to = to.clone().map(|to| state.destination(self.host, to)).transpose()?;
            match state.send_datagram(self.host, id, &bytes, to) {
                Err(Stop::Wait(_)) if nonblocking => Err(Errno::AGAIN.into()),
                result => result,
            }
        });
        self.record(Call::Send, digest(&bytes), result, |size| *size as u64)
    }

    fn readiness(state: &mut State, process: ProcessId, fd: RawFd) -> (i16, Option<Queue>) {
        let Ok(id) = state.object_id(process, fd) else { return (libc::POLLNVAL, None) };
        match &state.objects[id].kind {
            Kind::File { .. } | Kind::Directory { .. } => (libc::POLLIN | libc::POLLOUT, None),
            Kind::Socket { .. } => (libc::POLLOUT | libc::POLLHUP, None),
            Kind::Datagrams(socket) => {
                let readable = if socket.inbox.is_empty() { 0 } else { libc::POLLIN };
                (readable | libc::POLLOUT, Some(Queue::Datagrams(id)))
            }
            Kind::Listener { listener, .. } => {
                (if listener.backlog.is_empty() { 0 } else { libc::POLLIN }, Some(Queue::Listener(id)))
            }
            Kind::Connection { id: connection, side } => {
                let (connection, side) = (*connection, *side);
                let Some(end) = state.end(connection, side) else { return (libc::POLLNVAL, None) };
                let mut events = 0;
                if end.broken || end.error.is_some() {
                    events |= libc::POLLERR | libc::POLLHUP | libc::POLLIN | libc::POLLOUT;
                }
                if !end.unread.is_empty() || end.finished || end.deaf {
                    events |= libc::POLLIN;
                }
                if end.finished {
                    events |= libc::POLLRDHUP;
                }
                if end.finished && end.sent_finish {
                    events |= libc::POLLHUP;
                }
                if end.open && end.room() > 0 {
                    events |= libc::POLLOUT;
                }
                (events, Some(Queue::End { connection, side }))
            }
        }
    }

    fn file(state: &mut State, process: ProcessId, fd: RawFd) -> Result<(usize, bool, bool)> {
        match state.object(process, fd)?.kind {
            Kind::File { inode, readable, writable, .. } => Ok((inode, readable, writable)),
            Kind::Directory { .. } => Err(Errno(libc::EISDIR)),
            _ => Err(Errno(libc::ESPIPE)),
        }
    }

    fn is_file(&self, fd: RawFd) -> bool {
        let mut state = self.kernel.lock();
        state
            .object(self.id, fd)
            .is_ok_and(|object| matches!(object.kind, Kind::File { .. } | Kind::Directory { .. }))
    }

    fn read_file(
        &self,
        state: &mut State,
        fd: RawFd,
        buffers: &mut [BufferMut],
        at: Option<u64>,
    ) -> Result<usize> {
        let (inode, readable, _) = Self::file(state, self.id, fd)?;
        if !readable {
            return Err(Errno::BADF);
        }
        let faults = state.hosts[self.host].disk.faults;
        if faults.read_error > 0.0 && state.draw_disk_fault(faults.read_error) {
            state.note(Some(self.host), format!("a read fails with EIO (file {inode})"));
            state.count_fault("disk read error");
            return Err(Errno(libc::EIO));
        }
        let Kind::File { offset, .. } = state.object(self.id, fd)?.kind else { return Err(Errno::BADF) };
        let start = at.unwrap_or(offset) as usize;
        let State { hosts, random, .. } = state;
        let misdirected = hosts[self.host].disk.mistakes(&mut random.disk);
        if misdirected {
            state.note(Some(self.host), format!("a read gets what stands elsewhere (file {inode})"));
            state.count_fault("misdirected read");
        }
        let mut taken = 0;
        for buffer in buffers {
            let room = buffer.as_mut_slice();
            let State { hosts, random, .. } = state;
            let disk = &hosts[self.host].disk;
            let bytes = disk.read(inode, start + taken, room.len())?;
            if misdirected {
                let other = disk.read_elsewhere(bytes.len(), &mut random.disk);
                room[..bytes.len()].write_copy_of_slice(&other);
            } else {
                room[..bytes.len()].write_copy_of_slice(bytes);
            }
            taken += bytes.len();
        }
        if at.is_none()
            && let Kind::File { offset, .. } = &mut state.object(self.id, fd)?.kind
        {
            *offset += taken as u64;
        }
        Ok(taken)
    }

    fn write_file(&self, state: &mut State, fd: RawFd, buffers: &[Buffer], at: Option<u64>) -> Result<usize> {
        let (inode, _, writable) = Self::file(state, self.id, fd)?;
        if !writable {
            return Err(Errno::BADF);
        }
        let faults = state.hosts[self.host].disk.faults;
        if faults.write_error > 0.0 && state.draw_disk_fault(faults.write_error) {
            state.note(Some(self.host), format!("a write fails with EIO (file {inode})"));
            state.count_fault("disk write error");
            return Err(Errno(libc::EIO));
        }
        let Kind::File { offset, append, durable, .. } = state.object(self.id, fd)?.kind else {
            return Err(Errno::BADF);
        };
        let now = state.now;
        let disk = &mut state.hosts[self.host].disk;
        let mut end = match at {
            Some(at) => at as usize,
            None if append => disk.length(inode),
            None => offset as usize,
        };
        let start = end;
        for buffer in buffers {
            if let Err(errno) = disk.write(inode, end, buffer.as_slice(), now) {
                if end > start {
                    break;
                }
                if errno == Errno(libc::ENOSPC) {
                    state.count_fault("disk full");
                }
                return Err(errno);
            }
            end += buffer.len();
        }
        if durable {
            let mark = disk.sync_mark(inode);
            disk.settle(inode, mark, true);
        }
        if at.is_none()
            && let Kind::File { offset, .. } = &mut state.object(self.id, fd)?.kind
        {
            *offset = end as u64;
        }
        Ok(end - start)
    }
}

fn content_of(buffers: &[Buffer]) -> u64 {
    buffers.iter().fold(0, |sum, buffer| sum ^ digest(buffer.as_slice()))
}

/// The time in a `timeval`; none if it is zero, which means no limit.
fn decode_timeval(bytes: &[u8]) -> Result<Option<Duration>> {
    let field = |range: core::ops::Range<usize>| -> Result<u64> {
        let bytes = bytes.get(range).ok_or(Errno::INVAL)?;
        let number = i64::from_ne_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?);
        u64::try_from(number).map_err(|_| Errno(libc::EDOM))
    };
    let time = Duration::from_secs(field(0..8)?) + Duration::from_micros(field(8..16)?);
    Ok((!time.is_zero()).then_some(time))
}

fn store(mut buffer: BufferMut, bytes: &[u8]) -> usize {
    let room = buffer.as_mut_slice();
    let count = room.len().min(bytes.len());
    room[..count].write_copy_of_slice(&bytes[..count]);
    count
}

impl Os for ProcessOs {
    fn sleep_until(&self, current: Current<'_>, deadline: Option<Instant>) {
        self.enter(current);
        let _ = self.record(Call::Sleep, 0, Ok(()), |()| 0);
        let deadline = deadline.map(|deadline| self.deadline(current, deadline));
        current.begin_wait(WaitKind::Sleep, 0).block_interruptible(deadline);
        self.gate(current);
    }

    fn connect(&self, current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()> {
        self.enter(current);
        let address = Address::decode(address)?;
        let mut begun = false;
        let timeout = self.kernel.lock().object(self.id, fd)?.send_timeout;
        let late = if timeout.is_some() { Errno::INPROGRESS } else { Errno::TIMEDOUT };
        let limit = Some(timeout.unwrap_or(CONNECT_TIMEOUT));
        let result = self.wait(current, WaitKind::Writable, fd, limit, late, |state| {
            let id = state.object_id(self.id, fd)?;
            match state.objects[id].kind {
                Kind::Datagrams(_) => {
                    let peer = state.destination(self.host, address.clone())?;
                    if state.datagrams(id).is_some_and(|socket| !socket.unix && socket.port.is_none()) {
                        state.name_datagrams(self.host, id, 0)?;
                    }
                    if let Some(socket) = state.datagrams(id) {
                        socket.peer = Some(peer);
                    }
                    Ok(())
                }
                Kind::Socket { .. } => {
                    let connection = state.open_connection(self.host, address.clone())?;
                    state.objects[id].kind = Kind::Connection { id: connection, side: 0 };
                    begun = true;
                    if state.objects[id].nonblocking {
                        return Err(Errno::INPROGRESS.into());
                    }
                    Err(Stop::Wait(Queue::End { connection, side: 0 }))
                }
                Kind::Connection { id: connection, side } => {
                    let nonblocking = state.objects[id].nonblocking;
                    let Some(end) = state.end(connection, side) else { return Err(Errno::BADF.into()) };
                    match end.error.take() {
                        Some(errno) => Err(Errno(errno).into()),
                        None if end.open && begun => Ok(()),
                        None if end.open => Err(Errno(libc::EISCONN).into()),
                        None if end.broken => Err(Errno(libc::ECONNABORTED).into()),
                        None if nonblocking => Err(Errno(libc::EALREADY).into()),
                        None => Err(Stop::Wait(Queue::End { connection, side })),
                    }
                }
                Kind::Listener { .. } => Err(Errno(libc::EISCONN).into()),
                _ => Err(Errno::NOTSOCK.into()),
            }
        });
        self.record(Call::Connect, fd as u64, result, |()| 0)
    }

    fn accept(&self, current: Current<'_>, fd: RawFd, mut peer: AddressMut, flags: i32) -> Result<RawFd> {
        self.enter(current);
        let timeout = self.kernel.lock().object(self.id, fd)?.receive_timeout;
        let result = self.wait(current, WaitKind::Readable, fd, timeout, Errno::AGAIN, |state| {
            let id = state.object_id(self.id, fd)?;
            let nonblocking = state.objects[id].nonblocking;
            let Kind::Listener { listener, .. } = &mut state.objects[id].kind else {
                return Err(Errno::INVAL.into());
            };
            let Some(connection) = listener.backlog.pop_front() else {
                return Err(if nonblocking { Errno::AGAIN.into() } else { Stop::Wait(Queue::Listener(id)) });
            };
            let from =
                state.end(connection, 0).map(|end| end.address.clone()).ok_or(Errno(libc::ECONNABORTED))?;
            let kind = Kind::Connection { id: connection, side: 1 };
            Ok((state.install(self.id, kind, (flags & libc::SOCK_NONBLOCK) != 0), from))
        });
        let (accepted, from) = self.record(Call::Accept, fd as u64, result, |(fd, _)| *fd as u64)?;
        peer.set(&from.encode());
        Ok(accepted)
    }

    fn receive(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffer: BufferMut,
        flags: i32,
        from: Option<AddressMut>,
    ) -> Result<usize> {
        if self.has_datagrams(fd) {
            return self.receive_datagram(current, fd, &mut [buffer], flags, from);
        }
        if (flags & libc::MSG_WAITALL) == 0 {
            return self.receive_into(current, fd, &mut [buffer], flags);
        }
        Err(self.refuse(current, "recv with MSG_WAITALL"))
    }

    fn send(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffer: Buffer,
        flags: i32,
        to: Option<&[u8]>,
    ) -> Result<usize> {
        if self.has_datagrams(fd) {
            return self.send_datagram(current, fd, &[buffer], flags, to);
        }
        self.send_from(current, fd, &[buffer], flags)
    }

    fn receive_message(&self, current: Current<'_>, _: RawFd, _: &mut libc::msghdr, _: i32) -> Result<usize> {
        Err(self.refuse(current, "recvmsg"))
    }

    fn send_message(&self, current: Current<'_>, _: RawFd, _: &libc::msghdr, _: i32) -> Result<usize> {
        Err(self.refuse(current, "sendmsg"))
    }

    fn read(&self, current: Current<'_>, fd: RawFd, buffers: &mut [BufferMut]) -> Result<usize> {
        if fd < FIRST_FD {
            return Err(self.refuse(current, "read from the real system"));
        }
        if self.has_datagrams(fd) {
            return self.receive_datagram(current, fd, buffers, 0, None);
        }
        if !self.is_file(fd) {
            return self.receive_into(current, fd, buffers, 0);
        }
        let read = |state: &mut State| self.read_file(state, fd, buffers, None);
        self.call(current, Call::Read, fd as u64, read, |size| *size as u64)
    }

    fn write(&self, current: Current<'_>, fd: RawFd, buffers: &[Buffer]) -> Result<usize> {
        if fd < FIRST_FD {
            // What a program says to people is for them.
            return RealOs.write(current, fd, buffers);
        }
        if self.has_datagrams(fd) {
            return self.send_datagram(current, fd, buffers, 0, None);
        }
        if !self.is_file(fd) {
            return self.send_from(current, fd, buffers, 0);
        }
        let write = |state: &mut State| self.write_file(state, fd, buffers, None);
        self.call(current, Call::Write, content_of(buffers), write, |size| *size as u64)
    }

    fn poll(
        &self,
        current: Current<'_>,
        entries: &mut [PollEntry],
        timeout: Option<Duration>,
    ) -> Result<usize> {
        self.enter(current);
        let mut deadline = None;
        let ready = loop {
            let (wait, queues) = {
                let mut state = self.kernel.lock();
                let mut ready = 0;
                let mut queues = Vec::new();
                for entry in entries.iter_mut() {
                    entry.revents = 0;
                    if entry.fd < 0 {
                        continue;
                    }
                    let (events, queue) = Self::readiness(&mut state, self.id, entry.fd);
                    entry.revents = events & (entry.events | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
                    ready += usize::from(entry.revents != 0);
                    queues.extend(queue);
                }
                if ready > 0 || timeout == Some(Duration::ZERO) {
                    break Ok(ready);
                }
                deadline = deadline.or(timeout.map(|timeout| state.now + timeout.as_nanos() as u64));
                let wait = current.begin_wait(WaitKind::Poll, entries.len() as u64);
                for queue in &queues {
                    state.enqueue(*queue, wait.waker());
                }
                (wait, queues)
            };
            let waker = wait.waker();
            let wake = wait.block_interruptible(deadline.map(|deadline| self.kernel.instant(deadline)));
            self.gate(current);
            let mut state = self.kernel.lock();
            queues.into_iter().for_each(|queue| state.dequeue(queue, &waker));
            match wake {
                Wake::Ready => {}
                Wake::TimedOut => break Ok(0),
                Wake::Cancelled => break Err(Errno::CANCELED),
                _ => break Err(Errno::TIMEDOUT),
            }
        };
        self.record(Call::Poll, entries.len() as u64, ready, |ready| *ready as u64)
    }

    fn wait_events(
        &self,
        current: Current<'_>,
        _: RawFd,
        _: &mut [MaybeUninit<libc::epoll_event>],
        _: Option<Duration>,
    ) -> Result<usize> {
        Err(self.refuse(current, "epoll_wait"))
    }

    fn send_file(
        &self,
        current: Current<'_>,
        _: RawFd,
        _: RawFd,
        _: Option<&mut i64>,
        _: usize,
    ) -> Result<usize> {
        // What std takes for "copy it yourself".
        let _ = self.call(current, Call::Control, 0, |_| Ok(()), |()| 0);
        Err(Errno::INVAL)
    }

    fn control(&self, current: Current<'_>, fd: RawFd, command: c_int, argument: c_ulong) -> Result<c_int> {
        if fd < FIRST_FD {
            return RealOs.control(current, fd, command, argument);
        }
        let about = command as u64;
        let control = |state: &mut State| {
            let id = state.object_id(self.id, fd)?;
            let object = &mut state.objects[id];
            match command {
                libc::F_GETFD => Ok(libc::FD_CLOEXEC),
                libc::F_SETFD => Ok(0),
                libc::F_GETFL => Ok(libc::O_RDWR | if object.nonblocking { libc::O_NONBLOCK } else { 0 }),
                libc::F_SETFL => {
                    object.nonblocking = (argument as c_int & libc::O_NONBLOCK) != 0;
                    Ok(0)
                }
                libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => Ok(state.assign(self.id, id, argument as RawFd)),
                _ => Err(Errno::INVAL),
            }
        };
        // Asked for so that a debug build finds mistakes; no program depends on it, and letting others run here would be no help.
        if command == libc::F_GETFD {
            return control(&mut self.kernel.lock());
        }
        self.call(current, Call::Control, about, control, |answer| *answer as u64)
    }

    fn close(&self, current: Current<'_>, fd: RawFd) -> Result<()> {
        if fd < FIRST_FD {
            return RealOs.close(current, fd);
        }
        self.call(current, Call::Close, fd as u64, |state| state.close(self.id, fd), |()| 0)
    }

    fn sync_file(&self, current: Current<'_>, fd: RawFd, _: bool) -> Result<()> {
        self.enter(current);
        let (inode, mark, time, fails) = {
            let mut state = self.kernel.lock();
            let (Kind::File { inode, .. } | Kind::Directory { inode }) = state.object(self.id, fd)?.kind
            else {
                return Err(Errno::INVAL);
            };
            let (time, fails) = state.draw_sync(self.host);
            (inode, self.host_of(&mut state).disk.sync_mark(inode), time, fails)
        };
        self.pass(current, time);
        while self.host_of(&mut self.kernel.lock()).disk.faults.hangs {
            self.pass(current, HANG);
        }
        let mut state = self.kernel.lock();
        self.host_of(&mut state).disk.settle(inode, mark, !fails);
        if fails {
            state.note(Some(self.host), format!("a sync fails with EIO (file {inode})"));
            state.count_fault("disk sync error");
        }
        drop(state);
        let result = if fails { Err(Errno(libc::EIO)) } else { Ok(()) };
        self.record(Call::Sync, inode as u64, result, |()| 0)
    }

    fn world(&self) -> Option<&dyn World> {
        Some(self)
    }

    fn deadline(&self, _: Current<'_>, deadline: Instant) -> Instant {
        let drift = self.kernel.lock().hosts[self.host].clock_drift_ppm;
        self.kernel.true_time(drift, deadline)
    }
}

impl World for ProcessOs {
    /// The fiber goes on at once: a clock is read in places where no lock may be given away.
    fn clock(&self, _: Current<'_>, clock: libc::clockid_t) -> Duration {
        let mut state = self.kernel.lock();
        state.begin_reading();
        match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI => {
                state.wall_clock(self.host)
            }
            _ => state.monotonic(self.host),
        }
    }

    fn fill_random(&self, _: Current<'_>, buffer: &mut [MaybeUninit<u8>]) {
        let mut state = self.kernel.lock();
        for chunk in buffer.chunks_mut(8) {
            let bytes = state.random_of(self.id).bits().to_ne_bytes();
            chunk.write_copy_of_slice(&bytes[..chunk.len()]);
        }
        state.record_call(self.id, Call::Random, buffer.len() as u64, Ok(0));
    }

    fn process_id(&self, _: Current<'_>) -> i32 {
        1000 + self.id as i32
    }

    fn resolve(&self, current: Current<'_>, name: &CStr) -> Option<IpAddr> {
        let wanted = name.to_bytes();
        let resolve = |state: &mut State| {
            if wanted == b"localhost" {
                return Ok(Ipv4Addr::LOCALHOST);
            }
            let host = state.hosts.iter().find(|host| host.name.as_bytes() == wanted);
            host.map(|host| host.ip).ok_or(Errno(libc::ENOENT))
        };
        let address =
            self.call(current, Call::Resolve, digest(wanted), resolve, |ip| u64::from(ip.to_bits()));
        address.ok().map(IpAddr::V4)
    }

    fn socket(&self, current: Current<'_>, domain: c_int, kind: c_int, _: c_int) -> Result<RawFd> {
        let make = |state: &mut State| {
            let unix = match domain {
                libc::AF_INET => false,
                libc::AF_UNIX => true,
                _ => return Err(Errno(libc::EAFNOSUPPORT)),
            };
            let nonblocking = (kind & libc::SOCK_NONBLOCK) != 0;
            let kind = match kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) {
                libc::SOCK_STREAM => Kind::Socket { unix, bound: None },
                libc::SOCK_DGRAM => Kind::Datagrams(Datagrams::new(unix)),
                _ => return Err(Errno(libc::EPROTONOSUPPORT)),
            };
            Ok(state.install(self.id, kind, nonblocking))
        };
        self.call(current, Call::Socket, kind as u64, make, |fd| *fd as u64)
    }

    fn socket_pair(&self, current: Current<'_>, domain: c_int, kind: c_int, _: c_int) -> Result<[RawFd; 2]> {
        let make = |state: &mut State| {
            let datagrams = match kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) {
                _ if domain != libc::AF_UNIX => return Err(Errno(libc::EOPNOTSUPP)),
                libc::SOCK_STREAM => false,
                libc::SOCK_DGRAM => true,
                _ => return Err(Errno(libc::EPROTONOSUPPORT)),
            };
            Ok(state.pair(self.id, datagrams, (kind & libc::SOCK_NONBLOCK) != 0))
        };
        self.call(current, Call::Socket, kind as u64, make, |[fd, _]| *fd as u64)
    }

    fn bind(&self, current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()> {
        let bind = |state: &mut State| state.bind(self.id, fd, Address::decode(address)?);
        self.call(current, Call::Bind, fd as u64, bind, |()| 0)
    }

    fn listen(&self, current: Current<'_>, fd: RawFd, backlog: c_int) -> Result<()> {
        let listen = |state: &mut State| state.start_listening(self.id, fd, backlog);
        self.call(current, Call::Listen, fd as u64, listen, |()| 0)
    }

    fn shutdown(&self, current: Current<'_>, fd: RawFd, how: c_int) -> Result<()> {
        let shut = |state: &mut State| {
            if let Kind::Listener { listener, .. } = &mut state.object(self.id, fd)?.kind {
                // Linux ends an `accept` that waits; std's listeners are never shut down otherwise.
                for waiter in listener.waiters.drain(..) {
                    waiter.wake(Wake::Ready);
                }
                return Ok(());
            }
            let (connection, side) = Self::connection(state, self.id, fd)?;
            let Some(end) = state.end(connection, side) else { return Err(Errno::BADF) };
            if !end.open {
                return Err(Errno(libc::ENOTCONN));
            }
            if how != libc::SHUT_WR {
                end.deaf = true;
                end.wake();
            }
            if how != libc::SHUT_RD {
                state.finish_sending(connection, side);
            }
            Ok(())
        };
        self.call(current, Call::Shutdown, how as u64, shut, |()| 0)
    }

    fn own_address(&self, current: Current<'_>, fd: RawFd, mut address: AddressMut) -> Result<()> {
        let look = |state: &mut State| match &state.object(self.id, fd)?.kind {
            Kind::Socket { unix, bound } => Ok(bound.clone().unwrap_or(Address::unbound(*unix))),
            Kind::Listener { address, .. } => Ok(address.clone()),
            Kind::Datagrams(socket) => Ok(socket.address.clone()),
            Kind::Connection { id, side } => {
                let (id, side) = (*id, *side);
                state.end(id, side).map(|end| end.address.clone()).ok_or(Errno::BADF)
            }
            _ => Err(Errno::NOTSOCK),
        };
        let own = self.call(current, Call::Peer, fd as u64, look, |_| 0)?;
        address.set(&own.encode());
        Ok(())
    }

    fn peer_address(&self, current: Current<'_>, fd: RawFd, mut address: AddressMut) -> Result<()> {
        let look = |state: &mut State| {
            if let Kind::Datagrams(socket) = &state.object(self.id, fd)?.kind {
                let peer = socket.peer.as_ref().ok_or(Errno(libc::ENOTCONN))?;
                return Ok(peer.address.clone());
            }
            let (connection, side) = Self::connection(state, self.id, fd)?;
            let is_open = state.end(connection, side).is_some_and(|end| end.open);
            if !is_open {
                return Err(Errno(libc::ENOTCONN));
            }
            state.end(connection, 1 - side).map(|end| end.address.clone()).ok_or(Errno(libc::ENOTCONN))
        };
        let peer = self.call(current, Call::Peer, fd as u64, look, |_| 0)?;
        address.set(&peer.encode());
        Ok(())
    }

    fn get_option(
        &self,
        current: Current<'_>,
        fd: RawFd,
        level: c_int,
        option: c_int,
        value: BufferMut,
    ) -> Result<usize> {
        let look = |state: &mut State| {
            let object = state.object(self.id, fd)?;
            let timeout = match (level, option) {
                (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => Some(object.receive_timeout),
                (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => Some(object.send_timeout),
                _ => None,
            };
            if let Some(timeout) = timeout {
                let timeout = timeout.unwrap_or_default();
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&(timeout.as_secs() as i64).to_ne_bytes());
                bytes[8..].copy_from_slice(&i64::from(timeout.subsec_micros()).to_ne_bytes());
                return Ok(store(value, &bytes));
            }
            let number = match (level, option, &object.kind) {
                (libc::SOL_SOCKET, libc::SO_ERROR, Kind::Connection { id, side }) => {
                    let (id, side) = (*id, *side);
                    state.end(id, side).and_then(|end| end.error.take()).unwrap_or(0)
                }
                (libc::SOL_SOCKET, libc::SO_TYPE, Kind::Datagrams(_)) => libc::SOCK_DGRAM,
                (libc::SOL_SOCKET, libc::SO_TYPE, _) => libc::SOCK_STREAM,
                (libc::SOL_SOCKET, libc::SO_ACCEPTCONN, kind) => {
                    c_int::from(matches!(kind, Kind::Listener { .. }))
                }
                _ => object.options.get(&(level, option)).copied().unwrap_or(0),
            };
            Ok(store(value, &number.to_ne_bytes()))
        };
        self.call(current, Call::Option, option as u64, look, |size| *size as u64)
    }

    fn set_option(
        &self,
        current: Current<'_>,
        fd: RawFd,
        level: c_int,
        option: c_int,
        value: &[u8],
    ) -> Result<()> {
        let set = |state: &mut State| {
            let object = state.object(self.id, fd)?;
            match (level, option) {
                (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => object.receive_timeout = decode_timeval(value)?,
                (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => object.send_timeout = decode_timeval(value)?,
                (libc::SOL_SOCKET, libc::SO_LINGER) => {
                    // A struct of two ints: whether, and for how long.
                    let is_on = value.get(..4).is_some_and(|bytes| bytes != [0; 4]);
                    let is_zero = value.get(4..8).is_some_and(|bytes| bytes == [0; 4]);
                    object.options.insert((level, option), c_int::from(!(is_on && is_zero)));
                }
                _ => {
                    let number =
                        value.get(..4).and_then(|bytes| bytes.try_into().ok()).map(c_int::from_ne_bytes);
                    object.options.insert((level, option), number.unwrap_or(0));
                }
            }
            Ok(())
        };
        self.call(current, Call::Option, option as u64, set, |()| 0)
    }

    fn io_control(&self, current: Current<'_>, fd: RawFd, request: u64, argument: &mut c_int) -> Result<()> {
        let control = |state: &mut State| {
            if request == libc::FIONBIO {
                state.object(self.id, fd)?.nonblocking = *argument != 0;
                return Ok(());
            }
            let (connection, side) = Self::connection(state, self.id, fd)?;
            *argument = state.end(connection, side).map_or(0, |end| end.unread.len() as c_int);
            Ok(())
        };
        self.call(current, Call::Control, request, control, |()| 0)
    }

    fn open(&self, current: Current<'_>, path: &CStr, flags: c_int, _: u32) -> Result<RawFd> {
        let path = path.to_bytes();
        let open = |state: &mut State| {
            let now = state.now;
            let disk = &mut state.hosts[self.host].disk;
            let access = flags & libc::O_ACCMODE;
            let (readable, writable) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
            let inode = match disk.find(path) {
                Ok(_) if (flags & libc::O_CREAT) != 0 && (flags & libc::O_EXCL) != 0 => {
                    return Err(Errno(libc::EEXIST));
                }
                Ok(inode) => inode,
                Err(Errno(libc::ENOENT)) if (flags & libc::O_CREAT) != 0 => disk.create_file(path, now)?,
                Err(errno) => return Err(errno),
            };
            if disk.is_directory(inode) {
                if writable {
                    return Err(Errno(libc::EISDIR));
                }
                return Ok(state.install(self.id, Kind::Directory { inode }, false));
            }
            if (flags & libc::O_DIRECTORY) != 0 {
                return Err(Errno(libc::ENOTDIR));
            }
            if (flags & libc::O_TRUNC) != 0 && writable && disk.length(inode) > 0 {
                disk.set_length(inode, 0, now)?;
            }
            let append = (flags & libc::O_APPEND) != 0;
            let durable = (flags & libc::O_DSYNC) != 0;
            Ok(state.install(
                self.id,
                Kind::File { inode, offset: 0, append, readable, writable, durable },
                false,
            ))
        };
        self.call(current, Call::Open, digest(path), open, |fd| *fd as u64)
    }

    fn status(&self, current: Current<'_>, file: FileName<'_>) -> Result<FileStatus> {
        let about = match file {
            FileName::Path(path) => digest(path.to_bytes()),
            FileName::Descriptor(fd) => fd as u64,
        };
        let look = |state: &mut State| {
            let inode = match file {
                FileName::Path(path) => state.hosts[self.host].disk.find(path.to_bytes())?,
                FileName::Descriptor(fd) => match state.object(self.id, fd)?.kind {
                    Kind::File { inode, .. } | Kind::Directory { inode } => inode,
                    _ => {
                        return Ok(FileStatus {
                            inode: 0,
                            mode: libc::S_IFSOCK | 0o777,
                            size: 0,
                            modified: Duration::ZERO,
                        });
                    }
                },
            };
            let wall = state.wall_clock(self.host);
            let now = state.now;
            let disk = &state.hosts[self.host].disk;
            let mode = if disk.is_directory(inode) { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
            let modified = wall.saturating_sub(Duration::from_nanos(now - disk.modified(inode)));
            Ok(FileStatus { inode: inode as u64 + 1, mode, size: disk.length(inode) as u64, modified })
        };
        self.call(current, Call::Status, about, look, |status| status.size)
    }

    fn read_at(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffers: &mut [BufferMut],
        offset: u64,
    ) -> Result<usize> {
        let read = |state: &mut State| self.read_file(state, fd, buffers, Some(offset));
        self.call(current, Call::ReadAt, offset, read, |size| *size as u64)
    }

    fn write_at(&self, current: Current<'_>, fd: RawFd, buffers: &[Buffer], offset: u64) -> Result<usize> {
        let write = |state: &mut State| self.write_file(state, fd, buffers, Some(offset));
        self.call(current, Call::WriteAt, offset ^ content_of(buffers), write, |size| *size as u64)
    }

    fn seek(&self, current: Current<'_>, fd: RawFd, by: i64, whence: c_int) -> Result<u64> {
        let seek = |state: &mut State| {
            let (inode, ..) = Self::file(state, self.id, fd)?;
            let length = state.hosts[self.host].disk.length(inode) as i64;
            let Kind::File { offset, .. } = &mut state.object(self.id, fd)?.kind else {
                return Err(Errno::BADF);
            };
            let from = match whence {
                libc::SEEK_SET => 0,
                libc::SEEK_CUR => *offset as i64,
                libc::SEEK_END => length,
                _ => return Err(Errno::INVAL),
            };
            *offset = from.checked_add(by).and_then(|to| u64::try_from(to).ok()).ok_or(Errno::INVAL)?;
            Ok(*offset)
        };
        self.call(current, Call::Seek, fd as u64, seek, |offset| *offset)
    }

    fn set_length(&self, current: Current<'_>, fd: RawFd, length: u64) -> Result<()> {
        let set = |state: &mut State| {
            let (inode, _, writable) = Self::file(state, self.id, fd)?;
            if !writable {
                return Err(Errno::INVAL);
            }
            let now = state.now;
            state.hosts[self.host].disk.set_length(inode, length as usize, now)
        };
        self.call(current, Call::SetLength, length, set, |()| 0)
    }

    fn lock_file(&self, current: Current<'_>, fd: RawFd, operation: c_int) -> Result<()> {
        self.enter(current);
        let result = self.wait(current, WaitKind::Lock, fd, None, Errno::AGAIN, |state| {
            state.lock_file(self.id, fd, operation)
        });
        self.record(Call::Lock, operation as u64, result, |()| 0)
    }

    fn rename(&self, current: Current<'_>, from: &CStr, to: &CStr) -> Result<()> {
        let (from, to) = (from.to_bytes(), to.to_bytes());
        let rename = |state: &mut State| self.host_of(state).disk.rename(from, to);
        self.call(current, Call::Rename, digest(from) ^ digest(to).rotate_left(1), rename, |()| 0)
    }

    fn remove_file(&self, current: Current<'_>, path: &CStr) -> Result<()> {
        let path = path.to_bytes();
        let remove = |state: &mut State| self.host_of(state).disk.remove(path, false);
        self.call(current, Call::Remove, digest(path), remove, |()| 0)
    }

    fn remove_directory(&self, current: Current<'_>, path: &CStr) -> Result<()> {
        let path = path.to_bytes();
        let remove = |state: &mut State| self.host_of(state).disk.remove(path, true);
        self.call(current, Call::Remove, digest(path), remove, |()| 0)
    }

    fn create_directory(&self, current: Current<'_>, path: &CStr, _: u32) -> Result<()> {
        let path = path.to_bytes();
        let create = |state: &mut State| self.host_of(state).disk.create_directory(path).map(drop);
        self.call(current, Call::MakeDirectory, digest(path), create, |()| 0)
    }

    fn entries(&self, current: Current<'_>, fd: RawFd) -> Result<Vec<DirectoryEntry>> {
        let list = |state: &mut State| {
            let Kind::Directory { inode } = state.object(self.id, fd)?.kind else {
                return Err(Errno(libc::ENOTDIR));
            };
            let disk = &state.hosts[self.host].disk;
            let entries = disk.names(inode)?.filter_map(|(name, inode)| {
                // A name came in as a C string, so it has no NUL.
                let name = CString::new(name).ok()?;
                Some(DirectoryEntry { name, inode: inode as u64 + 1, is_directory: disk.is_directory(inode) })
            });
            Ok(entries.collect::<Vec<_>>())
        };
        self.call(current, Call::Entries, fd as u64, list, |entries| entries.len() as u64)
    }

    fn log(&self, _: Current<'_>, line: &str, is_panic: bool) {
        let mut state = self.kernel.lock();
        // What an abandoned program says in its last moment is not heard.
        if state.processes[self.id].standing == Standing::Ended {
            return;
        }
        state.note(Some(self.host), line.to_owned());
        if is_panic {
            let host = state.hosts[self.host].name.clone();
            state.failures.push(format!("{host}: {line}"));
        }
    }

    fn refuse(&self, current: Current<'_>, call: &'static str) -> Errno {
        self.gate(current);
        let mut state = self.kernel.lock();
        state.record_call(self.id, Call::Refused, digest(call.as_bytes()), Ok(0));
        let host = state.hosts[self.host].name.clone();
        state.failures.push(format!("a program on {host} made a call that this world does not have: {call}"));
        Errno(libc::ENOSYS)
    }
}
