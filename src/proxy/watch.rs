//! What one client connection is waiting for, and until when. The socket and the bodies report, the connection's task
//! asks: nothing here does I/O. One [`Watch`] per connection; used by `connection`, `forward` and `body`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The pauses a connection may make.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From a header's first byte to its last.
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Without taking anything of a waiting answer.
    pub write: Duration,
}

/// See the module.
pub struct Watch {
    limits: Limits,
    state: Mutex<State>,
    /// Signalled when the deadline may have come nearer.
    pub changed: Notify,
}

struct State {
    /// Requests being answered.
    active: usize,
    /// When `active` last became 0, or the header's first byte came.
    since: Instant,
    /// Part of a header has been read. Never set on HTTP/2, where control frames come at any time.
    in_header: bool,
    http2: bool,
    /// The socket takes no bytes since.
    blocked: Option<Instant>,
    /// Answers whose last piece was handed out and not asked for more since: `(id, when)`.
    handed: Vec<(u64, Instant)>,
    next_id: u64,
}

impl Watch {
    /// A fresh connection owes a header.
    pub fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            active: 0,
            since: Instant::now(),
            in_header: true,
            http2: false,
            blocked: None,
            handed: Vec::new(),
            next_id: 0,
        };
        Arc::new(Watch { limits, state: Mutex::new(state), changed: Notify::new() })
    }

    /// The state is plain data that no panic can leave half-changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client speaks HTTP/2.
    pub fn is_http2(&self) {
        let mut state = self.state();
        (state.http2, state.in_header) = (true, false);
    }

    /// Bytes came.
    pub fn read(&self) {
        let mut state = self.state();
        if state.active == 0 && !state.in_header && !state.http2 {
            (state.in_header, state.since) = (true, Instant::now());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The socket took bytes, or would not.
    pub fn wrote(&self, blocked: bool) {
        let mut state = self.state();
        match blocked {
            false => state.blocked = None,
            true => _ = state.blocked.get_or_insert_with(Instant::now),
        }
    }

    /// A request's header is complete; its answer is over when the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        let mut state = self.state();
        state.active += 1;
        state.in_header = false;
        state.next_id += 1;
        let id = state.next_id;
        drop(state);
        self.changed.notify_one();
        InFlight { watch: self.clone(), id }
    }

    /// When to look again at [`Watch::overdue`].
    pub fn next_look(&self) -> Instant {
        // While answers run, deadlines are looked for now and then instead of at every piece of every answer.
        let soon = || Instant::now() + self.limits.write / 4;
        let state = self.state();
        let due = self.due(&state).map_or_else(soon, |(due, _)| due);
        if state.active > 0 { due.min(soon()) } else { due }
    }

    /// What the client failed to do in time, if anything.
    pub fn overdue(&self) -> Option<&'static str> {
        self.due(&self.state()).filter(|(due, _)| *due <= Instant::now()).map(|(_, what)| what)
    }

    fn due(&self, state: &State) -> Option<(Instant, &'static str)> {
        let taken = state.handed.iter().map(|(_, since)| *since).chain(state.blocked).min();
        let stuck = taken.map(|since| (since + self.limits.write, "did not take its answer"));
        let waiting = match (state.active, state.in_header) {
            (0, true) => Some((state.since + self.limits.header, "did not complete its header")),
            (0, false) => Some((state.since + self.limits.idle, "was idle")),
            _ => None,
        };
        stuck.into_iter().chain(waiting).min_by_key(|(due, _)| *due)
    }
}

/// A request being answered.
pub struct InFlight {
    watch: Arc<Watch>,
    id: u64,
}

impl InFlight {
    /// A piece of the answer was given to the connection.
    pub fn handed_out(&self) {
        self.watch.state().handed.push((self.id, Instant::now()));
    }

    /// The connection asks for more: it got rid of what it had.
    pub fn asked_for(&self) {
        self.watch.state().handed.retain(|(id, _)| *id != self.id);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.watch.state();
        state.handed.retain(|(id, _)| *id != self.id);
        state.active -= 1;
        if state.active == 0 {
            state.since = Instant::now();
            drop(state);
            self.watch.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { header: Duration::from_secs(1), idle: Duration::from_secs(10), write: Duration::from_secs(4) };

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn knows_what_is_late() {
        let watch = Watch::new(LIMITS);
        assert_eq!(watch.overdue(), None);
        pass(1).await;
        assert_eq!(watch.overdue(), Some("did not complete its header"));
        let request = watch.begin();
        pass(100).await;
        assert_eq!(watch.overdue(), None, "an answer may take its time");
        request.handed_out();
        pass(3).await;
        assert_eq!(watch.overdue(), None);
        pass(1).await;
        assert_eq!(watch.overdue(), Some("did not take its answer"));
        request.asked_for();
        assert_eq!(watch.overdue(), None);
        watch.wrote(true);
        pass(5).await;
        assert_eq!(watch.overdue(), Some("did not take its answer"));
        watch.wrote(false);
        drop(request);
        pass(9).await;
        assert_eq!(watch.overdue(), None);
        watch.read();
        pass(1).await;
        assert_eq!(watch.overdue(), Some("did not complete its header"));
        drop(watch.begin());
        pass(10).await;
        assert_eq!(watch.overdue(), Some("was idle"));
    }

    #[tokio::test(start_paused = true)]
    async fn http2_control_frames_start_no_header() {
        let watch = Watch::new(LIMITS);
        watch.is_http2();
        watch.read();
        pass(9).await;
        assert_eq!(watch.overdue(), None);
        pass(1).await;
        assert_eq!(watch.overdue(), Some("was idle"));
    }
}
