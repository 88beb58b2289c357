//! The outside's end of an engine: checks a request, takes a place in the queue, and hands out its event channel.

use super::shared::Shared;
use super::stream::Submission;
use super::{Event, Request, Stats, SubmitError};
use crate::exec::RoutingCounts;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc;

/// Events a request's channel holds. A reader that is so far behind stalls its own sequence.
pub(super) const EVENTS: usize = 256;

/// A running engine. Dropping the last clone of it stops the thread after its current step.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// `None` once the handle shuts down. Dropping it tells the thread to stop.
    inbox: Mutex<Option<SyncSender<Submission>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    routing: Option<Arc<RoutingCounts>>,
}

impl Handle {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: SyncSender<Submission>,
        thread: JoinHandle<()>,
        routing: Option<Arc<RoutingCounts>>,
    ) -> Handle {
        let (inbox, thread) = (Mutex::new(Some(inbox)), Mutex::new(Some(thread)));
        Handle { inner: Arc::new(Inner { shared, inbox, thread, routing }) }
    }

    /// Queues a request. Dropping the receiver cancels it. The channel is bounded: a reader that is slow stalls its own
    /// sequence and no other. A channel that closes without [`Event::Done`] or [`Event::Error`] belongs to an engine that
    /// was dropped.
    ///
    /// # Errors
    /// [`SubmitError`]: the request cannot run, the queue is full, or the engine takes no more. Never waits.
    pub fn submit(&self, request: Request) -> Result<mpsc::Receiver<Event>, SubmitError> {
        check(&request, &self.inner.shared)?;
        self.submit_unchecked(request)
    }

    /// [`Handle::submit`] for a request that was checked.
    pub(super) fn submit_unchecked(&self, request: Request) -> Result<mpsc::Receiver<Event>, SubmitError> {
        let shared = &self.inner.shared;
        if !shared.is_open() {
            return Err(SubmitError::Closing);
        }
        let full = || SubmitError::QueueFull { limit: shared.queue, retry_after: shared.retry_after() };
        let ticket = shared.ticket().ok_or_else(full)?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let submission = Submission { request, events, ticket, submitted: Instant::now() };
        let inbox = self.inner.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = inbox.as_ref() else { return Err(SubmitError::Closing) };
        match inbox.try_send(submission) {
            Ok(()) => Ok(receiver),
            Err(TrySendError::Full(_)) => Err(full()),
            Err(TrySendError::Disconnected(_)) => Err(SubmitError::Closing),
        }
    }

    /// Figures now; cheap, never waits for the engine.
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }

    /// How often each expert was chosen since the start; `None` for a model without. Never waits for the engine.
    pub fn routing(&self) -> Option<&RoutingCounts> {
        self.inner.routing.as_deref()
    }

    /// Context per sequence in tokens.
    pub fn context(&self) -> usize {
        self.inner.shared.context
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.inner.shared.vocab
    }

    /// Takes no further requests; running and queued ones finish.
    pub fn close(&self) {
        self.inner.shared.close();
    }

    /// True when the engine thread ended by a bug; every stream got an error and nothing is taken any more.
    pub fn is_dead(&self) -> bool {
        self.inner.shared.is_dead()
    }

    /// Stops the thread after its current step and waits for its end. Streams that still run get an error. Blocks: not
    /// for asynchronous code.
    pub fn shutdown(&self) {
        self.close();
        drop(self.inner.inbox.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was reported by itself.
            let _ = thread.join();
        }
    }
}

/// What the edge has checked already, checked again where it costs nothing.
fn check(request: &Request, shared: &Shared) -> Result<(), SubmitError> {
    let (prompt, context, vocab) = (request.prompt.len(), shared.context, shared.vocab);
    if prompt == 0 {
        return Err(SubmitError::Empty);
    }
    if prompt >= context {
        return Err(SubmitError::TooLong { prompt, context });
    }
    match request.prompt.iter().find(|id| **id as usize >= vocab) {
        Some(&id) => Err(SubmitError::BadToken { id, vocab }),
        None => Ok(()),
    }
}
