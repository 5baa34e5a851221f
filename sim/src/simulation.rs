//! Running a simulation, and what a scenario may do to its world.

use crate::driver::SimDriver;
use crate::kernel::disk::{DiskFaults, Loss};
use crate::kernel::{Conditions, Exit, HostId, Kernel, ProcessId, Queue, Standing, State};
use crate::os::ProcessOs;
use crate::random::Random;
use crate::trace::Line;
use core::any::Any;
use core::panic::AssertUnwindSafe;
use squall_fiber::{Builder, Scheduler, SchedulerConfig, WaitKind, abandon, with_current};
use squall_hook::{OsExtension, in_world_or};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Once};
use std::time::Duration;

/// One run of a scenario in a world made from a seed.
///
/// ```
/// use squall_sim::Simulation;
/// use std::io::{Read, Write};
/// use std::net::{TcpListener, TcpStream};
/// use std::time::{Duration, Instant};
///
/// let outcome = Simulation::new(42).run(|world| {
///     let server = world.add_host("server");
///     server.start("echo", || {
///         let (mut stream, _) = TcpListener::bind("0.0.0.0:7").unwrap().accept().unwrap();
///         let mut word = [0; 5];
///         stream.read_exact(&mut word).unwrap();
///         std::thread::sleep(Duration::from_secs(3600));
///         stream.write_all(&word).unwrap();
///     });
///     std::thread::sleep(Duration::from_secs(1));
///     let started = Instant::now();
///     let mut stream = TcpStream::connect("server:7").unwrap();
///     stream.write_all(b"hello").unwrap();
///     let mut echo = String::new();
///     stream.read_to_string(&mut echo).unwrap();
///     (echo, started.elapsed().as_secs())
/// });
/// assert_eq!(outcome.expect(), ("hello".into(), 3600));
/// ```
#[derive(Debug, Clone)]
pub struct Simulation {
    seed: u64,
    conditions: Conditions,
    detailed: bool,
}

/// What came of a simulation.
#[derive(Debug)]
pub struct Outcome<R> {
    /// The seed.
    pub seed: u64,
    /// What the scenario returned, or the message of its panic.
    pub result: Result<R, String>,
    /// Panics in programs, and calls that a world does not have.
    pub failures: Vec<String>,
    /// The digest of everything that happened: the same for the same seed, in every run and on every machine.
    pub digest: u64,
    /// How many events are in it.
    pub events: u64,
    /// How much time passed in the world.
    pub simulated: Duration,
    /// What the scenario and the programs noted; every event, if the simulation was [`detailed`](Simulation::detailed).
    pub timeline: Vec<Line>,
    /// How often each kind of fault was made.
    pub faults: BTreeMap<&'static str, u64>,
}

impl<R> Outcome<R> {
    /// What the scenario returned.
    ///
    /// # Panics
    /// If it panicked, or anything else failed: with the seed, and the end of the timeline.
    pub fn expect(self) -> R {
        const SHOWN_LINES: usize = 60;
        match self.result {
            Ok(result) if self.failures.is_empty() => result,
            result => {
                let message = result.err().into_iter().chain(self.failures).collect::<Vec<_>>().join("\n");
                let skipped = self.timeline.len().saturating_sub(SHOWN_LINES);
                let lines: Vec<String> = self.timeline[skipped..].iter().map(Line::to_string).collect();
                panic!("seed {}: {message}\nthe end of the timeline:\n{}", self.seed, lines.join("\n"));
            }
        }
    }
}

impl Simulation {
    /// A world of this seed, with a local network and good disks.
    pub fn new(seed: u64) -> Self {
        Self { seed, conditions: Conditions::default(), detailed: false }
    }

    /// Sets what the network, the disks and the scheduling are like.
    pub fn conditions(mut self, conditions: Conditions) -> Self {
        self.conditions = conditions;
        self
    }

    /// Writes every event into the timeline: for one run that somebody will read.
    pub fn detailed(mut self) -> Self {
        self.detailed = true;
        self
    }

    /// Runs the scenario to its end on the calling thread. Its fiber is a program on a machine of its own, `outside`. When it returns,
    /// everything else in the world stops where it is.
    ///
    /// # Panics
    /// If every fiber waits for something that will never happen: that ends the process.
    ///
    /// # Blocking
    /// Until the scenario has returned. Its sleeps take no time.
    pub fn run<R, F>(self, scenario: F) -> Outcome<R>
    where
        F: FnOnce(&World) -> R + Send + 'static,
        R: Send + 'static,
    {
        let Simulation { seed, conditions, detailed } = self;
        watch_panics();
        let kernel = Arc::new(Kernel::new(seed, conditions, detailed));
        let driver_kernel = Arc::clone(&kernel);
        let scheduler = Scheduler::new(SchedulerConfig {
            name: "simulation".into(),
            threads: 1,
            use_caller: true,
            driver: Box::new(move |_| Ok(Box::new(SimDriver { kernel: Arc::clone(&driver_kernel) }))),
            extension: None,
        })
        .unwrap_or_else(|error| panic!("a scheduler without threads cannot be made: {error}"));
        let world = World { kernel: Arc::clone(&kernel) };
        let root = scheduler.spawn(Builder::new().name("simulation"), move || {
            let outside = world.add_host("outside");
            let (_, extension) = outside.prepare();
            let inner = world.clone();
            let fiber = Builder::new().name("scenario").extension(extension).spawn(move || scenario(&inner));
            let result = fiber.join();
            // Nothing may run any more: not even to close what it had open.
            let extensions: Vec<_> =
                world.kernel.lock().processes.iter().filter_map(|process| process.extension).collect();
            for extension in extensions {
                abandon(extension);
            }
            result
        });
        scheduler.stop();
        let result = root
            .join()
            .unwrap_or_else(|payload| resume_unwind(payload))
            .map_err(|payload| message(&*payload));
        let mut state = kernel.lock();
        let outcome = Outcome {
            seed,
            result,
            failures: core::mem::take(&mut state.failures),
            digest: state.trace.digest(),
            events: state.trace.events(),
            simulated: Duration::from_nanos(state.now),
            timeline: state.trace.take_lines(),
            faults: core::mem::take(&mut state.faults),
        };
        // The programs' operating systems stay, as their fibers do, but not what they know.
        state.clear();
        outcome
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}

/// Has panics of simulated programs noted in their world, instead of written to the terminal.
fn watch_panics() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            in_world_or(|current, world| world.log(current, &format!("{info}"), true), || usual(info));
        }));
    });
}

/// Has log lines of simulated programs noted in their world's timeline, up to `level`. Other lines of the process go nowhere. Without effect
/// if the process has a logger already.
pub fn log_to_timeline(level: log::LevelFilter) {
    struct Timeline;
    impl log::Log for Timeline {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            in_world_or(
                |current, world| {
                    let line = format!("{} {}: {}", record.level(), record.target(), record.args());
                    world.log(current, &line, false);
                },
                || {},
            );
        }
        fn flush(&self) {}
    }
    if log::set_logger(&Timeline).is_ok() {
        log::set_max_level(level);
    }
}

/// The world of a simulation: what its scenario may see and do.
#[derive(Clone)]
pub struct World {
    kernel: Arc<Kernel>,
}

impl core::fmt::Debug for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("World").field("seed", &self.seed()).field("now", &self.now()).finish()
    }
}

impl World {
    fn state<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.kernel.lock())
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.state(|state| state.seed)
    }

    /// True time since the beginning.
    pub fn now(&self) -> Duration {
        self.state(|state| Duration::from_nanos(state.now))
    }

    /// Randomness for the scenario's own decisions.
    pub fn random(&self, purpose: &str) -> Random {
        Random::new(self.seed(), &format!("scenario: {purpose}"))
    }

    /// Writes a line into the timeline.
    pub fn note(&self, text: impl Into<String>) {
        self.state(|state| state.note(None, text.into()));
    }

    /// Adds a machine, connected to all others. Programs find it by its name.
    pub fn add_host(&self, name: &str) -> Host {
        let id = self.state(|state| state.add_host(name));
        Host { world: self.clone(), id }
    }

    /// The machine of that name; the scenario itself runs on `outside`.
    ///
    /// # Panics
    /// If there is none.
    pub fn host(&self, name: &str) -> Host {
        let id = self.state(|state| state.hosts.iter().position(|host| host.name == name));
        Host { world: self.clone(), id: id.unwrap_or_else(|| panic!("there is no host {name}")) }
    }

    /// Counts a fault that the scenario made, for the summary.
    pub fn count_fault(&self, fault: &'static str) {
        self.state(|state| state.count_fault(fault));
    }

    /// Cuts the way from one host to another; not the way back.
    pub fn cut(&self, from: &Host, to: &Host) {
        self.state(|state| state.link_mut(from.id, to.id).cut = true);
    }

    /// Cuts both ways between each of `some` and each of `others`.
    pub fn separate(&self, some: &[&Host], others: &[&Host]) {
        for (one, other) in some.iter().flat_map(|one| others.iter().map(move |other| (one, other))) {
            self.cut(one, other);
            self.cut(other, one);
        }
    }

    /// Mends the way from one host to another.
    pub fn mend(&self, from: &Host, to: &Host) {
        self.state(|state| {
            state.link_mut(from.id, to.id).cut = false;
            state.resume_traffic(|source, target| (source, target) == (from.id, to.id));
        });
    }

    /// Mends all ways, and makes all links as good as they were in the beginning.
    pub fn mend_all(&self) {
        self.state(|state| {
            let latency = state.conditions.latency;
            for link in &mut state.links {
                (link.cut, link.loss, link.latency) = (false, 0.0, latency);
            }
            state.resume_traffic(|_, _| true);
        });
    }

    /// Sets the typical latency and the probability of loss from one host to another.
    pub fn set_link(&self, from: &Host, to: &Host, latency: Duration, loss: f64) {
        self.state(|state| {
            let link = state.link_mut(from.id, to.id);
            (link.latency, link.loss) = (latency, loss);
        });
    }
}

/// A machine: an address, a disk, a clock, and the programs that run there.
#[derive(Clone)]
pub struct Host {
    world: World,
    id: HostId,
}

impl core::fmt::Debug for Host {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Host").field("name", &self.name()).finish()
    }
}

impl Host {
    /// Its name.
    pub fn name(&self) -> String {
        self.world.state(|state| state.hosts[self.id].name.clone())
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.world.state(|state| state.hosts[self.id].ip)
    }

    /// Whether it has power.
    pub fn is_up(&self) -> bool {
        self.world.state(|state| state.hosts[self.id].up)
    }

    /// A new process with its operating system.
    fn prepare(&self) -> (ProcessId, &'static OsExtension) {
        let kernel = &self.world.kernel;
        let id = kernel.lock().add_process(self.id);
        let os: &'static ProcessOs =
            Box::leak(Box::new(ProcessOs { kernel: Arc::clone(kernel), id, host: self.id }));
        let extension: &'static OsExtension = Box::leak(Box::new(OsExtension(os)));
        kernel.lock().processes[id].extension = Some(extension);
        (id, extension)
    }

    /// Starts a program here. What it starts in turn, fibers of fibers included, belongs to it and ends with it.
    ///
    /// # Panics
    /// If the machine has no power.
    ///
    /// # Blocking
    /// Never.
    pub fn start(&self, name: &str, program: impl FnOnce() + Send + 'static) -> Process {
        assert!(self.is_up(), "{} has no power", self.name());
        let (id, extension) = self.prepare();
        self.world.state(|state| state.note(Some(self.id), format!("{name} starts")));
        let main = Builder::new()
            .name(name)
            .extension(extension)
            .spawn(move || catch_unwind(AssertUnwindSafe(program)).err().map(|payload| message(&*payload)));
        // The end of the main function is the end of the program, seen from outside of it.
        let (world, name, host) = (self.world.clone(), name.to_owned(), self.id);
        squall_fiber::spawn(move || {
            let exit = match main.join() {
                Ok(None) => Exit::Returned,
                Ok(Some(message)) => Exit::Panicked(message),
                Err(payload) => Exit::Panicked(message(&*payload)),
            };
            world.state(|state| {
                state.note(Some(host), format!("{name} ends: {exit:?}"));
                state.end_process(id, exit);
            });
            abandon(extension);
        });
        Process { world: self.world.clone(), id, extension }
    }

    /// Takes the power from the machine: its programs stop in the middle of everything, nobody is told, and of what was not synced to its
    /// disk an arbitrary part is lost.
    ///
    /// # Panics
    /// When called from a program on this machine.
    pub fn power_off(&self) {
        let extensions: Vec<_> = self.world.state(|state| {
            let loss = [Loss::All, Loss::Some, Loss::Some, Loss::None][state.draw_loss()];
            state.note(Some(self.id), format!("loses its power; of what was not synced, {loss:?} is lost"));
            state.count_fault("power loss");
            state.power_off(self.id, loss);
            let of_host = state.processes.iter().filter(|process| process.host == self.id);
            of_host.filter_map(|process| process.extension).collect()
        });
        for extension in extensions {
            abandon(extension);
        }
    }

    /// Gives the machine its power back. It has its disk, and runs nothing.
    pub fn power_on(&self) {
        self.world.state(|state| {
            state.note(Some(self.id), "has power again".into());
            state.power_on(self.id);
        });
    }

    /// Sets what goes wrong on its disk from now on.
    pub fn set_disk_faults(&self, faults: DiskFaults) {
        self.world.state(|state| {
            state.note(Some(self.id), format!("{faults:?}"));
            state.hosts[self.id].disk.faults = faults;
        });
    }

    /// Sets how far its wall clock is ahead of true time, in milliseconds, and by how many millionths both its clocks run too fast.
    pub fn set_clock(&self, ahead_ms: i64, drift_ppm: i64) {
        self.world.state(|state| {
            state.note(
                Some(self.id),
                format!("its clock is {ahead_ms} ms ahead and drifts by {drift_ppm} ppm"),
            );
            state.count_fault("clock set");
            let host = &mut state.hosts[self.id];
            host.clock_offset = ahead_ms.saturating_mul(1_000_000);
            host.clock_drift_ppm = drift_ppm;
        });
    }

    /// The paths of the files below a directory, in order.
    pub fn files(&self, directory: &str) -> Vec<String> {
        let files = self.world.state(|state| state.hosts[self.id].disk.files(directory.as_bytes()));
        files.into_iter().map(|path| String::from_utf8_lossy(&path).into_owned()).collect()
    }

    /// Flips a bit of a file, drawn from the seed. False if there is no such file, or nothing in it that is on the disk.
    pub fn rot(&self, path: &str) -> bool {
        self.world.state(|state| {
            let rotten = state.rot(self.id, path.as_bytes());
            if rotten {
                state.note(Some(self.id), format!("a bit of {path} has flipped"));
                state.count_fault("bit rot");
            }
            rotten
        })
    }
}

/// A program on a host.
#[derive(Clone)]
pub struct Process {
    world: World,
    id: ProcessId,
    extension: &'static OsExtension,
}

impl core::fmt::Debug for Process {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Process").field("id", &self.id).field("exit", &self.exit()).finish()
    }
}

impl Process {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.world.state(|state| state.processes[self.id].exit.clone())
    }

    /// Waits until it has ended.
    ///
    /// # Blocking
    /// Suspends the fiber.
    pub fn wait(&self) -> Exit {
        loop {
            if let Some(exit) = self.exit() {
                // Killed in the middle of one of its calls, it still has fibers.
                abandon(self.extension);
                return exit;
            }
            with_current(|current| {
                let Some(current) = current else { return };
                let wait = current.begin_wait(WaitKind::Join, self.id as u64);
                self.world.state(|state| state.enqueue(Queue::Process(self.id), wait.waker()));
                wait.block(None);
            });
        }
    }

    /// Kills it wherever it is (`kill -9`). Its machine closes its connections; its files keep what was written.
    pub fn kill(&self) {
        self.world.state(|state| {
            if state.processes[self.id].exit.is_none() {
                let host = state.processes[self.id].host;
                state.note(Some(host), "the program is killed".into());
                state.count_fault("kill");
                state.end_process(self.id, Exit::Killed);
            }
        });
        abandon(self.extension);
    }

    /// Kills it in the middle of the call that it makes after `calls` more.
    pub fn kill_after(&self, calls: u64) {
        self.world.state(|state| {
            state.count_fault("kill in a call");
            state.processes[self.id].calls_left = Some(calls);
        });
    }

    /// Holds it up: from now on none of its calls returns before [`Process::resume`]. What arrives for it is kept, and time passes.
    pub fn pause(&self) {
        self.change(Standing::Running, Standing::Paused, "the program is paused");
        self.world.count_fault("pause");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.change(Standing::Paused, Standing::Running, "the program goes on");
    }

    fn change(&self, from: Standing, to: Standing, note: &str) {
        self.world.state(|state| {
            if state.processes[self.id].standing == from {
                let host = state.processes[self.id].host;
                state.note(Some(host), note.into());
                state.set_standing(self.id, to);
            }
        });
    }
}
