//! The binary: options, signals, socket activation, service manager.

use super::fake::{Fake, status};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

const BINARY: &str = env!("CARGO_BIN_EXE_omni-proxy");

fn get(address: SocketAddr, fields: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    status(&text)
}

/// Starts the binary on a free port; returns it with its address and its log, once it listens.
pub fn start(socket: &Path, args: &[&str]) -> (Child, SocketAddr, BufReader<ChildStderr>) {
    let mut child = Command::new(BINARY)
        .args(["--listen", "127.0.0.1:0", "--log", "info", "--socket"])
        .arg(socket)
        .args(args)
        .env("NOTIFY_SOCKET", socket.with_file_name("notify"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let address = line.split_whitespace().skip_while(|word| *word != "on").nth(1);
    (child, address.unwrap_or_else(|| panic!("{line}")).parse().unwrap(), log)
}

fn output(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(BINARY)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// The service manager's socket: the next message.
fn message(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let size = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..size]).into_owned()
}

fn service_manager(dir: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reload_and_stop() {
    use nix::sys::signal::Signal::{SIGHUP, SIGTERM};
    let fake = Fake::start();
    let dir = fake.socket.parent().unwrap();
    let (manager, keys) = (service_manager(dir), dir.join("keys"));
    let line = output(&["--hash-key", "alice"], "secret\n");
    std::fs::write(&keys, &line.stdout).unwrap();
    let (mut child, address, mut log) = start(&fake.socket, &["--keys", keys.to_str().unwrap()]);
    assert!(message(&manager).contains("READY=1"));

    assert_eq!(get(address, "x-api-key: secret\r\n"), 200);
    std::fs::write(&keys, "broken").unwrap();
    signal(&child, SIGHUP);
    assert!(message(&manager).contains("RELOADING=1\nMONOTONIC_USEC="));
    assert!(message(&manager).contains("READY=1"));
    assert_eq!(get(address, "x-api-key: secret\r\n"), 200);
    std::fs::write(&keys, output(&["--hash-key"], "other").stdout).unwrap();
    signal(&child, SIGHUP);
    assert!(message(&manager).contains("RELOADING=1"));
    assert!(message(&manager).contains("READY=1"));
    assert_eq!((get(address, "x-api-key: secret\r\n"), get(address, "x-api-key: other\r\n")), (401, 200));

    signal(&child, SIGTERM);
    assert!(message(&manager).contains("STOPPING=1"));
    assert!(child.wait().unwrap().success());
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("the old keys stay in use") && rest.contains("stopped"), "{rest}");
    assert!(!rest.contains('\u{1b}'), "no colours in a log that is no terminal: {rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn takes_sockets_from_the_service_manager() {
    let fake = Fake::start();
    let manager = service_manager(fake.socket.parent().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --socket \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script, BINARY])
        .arg(&fake.socket)
        .env("NOTIFY_SOCKET", fake.socket.with_file_name("notify"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .unwrap();
    assert!(message(&manager).contains("READY=1"));
    assert_eq!(get(address, ""), 200);
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
}

#[test]
fn wrong_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(&file, "[proxy]\nlisten = \"nowhere\"\n").unwrap();
    let bad = output(&["--config", file.to_str().unwrap()], "");
    assert_eq!(bad.status.code(), Some(78));
    let text = String::from_utf8(bad.stderr).unwrap();
    assert!(text.contains("p.toml: line 2: proxy.listen: \"nowhere\" is no address; write an address"), "{text}");
    assert_eq!(output(&["--keys", "/nonexistent", "--check"], "").status.code(), Some(78));
    assert_eq!(output(&["--check"], "").status.code(), Some(0));
    assert_eq!(output(&["--listen", "nonsense"], "").status.code(), Some(2));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _holder = TcpListener::bind(taken).unwrap();
    let busy = output(&["--listen", &taken.to_string()], "");
    assert_eq!(busy.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("cannot listen on"));
}

#[test]
fn makes_keys() {
    let made = output(&["--hash-key", "bob"], "");
    let (line, told) = (String::from_utf8(made.stdout).unwrap(), String::from_utf8(made.stderr).unwrap());
    assert!(line.starts_with("sha256:") && line.trim_end().ends_with(" bob"), "{line}");
    let key = told.trim().rsplit(' ').next().unwrap();
    assert_eq!(omni_inferd::proxy::keys::line(key, "bob"), line.trim());
}
