//! Server-sent events out of bytes as they come (the HTML standard, section 9.2.6). Pure.

/// Longest event that is read, bytes.
const LIMIT: usize = 16 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its `event:` field, `message` when there is none.
    pub name: String,
    /// Its `data:` lines, joined by line breaks.
    pub data: String,
}

/// An event grew over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is over {LIMIT} bytes")]
pub struct TooLong;

/// Collects bytes into events.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    name: String,
    data: Option<String>,
}

impl Parser {
    /// Takes more bytes and returns the events they complete. Comments and unknown fields are skipped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            // CRLF is one line end, and so are LF and CR alone.
            let second_half = byte == b'\n' && std::mem::take(&mut self.after_cr);
            match byte {
                _ if second_half => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    events.extend(self.end_line());
                }
                _ => {
                    self.after_cr = false;
                    self.line.push(byte);
                }
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > LIMIT {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), self.data.take());
            let named = |name: String| if name.is_empty() { "message".into() } else { name };
            return data.map(|data| Event { name: named(name), data });
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (field, &mut self.data) {
            ("event", _) => self.name = value.into(),
            ("data", Some(data)) => {
                data.push('\n');
                data.push_str(value);
            }
            ("data", none) => *none = Some(value.into()),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn reads_events_however_they_are_cut() {
        let text = ": ping\n\ndata: {\"a\":1}\n\nevent: status\r\ndata:x\r\ndata: y\r\nid: 3\r\n\r\ndata: ü\rdata\r\rdata: [DONE]\n\nevent: lost\n\n";
        let wanted = [
            event("message", "{\"a\":1}"),
            event("status", "x\ny"),
            event("message", "ü\n"),
            event("message", "[DONE]"),
        ];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<_> = text.as_bytes().chunks(size).flat_map(|part| parser.push(part).unwrap()).collect();
            assert_eq!(events, wanted, "pieces of {size} bytes");
        }
    }

    #[test]
    fn refuses_endless_events() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..20).any(|_| parser.push(&piece).is_err()));
    }
}
