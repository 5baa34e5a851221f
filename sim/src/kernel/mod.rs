//! The state of a simulated world: time, machines, their programs, descriptors, disks and connections.
//!
//! One lock around everything, held for one call at a time and never across a suspension; on the one thread of a simulation it is always
//! free. Nothing in here waits: what a call has to wait for, it says (`Stop::Wait`), and `os.rs` waits.

pub(crate) mod address;
pub(crate) mod datagrams;
pub(crate) mod disk;
pub(crate) mod net;

use crate::random::Random;
use crate::trace::{Call, Event, Trace};
use address::{Address, Port};
use datagrams::Datagrams;
use disk::{Disk, Inode};
use net::{Connection, ConnectionId, Link, Listener, Segment};
use slab::Slab;
use squall_fiber::lock::{Guard, Lock};
use squall_fiber::{Wake, Waker};
use squall_hook::{Errno, OsExtension};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Far above any descriptor of the real system, so that the two are never mixed up.
pub(crate) const FIRST_FD: RawFd = 1 << 30;
/// What the monotonic clocks show when a simulation begins, about; no program should see a clock near zero.
pub(crate) const UPTIME: Duration = Duration::from_secs(100_000);
/// What the wall clocks show then: 2026-01-01.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// What a call takes, in nanoseconds: without it a program that looks at the clock until it moves would never end.
const CALL_COST: u64 = 200;

pub(crate) type HostId = usize;
pub(crate) type ProcessId = usize;
pub(crate) type ObjectId = usize;

/// Why a call has no result yet, or will have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Fail(Errno),
    /// Nothing to be had before something happens here.
    Wait(Queue),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Stop::Fail(errno)
    }
}

pub(crate) type Attempt<T> = Result<T, Stop>;

/// Where fibers wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    End {
        connection: ConnectionId,
        side: usize,
    },
    Listener(ObjectId),
    Datagrams(ObjectId),
    /// The lock of a file.
    File(HostId, Inode),
    /// A program that is held up to go on.
    Process(ProcessId),
}

/// What an open descriptor refers to; duplicates share it.
#[derive(Debug)]
pub(crate) struct Object {
    references: u32,
    pub(crate) nonblocking: bool,
    pub(crate) receive_timeout: Option<Duration>,
    pub(crate) send_timeout: Option<Duration>,
    /// Options that have no effect here, as they were set.
    pub(crate) options: BTreeMap<(i32, i32), i32>,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// A socket for a stream that is neither listening nor connected.
    Socket {
        unix: bool,
        bound: Option<Address>,
    },
    Listener {
        address: Address,
        listener: Listener,
    },
    Datagrams(Datagrams),
    Connection {
        id: ConnectionId,
        side: usize,
    },
    File {
        inode: Inode,
        offset: u64,
        append: bool,
        readable: bool,
        writable: bool,
        durable: bool,
    },
    Directory {
        inode: Inode,
    },
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) up: bool,
    /// Counts its lives.
    pub(crate) boot: u32,
    pub(crate) disk: Disk,
    /// How much the wall clock is ahead, in nanoseconds.
    pub(crate) clock_offset: i64,
    /// How much faster than true time both clocks run, in millionths.
    pub(crate) clock_drift_ppm: i64,
    next_port: u16,
    file_locks: BTreeMap<Inode, FileLock>,
}

/// Who has a file locked (`flock`), and who waits.
#[derive(Debug, Default)]
struct FileLock {
    holders: Vec<ObjectId>,
    exclusive: bool,
    waiters: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Running,
    /// Its calls do not return before it is told to go on.
    Paused,
    /// It has ended, or was killed: its calls never return.
    Ended,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its main function returned.
    Returned,
    /// Its main function panicked, with this message.
    Panicked(String),
    /// It was killed, or its machine lost its power.
    Killed,
}

pub(crate) struct Process {
    pub(crate) host: HostId,
    pub(crate) standing: Standing,
    /// How it ended.
    pub(crate) exit: Option<Exit>,
    pub(crate) extension: Option<&'static OsExtension>,
    fds: BTreeMap<RawFd, ObjectId>,
    waiters: Vec<Waker>,
    /// It is killed when it has made so many more calls.
    pub(crate) calls_left: Option<u64>,
    random: Random,
}

/// Something that is due at some time.
pub(crate) enum Happening {
    Arrival { connection: ConnectionId, to: usize, segment: Segment },
    Resumption { connection: ConnectionId, to: usize },
    Datagram { from: SocketAddrV4, to: HostId, port: Port, bytes: Vec<u8> },
}

struct Scheduled {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A stream per purpose.
pub(crate) struct Streams {
    schedule: Random,
    network: Random,
    pub(crate) disk: Random,
}

/// How a world behaves when nobody interferes.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// What a segment typically takes from one host to another.
    pub latency: Duration,
    /// What a sync of a file typically takes.
    pub sync_latency: Duration,
    /// The probability that a fiber that makes a call lets others run first.
    pub preemption: f64,
}

impl Default for Conditions {
    /// A local network and a good disk.
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(200),
            sync_latency: Duration::from_micros(500),
            preemption: 0.02,
        }
    }
}

pub(crate) struct State {
    pub(crate) now: u64,
    happenings: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    pub(crate) seed: u64,
    pub(crate) conditions: Conditions,
    pub(crate) random: Streams,
    pub(crate) trace: Trace,
    pub(crate) hosts: Vec<Host>,
    /// By source and target; square.
    pub(crate) links: Vec<Link>,
    pub(crate) processes: Vec<Process>,
    pub(crate) objects: Slab<Object>,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    next_connection: ConnectionId,
    /// The sockets that can be reached.
    listeners: BTreeMap<(HostId, Port), ObjectId>,
    next_pair: u64,
    /// What went wrong with the simulation itself, or in its programs.
    pub(crate) failures: Vec<String>,
    /// How often each fault was made.
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

/// A world, shared by its programs' operating systems, the driver, and the scenario.
pub(crate) struct Kernel {
    state: Lock<State>,
    /// What clocks without drift show at the beginning.
    origin: Instant,
}

impl Kernel {
    pub(crate) fn new(seed: u64, conditions: Conditions, detailed: bool) -> Self {
        let stream = |purpose| Random::new(seed, purpose);
        let random =
            Streams { schedule: stream("schedule"), network: stream("network"), disk: stream("disk") };
        let state = State {
            now: 0,
            happenings: BinaryHeap::new(),
            order: 0,
            seed,
            conditions,
            random,
            trace: Trace::new(detailed),
            hosts: Vec::new(),
            links: Vec::new(),
            processes: Vec::new(),
            objects: Slab::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            listeners: BTreeMap::new(),
            next_pair: 0,
            failures: Vec::new(),
            faults: BTreeMap::new(),
        };
        Self { state: Lock::new(state), origin: squall_hook_world::instant_at(UPTIME) }
    }

    pub(crate) fn lock(&self) -> Guard<'_, State> {
        self.state.lock()
    }

    /// True time as an `Instant`: what the scheduler's timers go by.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }

    /// When true time will be what a host's monotonic clock shows as `deadline`.
    pub(crate) fn true_time(&self, drift_ppm: i64, deadline: Instant) -> Instant {
        if drift_ppm == 0 {
            return deadline;
        }
        let shown = deadline.saturating_duration_since(self.origin).as_nanos() as i128;
        let nanos = shown * 1_000_000 / i128::from(1_000_000 + drift_ppm);
        // Rounded up: a timer that fires before its time would have its fiber look at the clock and wait again.
        self.instant(nanos as u64 + 1)
    }
}

impl State {
    // Time.

    pub(crate) fn schedule(&mut self, at: u64, what: Happening) {
        self.order += 1;
        self.happenings.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    pub(crate) fn next_happening(&self) -> Option<u64> {
        self.happenings.peek().map(|Reverse(next)| next.at)
    }

    /// Lets everything happen that is due.
    pub(crate) fn run_happenings(&mut self) {
        while self.next_happening().is_some_and(|at| at <= self.now) {
            let Some(Reverse(Scheduled { what, .. })) = self.happenings.pop() else { return };
            match what {
                Happening::Arrival { connection, to, segment } => self.arrive(connection, to, segment),
                Happening::Resumption { connection, to } => self.resume(connection, to),
                Happening::Datagram { from, to, port, bytes } => self.arrive_datagram(from, to, port, bytes),
            }
        }
    }

    pub(crate) fn advance(&mut self, to: u64) {
        let nanos = to.saturating_sub(self.now);
        self.now += nanos;
        self.record_world(Event::Sleep { nanos });
    }

    /// Which of the fibers that are ready runs next.
    pub(crate) fn pick(&mut self, runnable: usize) -> usize {
        let index = self.random.schedule.index(runnable);
        self.record_world(Event::Pick { runnable, index });
        index
    }

    /// A call begins. True if another fiber should run first.
    pub(crate) fn begin_call(&mut self) -> bool {
        self.now += CALL_COST;
        let preemption = self.conditions.preemption;
        preemption > 0.0 && self.random.schedule.chance(preemption)
    }

    /// The clock is read.
    pub(crate) fn begin_reading(&mut self) {
        self.now += CALL_COST / 4;
    }

    pub(crate) fn draw_disk_fault(&mut self, probability: f64) -> bool {
        self.random.disk.chance(probability)
    }

    /// Which way of losing what was not synced comes next, of four.
    pub(crate) fn draw_loss(&mut self) -> usize {
        self.random.disk.index(4)
    }

    pub(crate) fn rot(&mut self, host: HostId, path: &[u8]) -> bool {
        let State { hosts, random, .. } = self;
        let disk = &mut hosts[host].disk;
        disk.find(path).is_ok_and(|inode| disk.rot(inode, &mut random.disk) == Ok(true))
    }

    /// How long a sync on a host takes, and whether it fails.
    pub(crate) fn draw_sync(&mut self, host: HostId) -> (Duration, bool) {
        let faults = self.hosts[host].disk.faults;
        let time = self.random.disk.skewed(self.conditions.sync_latency).mul_f64(faults.slowness);
        (time, faults.sync_error > 0.0 && self.random.disk.chance(faults.sync_error))
    }

    pub(crate) fn monotonic(&self, host: HostId) -> Duration {
        let drift = i128::from(self.hosts[host].clock_drift_ppm);
        let shown = i128::from(self.now) * (1_000_000 + drift) / 1_000_000;
        UPTIME + Duration::from_nanos(shown as u64)
    }

    pub(crate) fn wall_clock(&self, host: HostId) -> Duration {
        let true_wall = EPOCH + (self.monotonic(host) - UPTIME);
        let offset = self.hosts[host].clock_offset;
        let size = Duration::from_nanos(offset.unsigned_abs());
        if offset < 0 { true_wall.saturating_sub(size) } else { true_wall + size }
    }

    // The record.

    pub(crate) fn record_world(&mut self, event: Event) {
        self.trace.record(self.now, "", event);
    }

    pub(crate) fn record_call(
        &mut self,
        process: ProcessId,
        call: Call,
        about: u64,
        result: Result<u64, Errno>,
    ) {
        let event = Event::Call { process, call, about, result: result.map_err(|errno| errno.0) };
        let host = self.processes[process].host;
        self.trace.record(self.now, &self.hosts[host].name, event);
    }

    pub(crate) fn note(&mut self, host: Option<HostId>, text: String) {
        let host = host.map_or("", |host| &self.hosts[host].name);
        self.trace.note(self.now, host, text);
    }

    pub(crate) fn count_fault(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    // Hosts.

    pub(crate) fn add_host(&mut self, name: &str) -> HostId {
        let id = self.hosts.len();
        let [high, low] = (id as u16 + 1).to_be_bytes();
        self.hosts.push(Host {
            name: name.to_owned(),
            ip: Ipv4Addr::new(10, 0, high, low),
            up: true,
            boot: 1,
            disk: Disk::new(),
            clock_offset: 0,
            clock_drift_ppm: 0,
            next_port: 32_768,
            file_locks: BTreeMap::new(),
        });
        let old = core::mem::take(&mut self.links);
        let latency = self.conditions.latency;
        for from in 0..=id {
            for to in 0..=id {
                let known = (from < id && to < id).then(|| old[from * id + to]);
                self.links.push(known.unwrap_or(Link { cut: false, latency, loss: 0.0 }));
            }
        }
        id
    }

    pub(crate) fn link_mut(&mut self, from: HostId, to: HostId) -> &mut Link {
        let hosts = self.hosts.len();
        &mut self.links[from * hosts + to]
    }

    // Processes.

    pub(crate) fn add_process(&mut self, host: HostId) -> ProcessId {
        let id = self.processes.len();
        self.processes.push(Process {
            host,
            standing: Standing::Running,
            exit: None,
            extension: None,
            fds: BTreeMap::new(),
            waiters: Vec::new(),
            calls_left: None,
            random: Random::new(self.seed, &format!("process {id}")),
        });
        id
    }

    pub(crate) fn random_of(&mut self, process: ProcessId) -> &mut Random {
        &mut self.processes[process].random
    }

    pub(crate) fn set_standing(&mut self, process: ProcessId, standing: Standing) {
        let process = &mut self.processes[process];
        process.standing = standing;
        for waiter in process.waiters.drain(..) {
            waiter.wake(Wake::Ready);
        }
    }

    /// A process has ended, by itself or not. Its machine closes what it had open.
    pub(crate) fn end_process(&mut self, process: ProcessId, exit: Exit) {
        if self.processes[process].exit.is_some() {
            return;
        }
        self.processes[process].exit = Some(exit);
        self.set_standing(process, Standing::Ended);
        for (_, object) in core::mem::take(&mut self.processes[process].fds) {
            self.release(object);
        }
    }

    /// A machine stops in the middle of everything.
    pub(crate) fn power_off(&mut self, host: HostId, loss: disk::Loss) {
        self.hosts[host].up = false;
        // First the connections: nobody is told of their end.
        self.forget_connections_of(host);
        for process in 0..self.processes.len() {
            if self.processes[process].host == host {
                self.end_process(process, Exit::Killed);
            }
        }
        self.hosts[host].file_locks.clear();
        let State { hosts, random, .. } = self;
        hosts[host].disk.lose_power(loss, &mut random.disk);
    }

    pub(crate) fn power_on(&mut self, host: HostId) {
        self.hosts[host].up = true;
        self.hosts[host].boot += 1;
        self.resume_traffic(|_, to| to == host);
    }

    // Descriptors.

    pub(crate) fn install(&mut self, process: ProcessId, kind: Kind, nonblocking: bool) -> RawFd {
        let object = self.objects.insert(Object {
            references: 0,
            nonblocking,
            receive_timeout: None,
            send_timeout: None,
            options: BTreeMap::new(),
            kind,
        });
        self.assign(process, object, FIRST_FD)
    }

    /// Gives an object the lowest free number from `least`.
    pub(crate) fn assign(&mut self, process: ProcessId, object: ObjectId, least: RawFd) -> RawFd {
        let fds = &mut self.processes[process].fds;
        let mut fd = least.max(FIRST_FD);
        for taken in fds.range(fd..).map(|(taken, _)| *taken) {
            if taken != fd {
                break;
            }
            fd += 1;
        }
        fds.insert(fd, object);
        self.objects[object].references += 1;
        fd
    }

    pub(crate) fn object_id(&self, process: ProcessId, fd: RawFd) -> Result<ObjectId, Errno> {
        self.processes[process].fds.get(&fd).copied().ok_or(Errno::BADF)
    }

    pub(crate) fn object(&mut self, process: ProcessId, fd: RawFd) -> Result<&mut Object, Errno> {
        let id = self.object_id(process, fd)?;
        Ok(&mut self.objects[id])
    }

    pub(crate) fn close(&mut self, process: ProcessId, fd: RawFd) -> Result<(), Errno> {
        let object = self.processes[process].fds.remove(&fd).ok_or(Errno::BADF)?;
        self.release(object);
        Ok(())
    }

    fn release(&mut self, id: ObjectId) {
        self.objects[id].references -= 1;
        if self.objects[id].references > 0 {
            return;
        }
        let Object { kind, options, .. } = self.objects.remove(id);
        match kind {
            Kind::Socket { .. } | Kind::Directory { .. } => {}
            Kind::Datagrams(socket) => {
                self.listeners.retain(|_, object| *object != id);
                for waiter in socket.waiters {
                    waiter.wake(Wake::Ready);
                }
            }
            Kind::Listener { mut listener, .. } => {
                self.listeners.retain(|_, object| *object != id);
                for waiter in listener.waiters.drain(..) {
                    waiter.wake(Wake::Ready);
                }
                for connection in listener.backlog {
                    self.close_end(connection, 1, true);
                }
            }
            Kind::Connection { id, side } => {
                let lingers_not = options.get(&(libc::SOL_SOCKET, libc::SO_LINGER)) == Some(&0);
                self.close_end(id, side, lingers_not);
            }
            Kind::File { inode, .. } => self.unlock_everywhere(id, inode),
        }
    }

    // Waiting.

    pub(crate) fn enqueue(&mut self, queue: Queue, waker: Waker) {
        if let Some(waiters) = self.waiters(queue) {
            waiters.push(waker);
        } else {
            // What it waits for is gone: it looks again, and learns that.
            waker.wake(Wake::Ready);
        }
    }

    pub(crate) fn dequeue(&mut self, queue: Queue, waker: &Waker) {
        if let Some(waiters) = self.waiters(queue) {
            waiters.retain(|waiter| !waiter.is_same(waker));
        }
    }

    fn waiters(&mut self, queue: Queue) -> Option<&mut Vec<Waker>> {
        match queue {
            Queue::End { connection, side } => Some(&mut self.end(connection, side)?.waiters),
            Queue::Listener(object) => Some(&mut self.listener(object)?.waiters),
            Queue::Datagrams(object) => Some(&mut self.datagrams(object)?.waiters),
            Queue::File(host, inode) => Some(&mut self.hosts[host].file_locks.get_mut(&inode)?.waiters),
            Queue::Process(process) => Some(&mut self.processes[process].waiters),
        }
    }

    // Sockets.

    /// Makes a socket listen, or fails if another does at its address.
    pub(crate) fn start_listening(
        &mut self,
        process: ProcessId,
        fd: RawFd,
        backlog: i32,
    ) -> Result<(), Errno> {
        let host = self.processes[process].host;
        let id = self.object_id(process, fd)?;
        let address = match &self.objects[id].kind {
            Kind::Socket { unix: true, bound: None } => return Err(Errno::INVAL),
            Kind::Socket { unix, bound } => bound.clone().unwrap_or(Address::unbound(*unix)),
            Kind::Listener { .. } => return Ok(()),
            Kind::Connection { .. } => return Err(Errno::INVAL),
            Kind::Datagrams(_) => return Err(Errno(libc::EOPNOTSUPP)),
            _ => return Err(Errno::NOTSOCK),
        };
        let (address, port) = match address {
            Address::Inet(mut inet) => {
                if inet.port() == 0 {
                    inet.set_port(self.free_port(host, Port::Tcp));
                }
                (Address::Inet(inet), Port::Tcp(inet.port()))
            }
            Address::Unix(path) => {
                let inode = self.hosts[host].disk.find(&path)?;
                (Address::Unix(path), Port::Unix(inode))
            }
        };
        if self.listeners.contains_key(&(host, port)) {
            return Err(Errno(libc::EADDRINUSE));
        }
        self.listeners.insert((host, port), id);
        let listener = Listener {
            backlog: VecDeque::new(),
            limit: backlog.clamp(1, 4096) as usize,
            waiters: Vec::new(),
        };
        self.objects[id].kind = Kind::Listener { address, listener };
        Ok(())
    }

    /// Gives a socket an address.
    pub(crate) fn bind(&mut self, process: ProcessId, fd: RawFd, address: Address) -> Result<(), Errno> {
        let host = self.processes[process].host;
        let id = self.object_id(process, fd)?;
        let (unix, datagrams) = match &self.objects[id].kind {
            Kind::Socket { unix, bound: None } => (*unix, false),
            Kind::Datagrams(Datagrams { unix, port: None, .. }) => (*unix, true),
            Kind::File { .. } | Kind::Directory { .. } => return Err(Errno::NOTSOCK),
            _ => return Err(Errno::INVAL),
        };
        if unix != address.is_unix() {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        let mut file = None;
        match &address {
            Address::Inet(inet) => {
                let ip = inet.ip();
                if *ip != self.hosts[host].ip && !ip.is_unspecified() && !ip.is_loopback() {
                    return Err(Errno(libc::EADDRNOTAVAIL));
                }
                if !datagrams && self.listeners.contains_key(&(host, Port::Tcp(inet.port()))) {
                    return Err(Errno(libc::EADDRINUSE));
                }
            }
            Address::Unix(path) => {
                let now = self.now;
                file = Some(match self.hosts[host].disk.create_file(path, now) {
                    Err(Errno(libc::EEXIST)) => return Err(Errno(libc::EADDRINUSE)),
                    result => result?,
                });
            }
        }
        match &mut self.objects[id].kind {
            Kind::Datagrams(socket) => socket.address = address.clone(),
            Kind::Socket { bound, .. } => *bound = Some(address.clone()),
            _ => return Err(Errno::INVAL),
        }
        match (address, file) {
            (Address::Inet(inet), _) if datagrams => self.name_datagrams(host, id, inet.port())?,
            (_, Some(inode)) if datagrams => self.reach_datagrams(host, id, Port::Unix(inode)),
            _ => {}
        }
        Ok(())
    }

    fn reach_datagrams(&mut self, host: HostId, id: ObjectId, port: Port) {
        if let Some(socket) = self.datagrams(id) {
            socket.port = Some(port);
            self.listeners.insert((host, port), id);
        }
    }

    /// Two sockets without names that are connected to each other.
    pub(crate) fn pair(&mut self, process: ProcessId, datagrams: bool, nonblocking: bool) -> [RawFd; 2] {
        let host = self.processes[process].host;
        if !datagrams {
            let id = self.connect_within(host);
            return [0, 1].map(|side| self.install(process, Kind::Connection { id, side }, nonblocking));
        }
        let ports = [0, 1].map(|side| Port::Unnamed(self.next_pair + side));
        self.next_pair += 2;
        [0, 1].map(|side| {
            let address = Address::unbound(true);
            let peer = Some(datagrams::Destination { host, port: ports[1 - side], address });
            let socket = Datagrams { peer, ..Datagrams::new(true) };
            let fd = self.install(process, Kind::Datagrams(socket), nonblocking);
            if let Ok(id) = self.object_id(process, fd) {
                self.reach_datagrams(host, id, ports[side]);
            }
            fd
        })
    }

    // Locks of files.

    pub(crate) fn lock_file(&mut self, process: ProcessId, fd: RawFd, operation: i32) -> Attempt<()> {
        let host = self.processes[process].host;
        let id = self.object_id(process, fd)?;
        let Kind::File { inode, .. } = self.objects[id].kind else { return Err(Errno::BADF.into()) };
        let exclusive = match operation & !libc::LOCK_NB {
            libc::LOCK_UN => {
                self.unlock(host, inode, id);
                return Ok(());
            }
            libc::LOCK_EX => true,
            libc::LOCK_SH => false,
            _ => return Err(Errno::INVAL.into()),
        };
        let lock = self.hosts[host].file_locks.entry(inode).or_default();
        let others = lock.holders.iter().any(|holder| *holder != id);
        if others && (exclusive || lock.exclusive) {
            return Err(match operation & libc::LOCK_NB {
                0 => Stop::Wait(Queue::File(host, inode)),
                _ => Errno::AGAIN.into(),
            });
        }
        lock.exclusive = exclusive;
        if !lock.holders.contains(&id) {
            lock.holders.push(id);
        }
        Ok(())
    }

    fn unlock(&mut self, host: HostId, inode: Inode, object: ObjectId) {
        let Some(lock) = self.hosts[host].file_locks.get_mut(&inode) else { return };
        lock.holders.retain(|holder| *holder != object);
        for waiter in lock.waiters.drain(..) {
            waiter.wake(Wake::Ready);
        }
    }

    /// The object numbers are the world's, so no other host has a lock of this one.
    fn unlock_everywhere(&mut self, object: ObjectId, inode: Inode) {
        for host in 0..self.hosts.len() {
            self.unlock(host, inode, object);
        }
    }

    /// Drops everything that could keep fibers or programs alive, at the end.
    pub(crate) fn clear(&mut self) {
        self.happenings.clear();
        self.hosts.clear();
        self.processes.clear();
        self.objects.clear();
        self.connections.clear();
        self.listeners.clear();
    }
}
