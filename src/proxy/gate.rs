//! Who may connect, and how often: the allow-list and the connection counts. Asked by `server` before a byte is read.

use super::reply::Refusal;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module.
pub struct Gate {
    allow: Vec<IpNet>,
    most: usize,
    most_per_address: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Gate {
    /// An empty `allow` admits every address.
    pub fn new(allow: Vec<IpNet>, most: usize, most_per_address: usize) -> Arc<Self> {
        Arc::new(Gate { allow, most, most_per_address, counts: Mutex::default() })
    }

    /// Admits a connection until its [`Pass`] is dropped.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Refusal> {
        let address = address.to_canonical();
        if !self.allow.is_empty() && !self.allow.iter().any(|net| net.contains(&address)) {
            return Err(Refusal::Forbidden);
        }
        let host = host(address);
        let mut counts = self.counts();
        if counts.all >= self.most {
            return Err(Refusal::Busy);
        }
        let count = counts.by_address.entry(host).or_default();
        if *count >= self.most_per_address {
            return Err(Refusal::TooManyConnections);
        }
        *count += 1;
        counts.all += 1;
        Ok(Pass { gate: self.clone(), host })
    }

    /// Connections admitted now.
    pub fn connections(&self) -> usize {
        self.counts().all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv6 host commonly owns its whole /64, so that is what counts.
fn host(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// An admitted connection.
pub struct Pass {
    gate: Arc<Gate>,
    host: IpAddr,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.gate.counts();
        counts.all -= 1;
        if let Some(count) = counts.by_address.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                counts.by_address.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn counts_and_forgets() {
        let gate = Gate::new(Vec::new(), 3, 2);
        let passes = [gate.admit(ip("10.0.0.1")).unwrap(), gate.admit(ip("::ffff:10.0.0.1")).unwrap()];
        assert_eq!(gate.admit(ip("10.0.0.1")).err(), Some(Refusal::TooManyConnections));
        let other = gate.admit(ip("fd00::1")).unwrap();
        assert_eq!(gate.admit(ip("10.0.0.2")).err(), Some(Refusal::Busy));
        drop((passes, other));
        assert_eq!(gate.connections(), 0);
        assert!(gate.counts().by_address.is_empty());
        let _one = gate.admit(ip("fd00::1")).unwrap();
        let _two = gate.admit(ip("fd00::2")).unwrap();
        assert_eq!(gate.admit(ip("fd00::3")).err(), Some(Refusal::TooManyConnections), "one /64 is one host");
    }

    #[test]
    fn the_allow_list_sees_through_mapped_addresses() {
        let gate = Gate::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], 9, 9);
        assert!(gate.admit(ip("10.9.9.9")).is_ok());
        assert!(gate.admit(ip("::ffff:10.1.1.1")).is_ok());
        assert!(gate.admit(ip("fd12::1")).is_ok());
        assert_eq!(gate.admit(ip("11.0.0.1")).err(), Some(Refusal::Forbidden));
        assert_eq!(gate.admit(ip("fe80::1")).err(), Some(Refusal::Forbidden));
    }
}
