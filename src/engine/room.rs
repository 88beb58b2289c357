//! Room for a model: what it will take, and waiting for memory that is being freed for it.

use std::io;
use std::time::{Duration, Instant};

/// Memory that is being freed grows all the time, be it slowly, once the service manager has closed its copies, for which
/// the daemon waits half a minute; without any growth for longer it will not come.
const STILL: Duration = Duration::from_secs(35);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Less than this comes and goes by itself.
const GROWTH: u64 = 1 << 20;

/// What there is, and who can make more.
pub(super) struct Room<'a> {
    /// Bytes available now.
    pub available: &'a dyn Fn() -> io::Result<u64>,
    /// Begins to free so many bytes; answers how many will be free after a while, 0 when there is nothing to be freed.
    pub reclaim: &'a mut dyn FnMut(u64) -> u64,
    /// Called while memory is waited for.
    pub wait: &'a mut dyn FnMut(),
    /// How long without growth until it is given up.
    pub still: Duration,
}

impl<'a> Room<'a> {
    /// With the usual patience.
    pub fn new(
        available: &'a dyn Fn() -> io::Result<u64>,
        reclaim: &'a mut dyn FnMut(u64) -> u64,
        wait: &'a mut dyn FnMut(),
    ) -> Self {
        Room { available, reclaim, wait, still: STILL }
    }

    /// Has memory freed and waits for as long as that goes on; answers how many bytes are available then, `wanted` if that
    /// can be.
    pub fn make(mut self, wanted: u64) -> io::Result<u64> {
        let mut now = (self.available)()?;
        while wanted > now {
            let coming = (self.reclaim)(wanted - now);
            let before = now;
            if coming > 0 {
                now = self.watch(now, wanted.min(now.saturating_add(coming)))?;
            }
            if now < before.saturating_add(GROWTH).min(wanted) {
                break;
            }
        }
        Ok(now)
    }

    /// Waits until `wanted` bytes are available, or the growth ends.
    fn watch(&mut self, mut now: u64, wanted: u64) -> io::Result<u64> {
        let (mut most, mut grown) = (now, Instant::now());
        while now < wanted && grown.elapsed() < self.still {
            (self.wait)();
            std::thread::sleep(LOOK);
            now = (self.available)()?;
            if now >= most.saturating_add(GROWTH) {
                (most, grown) = (now, Instant::now());
            }
        }
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const MIB: u64 = 1 << 20;
    const SHORT: Duration = Duration::from_millis(100);

    /// Makes room where `step` MiB more are available at each look, from `from` MiB up to `to`.
    fn make(from: u64, step: u64, to: u64, coming: u64, wanted: u64) -> (u64, Vec<u64>) {
        let (now, mut asked) = (Cell::new(from), Vec::new());
        let available = || {
            let before = now.get();
            now.set((before + step).min(to));
            Ok(before * MIB)
        };
        let mut reclaim = |bytes| {
            asked.push(bytes / MIB);
            coming * MIB
        };
        let room = Room { available: &available, reclaim: &mut reclaim, wait: &mut || (), still: SHORT };
        (room.make(wanted * MIB).unwrap() / MIB, asked)
    }

    #[test]
    fn freeing_is_waited_for_as_long_as_it_goes_on() {
        // Thirty looks of 20 ms, six times as long as without growth.
        let start = Instant::now();
        assert_eq!(make(100, 1, 200, 30, 130), (130, vec![30]));
        assert!(start.elapsed() >= 5 * SHORT);
    }

    #[test]
    fn what_does_not_come_is_given_up() {
        let start = Instant::now();
        assert_eq!(make(100, 0, 100, 50, 130), (100, vec![30]));
        assert!(start.elapsed() >= SHORT);
        let start = Instant::now();
        assert_eq!(make(100, 0, 100, 0, 130), (100, vec![30]));
        assert!(start.elapsed() < SHORT, "nothing is coming");
        assert_eq!(make(100, 9, 110, 10, 130), (110, vec![30, 20]), "a part of it came: asked for the rest");
        assert_eq!(make(100, 0, 100, 0, 90), (100, vec![]), "there was room");
    }
}
