//! Lines from a worker, within bounds: neither a line without end nor one that is no UTF-8 can hurt the reader. Used for
//! the control channel and for standard error.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reads the next line without its line break. Bytes beyond `most` are dropped and the line ends with `…`; what is not
/// UTF-8 becomes U+FFFD. `None` at the end of the stream, and after an error, which for a pipe means the same.
pub async fn next_line<R: AsyncBufRead + Unpin>(reader: &mut R, most: usize) -> Option<String> {
    let mut line = Vec::new();
    let mut dropped = false;
    loop {
        let available = match reader.fill_buf().await {
            Ok([]) | Err(_) if line.is_empty() => return None,
            Ok([]) | Err(_) => break,
            Ok(bytes) => bytes,
        };
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let room = most - line.len();
        dropped |= part.len() > room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = end.map_or(part.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            break;
        }
    }
    let mut text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
    if dropped {
        text.push('…');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    async fn all(bytes: &[u8]) -> Vec<String> {
        // A tiny buffer, so that lines span several reads.
        let mut reader = BufReader::with_capacity(3, bytes);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader, 8).await {
            lines.push(line);
        }
        lines
    }

    #[tokio::test]
    async fn lines_are_cut_and_repaired() {
        assert_eq!(all(b"one\r\n\ntwo").await, ["one", "", "two"]);
        assert_eq!(all(b"123456789\n12345678\n").await, ["12345678…", "12345678"]);
        assert_eq!(all(b"a\xffb\n").await, ["a\u{fffd}b"]);
        assert!(all(b"").await.is_empty());
    }
}
