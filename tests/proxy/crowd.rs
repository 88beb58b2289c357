//! A thousand clients at once, a tenth of them cut at random: no descriptor and no memory stays behind, and every other
//! stream is complete.

use super::fake::{Fake, Front};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CLIENTS: usize = 1000;
const EVENTS: usize = 20;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
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
async fn crowd(proxy: &Front, round: usize) -> usize {
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let address = proxy.address();
        tasks.push(tokio::spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET /v1/sse?n={EVENTS}&ms=50 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let roll = noise(round * CLIENTS + client);
            if roll % 10 == 0 {
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
    let proxy = Front::start(fake.settings());
    assert!(proxy.get("/health", "").await.contains("200"));
    let settled = descriptors();
    let mut memory = 0;
    for round in 0..3 {
        let cut = crowd(&proxy, round).await;
        assert!((50..200).contains(&cut), "{cut} clients were cut");
        fake.quiet().await;
        super::fake::wait_for(|| proxy.handle.connections() == 0, "connections to end").await;
        // Idle connections to the daemon stay for some seconds; then nothing may be left.
        super::fake::wait_for(|| descriptors() <= settled, "descriptors to return").await;
        if round == 0 {
            memory = resident();
        }
    }
    let grown = resident().saturating_sub(memory);
    println!("resident {} MiB, grown by {} KiB over two rounds", resident() >> 20, grown >> 10);
    assert!(grown < 16 << 20, "resident memory grew by {grown} bytes");
}
