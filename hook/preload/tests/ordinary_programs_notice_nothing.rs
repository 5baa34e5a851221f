//! `libsquall_preload.so` under `LD_PRELOAD` leaves ordinary programs as they are: the same output, the same errors, the same exit
//! status. None of them runs a fiber, so every hook must pass through.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The library that cargo has built along with this test; the newest if there are two. `None` if it has built none.
fn library() -> Option<PathBuf> {
    let program = std::env::current_exe().expect("this program has a path");
    let folder = program.parent().expect("it is in a folder");
    [folder.join("libsquall_preload.so"), folder.join("../libsquall_preload.so")]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
}

fn run(program: &str, arguments: &[&str], preload: Option<&Path>) -> std::io::Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).env_remove("LD_PRELOAD").env("LC_ALL", "C");
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    command.output()
}

/// Runs the program with and without the library, and compares. Skips, visibly, what is not installed.
fn unchanged(program: &str, arguments: &[&str]) {
    let Some(library) = library() else {
        eprintln!("skipped: cargo has not built libsquall_preload.so for this run");
        return;
    };
    let Ok(plain) = run(program, arguments, None) else {
        eprintln!("skipped: {program} is not installed");
        return;
    };
    let hooked = run(program, arguments, Some(&library)).expect("it ran without the library");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&plain.stdout), text(&hooked.stdout), "standard output of {program}");
    assert_eq!(text(&plain.stderr), text(&hooked.stderr), "standard error of {program}");
    assert_eq!(plain.status, hooked.status, "exit status of {program}");
    assert!(
        !plain.stdout.is_empty() || !plain.stderr.is_empty(),
        "{program} said nothing, so nothing was compared"
    );
}

#[test]
fn the_library_is_really_loaded() {
    let Some(library) = library() else {
        eprintln!("skipped: cargo has not built libsquall_preload.so for this run");
        return;
    };
    let output = run("cat", &["/proc/self/maps"], Some(&library)).expect("cat is everywhere");
    assert!(String::from_utf8_lossy(&output.stdout).contains("libsquall_preload.so"));
}

#[test]
fn a_shell_with_sleeps_pipes_and_children() {
    unchanged("sh", &["-c", "sleep 0.1; echo x | cat; (exit 3); echo $?; ls /no/such/file; exit 5"]);
}

#[test]
fn lists_and_tools() {
    unchanged("ls", &["-la", "/usr"]);
    unchanged("ls", &["/no/such/file"]);
    unchanged("git", &["--version"]);
    unchanged("git", &["no-such-command"]);
    unchanged("curl", &["--silent", "--show-error", "--max-time", "5", "file:///etc/hostname"]);
    // Refused. Not with its own message, which tells after how many milliseconds.
    unchanged("curl", &["--silent", "--write-out", "%{exitcode}", "--max-time", "5", "http://127.0.0.1:1/"]);
    unchanged("redis-cli", &["--version"]);
}

const PYTHON_SOCKETS: &str = r#"
import errno, os, select, socket, threading, time

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()

def serve():
    for _ in range(3):
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1000):
                connection.sendall(data.upper())

server = threading.Thread(target=serve)
server.start()
for word in (b"one", b"two" * 100000, b"three"):
    with socket.create_connection(listener.getsockname()) as client:
        threading.Thread(target=lambda: (client.sendall(word), client.shutdown(socket.SHUT_WR))).start()
        answer = b""
        while data := client.recv(65536):
            answer += data
        print(len(answer), answer[:5])
server.join()

near, far = socket.socketpair()
print(select.select([near], [], [], 0.05)[0] == [])
far.send(b"x")
print(select.select([near], [near], [], 5)[:2] == ([near], [near]))
poll = select.poll()
poll.register(near, select.POLLIN)
print(poll.poll(1000) == [(near.fileno(), select.POLLIN)])
epoll = select.epoll()
epoll.register(far, select.EPOLLOUT)
print(epoll.poll(1) == [(far.fileno(), select.EPOLLOUT)])
near.recv(1)
near.settimeout(0.05)
try:
    near.recv(1)
except TimeoutError as error:
    print("timeout", error)
near.setblocking(False)
try:
    near.recv(1)
except BlockingIOError as error:
    print(errno.errorcode[error.errno])
far.close()
print(near.recv(1))
try:
    near.send(b"x")
except OSError as error:
    print(errno.errorcode[error.errno])
try:
    os.read(999, 1)
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

const PYTHON_PROCESSES: &str = r#"
import multiprocessing, os, queue, signal, subprocess, sys, threading, time

print(subprocess.run(["sh", "-c", "echo out; echo err >&2; exit 4"], capture_output=True))
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(reader)
    time.sleep(0.02)
    os.write(writer, b"from the child")
    os._exit(7)
os.close(writer)
print(os.read(reader, 100), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
copy = os.dup(reader)
os.dup2(reader, 50)
os.close(copy)
print(os.read(50, 1))

class Interrupted(Exception):
    pass

def on_alarm(number, frame):
    raise Interrupted

signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    time.sleep(30)
except Interrupted:
    print("sleep was interrupted")
signal.setitimer(signal.ITIMER_REAL, 0.05)
near, far = os.pipe()
try:
    os.read(near, 1)
except Interrupted:
    print("read was interrupted")

numbers = queue.Queue(maxsize=2)
totals = []
def consume():
    total = 0
    while (number := numbers.get()) is not None:
        total += number
    totals.append(total)
consumers = [threading.Thread(target=consume) for _ in range(4)]
for consumer in consumers:
    consumer.start()
for number in range(1000):
    numbers.put(number)
for _ in consumers:
    numbers.put(None)
for consumer in consumers:
    consumer.join()
print(sum(totals))
lock = threading.Lock()
lock.acquire()
print(lock.acquire(timeout=0.02))
sys.exit(9)
"#;

#[test]
fn python_with_sockets_threads_and_multiplexers() {
    unchanged("python3", &["-c", PYTHON_SOCKETS]);
}

#[test]
fn python_with_children_signals_and_locks() {
    unchanged("python3", &["-c", PYTHON_PROCESSES]);
}
