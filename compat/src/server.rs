//! Real servers on loopback, on a free port with a directory of their own, stopped when dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take until it accepts connections.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long it may take to stop when asked, before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Ports that are tried.
const START_ATTEMPTS: usize = 5;

/// A running server.
#[derive(Debug)]
pub struct Server {
    process: Child,
    address: SocketAddr,
    /// Removed after the process has ended: fields are dropped after `drop` has run.
    _directory: TempDir,
}

impl Server {
    /// redis-server without persistence, or `None` with a SKIPPED line.
    pub fn redis() -> Option<Self> {
        let program = find("redis-server", &[])?;
        Some(Self::start(&program, "Ready to accept connections", |port, directory| {
            let port = port.to_string();
            let mut command = Command::new(&program);
            command.args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--port",
                &port,
                "--dir",
            ]);
            command.arg(directory);
            command
        }))
    }

    /// memcached, or `None` with a SKIPPED line.
    pub fn memcached() -> Option<Self> {
        let program = find("memcached", &[])?;
        Some(Self::start(&program, "", |port, _| {
            let mut command = as_user(unprivileged(), &program);
            command.args(["-l", "127.0.0.1", "-U", "0", "-c", "2048", "-p", &port.to_string()]);
            command
        }))
    }

    /// PostgreSQL with the superuser `postgres` trusted, or `None` with a SKIPPED line.
    pub fn postgres() -> Option<Self> {
        let folders = version_folders("/usr/lib/postgresql");
        let (initdb, postgres) = (find("initdb", &folders)?, find("postgres", &folders)?);
        // The server refuses to run as root.
        let user = user_or("postgres");
        Some(Self::start(&postgres, "ready to accept connections", |port, directory| {
            let data = directory.join("data");
            let mut command = as_user(user, &initdb);
            command
                .args(["--auth=trust", "--username=postgres", "--no-sync", "--no-locale", "--pgdata"])
                .arg(&data);
            run_to_end(command);
            let mut command = as_user(user, &postgres);
            command.arg("-D").arg(&data).arg("-k").arg(directory);
            command.args([
                "-h",
                "127.0.0.1",
                "-c",
                "max_connections=300",
                "-c",
                "fsync=off",
                "-p",
                &port.to_string(),
            ]);
            command
        }))
    }

    /// MariaDB that asks nobody for a password, or `None` with a SKIPPED line.
    pub fn mariadb() -> Option<Self> {
        let (install, mariadbd) =
            (find("mariadb-install-db", &[])?, find("mariadbd", &["/usr/sbin".into()])?);
        let user = user_or("mysql");
        Some(Self::start(&mariadbd, "ready for connections", |port, directory| {
            let data = format!("--datadir={}", directory.join("data").display());
            let mut command = as_user(user, &install);
            command.args([
                "--no-defaults",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
                &data,
            ]);
            run_to_end(command);
            let mut command = as_user(user, &mariadbd);
            command.args([
                "--no-defaults",
                "--skip-grant-tables",
                "--skip-networking=0",
                "--bind-address=127.0.0.1",
            ]);
            command.args(["--max-connections=300", "--innodb-flush-log-at-trx-commit=0", &data]);
            command
                .arg(format!("--port={port}"))
                .arg(format!("--socket={}", directory.join("socket").display()));
            command
        }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the command that `command` makes of a port and a directory, and waits until the port accepts and the log has `ready`.
    ///
    /// # Panics
    /// When the server does not come up on any of a few ports: between being found free and being bound, a port may have been
    /// given to a client of another test.
    fn start(program: &Path, ready: &str, command: impl Fn(u16, &Path) -> Command) -> Self {
        let mut reasons = Vec::new();
        for _ in 0..START_ATTEMPTS {
            match Self::try_start(ready, &command) {
                Ok(server) => return server,
                Err(reason) => reasons.push(reason),
            }
        }
        panic!("{} does not start:\n{}", program.display(), reasons.join("\n"));
    }

    fn try_start(ready: &str, command: impl Fn(u16, &Path) -> Command) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("squall-compat-").tempdir().expect("a directory");
        open_to_all(directory.path());
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let log = directory.path().join("log");
        let output = File::create(&log).expect("a log file");
        let mut command = command(port, directory.path());
        command.current_dir(directory.path()).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("a second descriptor")).stderr(output);
        // SAFETY: prctl is async-signal-safe. The server must not outlive a test that is killed.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            })
        };
        let process = command.spawn().expect("the server starts");
        let mut server = Self { process, address, _directory: directory };
        let deadline = Instant::now() + START_DEADLINE;
        // PostgreSQL accepts connections before it takes them: hence the log.
        let read_log =
            || fs::read(&log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default();
        while TcpStream::connect(address).is_err() || !read_log().contains(ready) {
            let ended = server.process.try_wait().expect("a child of ours");
            if ended.is_some() || Instant::now() > deadline {
                return Err(format!("not ready on {address} ({ended:?}):\n{}", read_log()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked first: a PostgreSQL that is killed leaves its shared memory behind.
        // SAFETY: the id of a child that has not been waited for.
        unsafe { libc::kill(self.process.id() as libc::pid_t, libc::SIGTERM) };
        let deadline = Instant::now() + STOP_DEADLINE;
        while let Ok(None) = self.process.try_wait()
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program in one of `folders` or in PATH, or `None` with a SKIPPED line.
fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(folders.iter().cloned())
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        // Past the capture of libtest, which hides what a test prints that passes.
        let _ = writeln!(io::stderr(), "SKIPPED: {program} is not installed");
    }
    found
}

/// `folder/<version>/bin` for each version that Debian has installed.
fn version_folders(folder: &str) -> Vec<PathBuf> {
    let versions = fs::read_dir(folder).into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin")).collect()
}

/// Nobody's ids, for root.
fn unprivileged() -> Option<(u32, u32)> {
    user_or("nobody")
}

/// The ids of a user to become, when the test runs as root; otherwise servers run as whoever runs the test.
fn user_or(name: &str) -> Option<(u32, u32)> {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("the list of users");
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no user {name}"));
    let mut ids = line.split(':').skip(2).map(|id| id.parse().expect("an id"));
    Some((ids.next().expect("a user id"), ids.next().expect("a group id")))
}

fn as_user(user: Option<(u32, u32)>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    command
}

/// Lets the server's own user make its directories here.
fn open_to_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("a directory of ours");
}

fn run_to_end(mut command: Command) {
    command.current_dir("/");
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
