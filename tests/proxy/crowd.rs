//! A thousand clients at once, a tenth of them cut at random: no descriptor and no memory stays behind, and every other
//! stream is complete.

use super::binary::{signal, start};
use super::fake::Fake;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CLIENTS: usize = 1000;
const EVENTS: usize = 20;
const ROUNDS: usize = 3;

/// Open descriptors of a process.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Resident KiB of a process.
fn resident(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

/// A small generator of repeatable noise.
fn noise(seed: usize) -> usize {
    let mut x = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
}

/// Runs the crowd once; returns how many clients were cut.
async fn crowd(address: SocketAddr, round: usize) -> usize {
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        tasks.push(tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET /v1/sse?n={EVENTS}&ms=50 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let roll = noise(round * CLIENTS + client);
            if roll.is_multiple_of(10) {
                tokio::time::sleep(Duration::from_millis((roll / 10 % 900) as u64)).await;
                return true;
            }
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text.matches("data: ").count(), EVENTS + 1, "client {client}: {text}");
            assert!(text.contains("[DONE]") && text.ends_with("0\r\n\r\n"), "client {client}: {text}");
            false
        }));
    }
    let mut cut = 0;
    for task in tasks {
        cut += usize::from(tokio::time::timeout(Duration::from_secs(60), task).await.expect("no hang").unwrap());
    }
    cut
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_leave_nothing_behind() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    if hard < 5000 {
        println!("skipped: the limit of open files is {hard}, 5000 are needed");
        return;
    }
    let fake = Fake::start();
    let (mut child, address, _log) = start(&fake.socket, &[]);
    let (pid, settled) = (child.id(), descriptors(child.id()));
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        let cut = crowd(address, round).await;
        assert!((50..200).contains(&cut), "{cut} clients were cut");
        fake.quiet().await;
        // Idle connections to the daemon stay for some seconds; then nothing may be left.
        super::fake::wait_for(|| descriptors(pid) <= settled, "descriptors to return").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        memory.push(resident(pid));
    }
    println!("resident KiB after each round: {memory:?}");
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    assert!(child.wait().unwrap().success());
    let grown = memory[ROUNDS - 1].saturating_sub(memory[0]);
    assert!(grown < 4 << 10, "resident memory grew by {grown} KiB: {memory:?}");
}
