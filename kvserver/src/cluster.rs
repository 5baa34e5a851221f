//! The supervisor: one process per node on this machine, started, watched, and stopped together.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a node exits with when starting it again would fail in the same way.
pub const EXIT_PERMANENT: i32 = 2;
/// What a node exits with that the cluster has no place for: the others go on without it.
pub const EXIT_EVICTED: i32 = 3;

/// The pause before a node that died is started again: at once if it had run for a while, later and later if it keeps dying.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A node that ran this long has earned a prompt restart.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long nodes may take to stop in order before they are killed.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// Why the supervisor gave up.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A node's process cannot be started.
    #[error("cannot start node {id}: {source}")]
    Start {
        /// The node.
        id: u64,
        /// What the system says.
        source: io::Error,
    },
    /// A node ended with an error that a restart does not mend; it has said which.
    #[error("node {id} cannot run ({status}); its message is above")]
    Permanent {
        /// The node.
        id: u64,
        /// How it ended.
        status: ExitStatus,
    },
    /// The system gives no thread.
    #[error("cannot watch node {id}: {source}")]
    Watch {
        /// The node.
        id: u64,
        /// What the system says.
        source: io::Error,
    },
}

/// What the supervisor reacts to.
pub enum Event {
    /// A node's process has ended.
    Ended(u64, ExitStatus),
    /// The user wants everything to stop.
    Stop,
}

/// Runs nodes `ids` of the cluster in `config_file` until told to stop by [`Event::Stop`] on `events`, the receiver of `sender`.
///
/// # Errors
/// [`SupervisorError`]; the other nodes have been stopped.
///
/// # Blocking
/// Until then.
pub fn supervise(
    ids: &[u64],
    config_file: &Path,
    data_dir: &Path,
    sender: &mpsc::Sender<Event>,
    events: &mpsc::Receiver<Event>,
) -> Result<(), SupervisorError> {
    let program = std::env::current_exe().map_err(|source| SupervisorError::Start { id: ids[0], source })?;
    let arguments = |id: u64| {
        let mut command = Command::new(&program);
        command.args(["node", "--supervised", "--id"]).arg(id.to_string());
        command.arg("-f").arg(config_file).arg("--data").arg(data_dir);
        // The node ends when this pipe does, so none outlives a supervisor that was killed.
        command.stdin(Stdio::piped());
        command
    };
    let mut nodes: Vec<Supervised> = ids.iter().map(|id| Supervised::new(*id)).collect();
    let mut result = Ok(());
    for node in &mut nodes {
        result = result.and_then(|()| node.start(arguments(node.id), sender));
    }
    while result.is_ok() {
        let now = Instant::now();
        for node in nodes.iter_mut().filter(|node| node.restart_at.is_some_and(|at| at <= now)) {
            result = result.and_then(|()| node.start(arguments(node.id), sender));
        }
        let next_restart = nodes.iter().filter_map(|node| node.restart_at).min();
        let event = match next_restart {
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Event::Ended(id, status)) => {
                let Some(node) = nodes.iter_mut().find(|node| node.id == id) else { continue };
                let pause = node.ended();
                if status.code() == Some(EXIT_PERMANENT) {
                    result = Err(SupervisorError::Permanent { id, status });
                } else if status.code() == Some(EXIT_EVICTED) {
                    log::warn!("node {id} does not belong to the cluster; it is not started again");
                    node.restart_at = None;
                } else {
                    log::warn!("node {id} ended ({status}); starting it again in {pause:?}");
                }
            }
        }
    }
    stop(&mut nodes, events);
    result
}

struct Supervised {
    id: u64,
    /// Closing it stops the node.
    lifeline: Option<std::process::ChildStdin>,
    pid: Option<u32>,
    started: Instant,
    restart_at: Option<Instant>,
    pause: Duration,
}

impl Supervised {
    fn new(id: u64) -> Self {
        Self {
            id,
            lifeline: None,
            pid: None,
            started: Instant::now(),
            restart_at: None,
            pause: RESTART_PAUSE_MIN,
        }
    }

    fn start(&mut self, mut command: Command, events: &mpsc::Sender<Event>) -> Result<(), SupervisorError> {
        let id = self.id;
        let mut child: Child = command.spawn().map_err(|source| SupervisorError::Start { id, source })?;
        self.lifeline = child.stdin.take();
        self.pid = Some(child.id());
        (self.started, self.restart_at) = (Instant::now(), None);
        let events = events.clone();
        let watch = move || {
            if let Ok(status) = child.wait() {
                // Nobody listens any more when the supervisor has ended first.
                let _ = events.send(Event::Ended(id, status));
            }
        };
        std::thread::Builder::new()
            .name(format!("watch-{id}"))
            .spawn(watch)
            .map_err(|source| SupervisorError::Watch { id, source })?;
        Ok(())
    }

    /// Notes that the process has ended; returns the pause before the next start.
    fn ended(&mut self) -> Duration {
        (self.lifeline, self.pid) = (None, None);
        if self.started.elapsed() >= STABLE_AFTER {
            self.pause = RESTART_PAUSE_MIN;
        }
        let pause = self.pause;
        self.restart_at = Some(Instant::now() + pause);
        self.pause = (pause * 2).min(RESTART_PAUSE_MAX);
        pause
    }
}

/// Stops what runs: in order, and what does not end in time by force.
fn stop(nodes: &mut [Supervised], events: &mpsc::Receiver<Event>) {
    nodes.iter_mut().for_each(|node| node.lifeline = None);
    let deadline = Instant::now() + STOP_GRACE;
    while nodes.iter().any(|node| node.pid.is_some()) {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Ended(id, _)) => {
                nodes.iter_mut().filter(|node| node.id == id).for_each(|node| node.pid = None);
            }
            // A second Ctrl-C: the user does not want to wait.
            Ok(Event::Stop) | Err(_) => break,
        }
    }
    for node in nodes.iter().filter_map(|node| Some((node.id, node.pid?))) {
        log::warn!("node {} does not stop; killing process {}", node.0, node.1);
        // Its watcher has not reaped it yet, so the number is still its own. Gone already is as good as killed.
        let _ = kill(Pid::from_raw(node.1 as i32), Signal::SIGKILL);
    }
}

/// Where a cluster that is started without any arguments keeps everything.
pub fn default_data_dir() -> PathBuf {
    PathBuf::from("squall-data")
}
