//! HTTP, HTTPS and WebSocket: clients and servers in fibers of the same two workers.

use squall_compat::crowd::{self, FIBERS};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How long a server's handler thinks: a worker that waited for it would take 200 times as long.
const THINKS: Duration = Duration::from_millis(20);

/// A listener that each test gives a member of the crowd to serve.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An agent that keeps at most one idle connection and takes nothing from the environment.
fn agent(tls: Option<ureq::tls::TlsConfig>) -> ureq::Agent {
    let config = ureq::Agent::config_builder().proxy(None);
    match tls {
        Some(tls) => config.tls_config(tls).build().into(),
        None => config.build().into(),
    }
}

#[test]
fn tiny_http_serves_from_fibers_what_ureq_asks_from_fibers() {
    let (listener, address) = listener();
    let server = Arc::new(tiny_http::Server::from_listener(listener, None).unwrap());
    let answered = AtomicUsize::new(0);
    const CLIENTS: usize = FIBERS;
    const SERVERS: usize = 20;
    const REQUESTS: usize = 5;
    crowd::run("tiny_http and ureq", CLIENTS + SERVERS, move |member| {
        member.meet();
        if member.index >= CLIENTS {
            while let Ok(mut request) = server.recv() {
                let mut body = String::new();
                request.as_reader().read_to_string(&mut body).unwrap();
                thread::sleep(THINKS);
                let text = format!("{} {body}", request.url());
                request.respond(tiny_http::Response::from_string(text)).unwrap();
            }
            return;
        }
        let agent = agent(None);
        for round in 0..REQUESTS {
            let body = format!("body of {}", member.index);
            let mut response = agent.post(format!("http://{address}/round/{round}")).send(&body).unwrap();
            assert_eq!(response.body_mut().read_to_string().unwrap(), format!("/round/{round} {body}"));
        }
        if answered.fetch_add(1, Ordering::SeqCst) + 1 == CLIENTS {
            (0..SERVERS).for_each(|_| server.unblock());
        }
    });
}

#[test]
fn reqwest_blocking_has_a_thread_per_client_and_200_clients() {
    let (listener, address) = listener();
    crowd::run("reqwest::blocking", FIBERS, move |member| {
        if member.index == 0 {
            let listener = listener.try_clone().unwrap();
            squall::spawn(move || {
                for _ in 0..FIBERS {
                    let (stream, _) = listener.accept().unwrap();
                    squall::spawn(move || serve_http(stream));
                }
            });
        }
        let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
        member.meet();
        for round in 0..3 {
            let text = client
                .get(format!("http://{address}/{}/{round}", member.index))
                .send()
                .unwrap()
                .text()
                .unwrap();
            assert_eq!(text, format!("/{}/{round}", member.index));
        }
    });
}

#[test]
fn ureq_with_rustls_talks_https_to_a_rustls_server_in_fibers() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (certified.cert.der().clone(), certified.signing_key.serialize_der());
    let roots = [ureq::tls::Certificate::from_der(&certificate).to_owned()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], rustls::pki_types::PrivatePkcs8KeyDer::from(key).into())
        .unwrap();
    let server = Arc::new(server);
    let (listener, address) = listener();
    crowd::run("ureq with rustls", FIBERS, move |member| {
        if member.index == 0 {
            let (listener, server) = (listener.try_clone().unwrap(), Arc::clone(&server));
            squall::spawn(move || {
                for _ in 0..FIBERS {
                    let (stream, _) = listener.accept().unwrap();
                    let session = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
                    squall::spawn(move || serve_http(rustls::StreamOwned::new(session, stream)));
                }
            });
        }
        let roots = ureq::tls::RootCerts::new_with_certs(&roots);
        let agent = agent(Some(ureq::tls::TlsConfig::builder().root_certs(roots).build()));
        member.meet();
        for round in 0..3 {
            let path = format!("/{}/{round}", member.index);
            let url = format!("https://localhost:{}{path}", address.port());
            let mut response = agent.get(url).call().unwrap();
            assert_eq!(response.body_mut().read_to_string().unwrap(), path);
            member.meet();
        }
    });
}

#[test]
fn tungstenite_clients_and_servers_exchange_messages() {
    use tungstenite::Message;
    let (listener, address) = listener();
    crowd::run("tungstenite", FIBERS, move |member| {
        if member.index == 0 {
            let listener = listener.try_clone().unwrap();
            squall::spawn(move || {
                for _ in 0..FIBERS {
                    let (stream, _) = listener.accept().unwrap();
                    squall::spawn(move || {
                        let mut socket = tungstenite::accept(stream).unwrap();
                        // Ends with the error that says that the client has closed.
                        while let Ok(message) = socket.read() {
                            if message.is_text() || message.is_binary() {
                                socket.send(message).unwrap();
                            }
                        }
                    });
                }
            });
        }
        let stream = TcpStream::connect(address).unwrap();
        let (mut socket, _) = tungstenite::client(format!("ws://{address}/"), stream).unwrap();
        member.meet();
        for round in 0..5 {
            let text = Message::text(format!("{} {round}", member.index));
            socket.send(text.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), text);
            // More than a socket's buffer takes at once.
            let long = Message::binary(vec![member.index as u8; 100_000]);
            socket.send(long.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), long);
        }
        member.meet();
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    });
}

/// Answers each request of a keep-alive connection with its path.
fn serve_http(mut stream: impl Read + Write) {
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
            match stream.read(&mut buffer) {
                // The client may drop the connection with or without a word.
                Ok(0) | Err(_) => return,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
            }
            continue;
        };
        let head = String::from_utf8(received.drain(..end + 4).collect()).unwrap();
        let path = head.split(' ').nth(1).unwrap();
        thread::sleep(THINKS);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).unwrap();
        stream.flush().unwrap();
    }
}
