//! Stop strings over a stream of text pieces: holds back only what may still become a stop string.
//!
//! It knows nothing of tokens; the API feeds it what the detokenizer yields and sends on what it returns.

/// What one piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopResult {
    /// Text that may be sent now. Never contains a stop string, nor the beginning of one that may still complete.
    pub text: String,
    /// Index of the stop string that ended the stream; its text, and all after it, is dropped.
    pub matched: Option<usize>,
}

/// Watches a stream for stop strings that may span pieces.
///
/// The earliest match in the text wins; of several that begin at the same byte, the longest one that is complete when
/// the first completes. After a match everything is dropped.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    /// Non-empty stop strings with their index in the caller's list.
    stops: Vec<(usize, String)>,
    /// Text that may still become a stop string. Shorter than the longest stop string.
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// Watches for `stops`; empty strings among them are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().enumerate().filter(|(_, stop)| !stop.is_empty()).collect();
        Self { stops, held: String::new(), matched: None }
    }

    /// Takes the next piece of text and says what may be sent.
    pub fn push(&mut self, text: &str) -> StopResult {
        if self.matched.is_some() {
            return StopResult { text: String::new(), matched: self.matched };
        }
        if self.stops.is_empty() {
            return StopResult { text: text.to_owned(), matched: None };
        }
        self.held.push_str(text);
        if let Some((at, index)) = self.first_match() {
            self.held.truncate(at);
            self.matched = Some(index);
            return StopResult { text: std::mem::take(&mut self.held), matched: self.matched };
        }
        let keep_from = self.held.len() - self.pending();
        let rest = self.held.split_off(keep_from);
        StopResult { text: std::mem::replace(&mut self.held, rest), matched: None }
    }

    /// The stream is over: what was held back did not become a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Byte position and index of the earliest stop string in the held text.
    fn first_match(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().filter_map(|(index, stop)| {
            let at = self.held.find(stop.as_str())?;
            Some((at, std::cmp::Reverse(stop.len()), *index))
        });
        found.min().map(|(at, _, index)| (at, index))
    }

    /// Bytes at the end of the held text that are a proper beginning of some stop string.
    fn pending(&self) -> usize {
        let text = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            let most = text.len().min(stop.len() - 1);
            // A stop string begins at a character boundary, so a match at the text's end does too.
            (1..=most).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(|(_, stop)| longest(stop)).max().unwrap_or(0)
    }
}
