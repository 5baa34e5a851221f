//! `libsquall_preload.so` under `LD_PRELOAD` leaves ordinary programs as they are: the same output, the same errors, the same exit
//! status. None of them runs a fiber, so every hook must pass through.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The library that cargo has built along with this test; the newest if there are two.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    let folder = program.parent().expect("it is in a folder");
    [folder.join("libsquall_preload.so"), folder.join("../libsquall_preload.so")]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .expect("cargo builds libsquall_preload.so for this test")
}

/// Says so in a line of its own, which the test runner does not swallow.
fn skip(what: &str) {
    // It is no use to fail because nobody reads it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

fn is_installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        skip(&format!("{program} is not installed"));
    }
    found.is_ok()
}

/// A program, as it is or with the library.
fn command(program: &str, is_hooked: bool) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD").env("LC_ALL", "C");
    if is_hooked {
        command.env("LD_PRELOAD", library());
    }
    command
}

fn same(program: &str, plain: &Output, hooked: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&plain.stdout), text(&hooked.stdout), "standard output of {program}");
    assert_eq!(text(&plain.stderr), text(&hooked.stderr), "standard error of {program}");
    assert_eq!(plain.status, hooked.status, "exit status of {program}");
    assert!(
        !plain.stdout.is_empty() || !plain.stderr.is_empty(),
        "{program} said nothing, so nothing was compared"
    );
}

/// Runs a program with and without the library, each in an empty folder, with something to read, and compares. Skips, visibly, what is
/// not installed.
fn unchanged_with_input(program: &str, arguments: &[&str], input: &str) {
    if !is_installed(program) {
        return;
    }
    let run = |is_hooked| {
        let folder = tempfile::tempdir().unwrap();
        let given = folder.path().join("input");
        std::fs::write(&given, input).unwrap();
        let mut command = command(program, is_hooked);
        command.args(arguments).stdin(File::open(given).unwrap()).current_dir(folder.path());
        command.output().expect("it is installed")
    };
    same(program, &run(false), &run(true));
}

fn unchanged(program: &str, arguments: &[&str]) {
    unchanged_with_input(program, arguments, "");
}

#[test]
fn the_library_is_really_loaded() {
    let output = command("cat", true).arg("/proc/self/maps").output().expect("cat is everywhere");
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
    unchanged("curl", &["--silent", "--show-error", "--max-time", "5", "file:///etc/hostname"]);
    // Refused. Not with its own message, which tells after how many milliseconds.
    unchanged("curl", &["--silent", "--write-out", "%{exitcode}", "--max-time", "5", "http://127.0.0.1:1/"]);
}

/// Answers HTTP requests by what they ask for, until the test's process ends.
fn http_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // A client that goes away is its own affair.
            thread::spawn(move || answer_requests(connection));
        }
    });
    address
}

fn answer_requests(connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    loop {
        let (mut request, mut length) = (String::new(), 0);
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if header.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
        match path.as_str() {
            "/large" => {
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n")?;
                (0..30).try_for_each(|index| writer.write_all(&vec![b'a' + (index % 26); 100_000]))?;
            }
            "/chunked" => {
                write!(writer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for piece in ["one ", "two ", "three\n"] {
                    write!(writer, "{:x}\r\n{piece}\r\n", piece.len())?;
                    writer.flush()?;
                    thread::sleep(Duration::from_millis(20));
                }
                write!(writer, "0\r\n\r\n")?;
            }
            "/moved" => write!(writer, "HTTP/1.1 302 Found\r\nLocation: /here\r\nContent-Length: 0\r\n\r\n")?,
            "/cut" => {
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nnot all of it")?;
                return Ok(());
            }
            "/silent" => thread::sleep(Duration::from_secs(20)),
            _ => {
                let text =
                    format!("{} {} bytes: {:?}\n", request.trim(), length, String::from_utf8_lossy(&body));
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
            }
        }
    }
}

#[test]
fn curl_with_a_local_server() {
    let server = http_server();
    let at = |path: &str| format!("http://{server}{path}");
    let curl = |arguments: &[&str]| {
        let mut all = vec!["--silent", "--show-error", "--max-time", "30"];
        all.extend_from_slice(arguments);
        unchanged("curl", &all);
    };
    curl(&[&at("/a"), &at("/b"), &at("/c")]);
    curl(&["--include", &at("/headers")]);
    curl(&["--data", "a=1&b=two", &at("/post")]);
    curl(&["--location", "--write-out", "%{http_code} %{num_redirects}", &at("/moved")]);
    curl(&[&at("/chunked")]);
    curl(&[&at("/large")]);
    curl(&["--fail", "--output", "/no/such/folder/file", &at("/a")]);
    curl(&["--write-out", "%{exitcode} %{size_download}", &at("/cut")]);
    // Not with its own message, which tells after how many milliseconds.
    unchanged("curl", &["--silent", "--write-out", "%{exitcode}", "--max-time", "0.3", &at("/silent")]);
    let urls: Vec<String> = (0..20).map(|number| at(&format!("/{number}"))).collect();
    let mut parallel = vec!["--no-progress-meter", "--parallel", "--parallel-max", "1"];
    parallel.extend(urls.iter().map(String::as_str));
    curl(&parallel);
}

/// A redis-server on a socket in a folder of its own, ended with the value.
struct Redis {
    process: Child,
    folder: tempfile::TempDir,
}

impl Redis {
    fn start(is_hooked: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command("redis-server", is_hooked);
        command.args(["--port", "0", "--unixsocket", "socket", "--save", "", "--io-threads", "2"]);
        command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let redis = Self { process: command.spawn().expect("it is installed"), folder };
        let began = Instant::now();
        while !redis.socket().exists() {
            assert!(began.elapsed() < Duration::from_secs(60), "redis-server has not begun to listen");
            thread::sleep(Duration::from_millis(10));
        }
        redis
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Ended already, if it fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn redis_cli(socket: &Path, is_hooked: bool, arguments: &[&str], input: &str) -> Output {
    let mut command = command("redis-cli", is_hooked);
    command.arg("-s").arg(socket).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.stdin(Stdio::piped()).spawn().expect("it is installed");
    process.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    process.wait_with_output().expect("it ends")
}

const REDIS_COMMANDS: &str = "PING\nSET key value\nGET key\nGET nothing\nINCR key\nRPUSH list a b c\nLRANGE list 0 -1\n\
    BLPOP nobody 0.1\nNO SUCH COMMAND\nMULTI\nINCR count\nINCR count\nEXEC\nDBSIZE\n";

#[test]
fn redis_cli_and_redis_server() {
    if !is_installed("redis-cli") || !is_installed("redis-server") {
        return;
    }
    // Either end with the library, then the other, then both, each on a server that is new.
    let run = |server_is_hooked, client_is_hooked| {
        let redis = Redis::start(server_is_hooked);
        let socket = redis.socket();
        let cli = |arguments: &[&str], input: &str| redis_cli(&socket, client_is_hooked, arguments, input);
        let many: String = (0..5000).map(|number| format!("SET many:{number} {number}\r\n")).collect();
        [
            cli(&[], REDIS_COMMANDS),
            cli(&["--raw", "EVAL", "return {1, 'two', {3}}", "0"], ""),
            cli(&["--pipe"], &many),
            cli(&["DBSIZE"], ""),
            cli(&["-x", "SET", "from-input"], "bytes\n"),
            cli(&["GET", "from-input"], ""),
            cli(&["-e", "NO-SUCH-COMMAND"], ""),
            redis_cli(Path::new("/no/such/socket"), client_is_hooked, &["PING"], ""),
        ]
    };
    let plain = run(false, false);
    for (server_is_hooked, client_is_hooked) in [(false, true), (true, false), (true, true)] {
        let hooked = run(server_is_hooked, client_is_hooked);
        for (plain, hooked) in plain.iter().zip(&hooked) {
            same("redis-cli", plain, hooked);
        }
    }
}

const GIT_SESSION: &str = r#"
set -e
git init -q -b trunk here && cd here
git config user.name Somebody && git config user.email somebody@example.org && git config gc.auto 0
for n in 1 2 3 4 5; do seq 1 $((n * 400)) > file$n; git add file$n; git commit -q -m "commit $n"; done
git checkout -q -b side HEAD~2 && echo side > side && git add side && git commit -q -m side
git checkout -q trunk && git merge -q --no-edit side
echo change >> file1 && git mv file2 file9 && echo new > new
git status --short --branch
git diff --stat HEAD
git log --graph --format='%h %an %s' --numstat
git repack -q -a -d && git fsck --full
cd .. && git clone -q here there 2>&1 && git -C there log --oneline | wc -l
git -C there archive HEAD | tar -tf -
git -C there push -q origin HEAD:refs/heads/pushed && git -C here branch --list
git -C here grep -n 399 | sort
git -C here no-such-command || git -C here checkout no-such-branch
"#;

#[test]
fn git_with_its_children_and_pipes() {
    if !is_installed("git") {
        return;
    }
    let run = |is_hooked| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command("sh", is_hooked);
        for (name, value) in [
            ("GIT_AUTHOR_DATE", "2020-01-01T00:00:00Z"),
            ("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("HOME", "/no/such/home"),
        ] {
            command.env(name, value);
        }
        command.args(["-c", GIT_SESSION]).current_dir(folder.path()).output().expect("a shell is everywhere")
    };
    let (plain, hooked) = (run(false), run(true));
    let said = String::from_utf8_lossy(&plain.stdout);
    assert!(said.contains("pushed") && said.contains("file9"), "git did little: {said}");
    same("git", &plain, &hooked);
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

const PYTHON_ASYNCIO: &str = r#"
import asyncio, concurrent.futures, http.client, http.server, threading, urllib.request

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = (self.path * 1000).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = "http://127.0.0.1:%d" % server.server_address[1]
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    lengths = pool.map(lambda n: len(urllib.request.urlopen(f"{address}/{n}").read()), range(50))
    print(sum(lengths))

async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data.upper())
        await writer.drain()
    writer.close()

async def ask(port, word):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(word)
    answer = await reader.readexactly(len(word))
    writer.close()
    return answer

async def main():
    listening = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    print(await asyncio.gather(*(ask(port, b"word%d" % n) for n in range(20))))
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print(await process.communicate(b"through cat"), process.returncode)
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.05)
    except asyncio.TimeoutError:
        print("timeout")
    print(await asyncio.get_running_loop().run_in_executor(None, lambda: open("/proc/self/comm").read()))
    print(await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80, type=1))

asyncio.run(main())
server.shutdown()
"#;

#[test]
fn python_with_servers_and_an_event_loop() {
    unchanged("python3", &["-c", PYTHON_ASYNCIO]);
    unchanged_with_input("python3", &["-"], "import sys; print(sys.stdin.read()); sys.exit(3)");
    unchanged("python3", &["-c", "import sys, os; print('killed', flush=True); os.kill(os.getpid(), 9)"]);
    unchanged("python3", &["-c", "raise ValueError('a trace on standard error')"]);
}
