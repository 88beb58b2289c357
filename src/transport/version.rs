//! HTTP/1 or HTTP/2 (prior knowledge), told by the first four bytes. Done here because hyper-util's automatic choice
//! closes a connection whose HTTP/1 header is malformed without the 400 or 431 that hyper's own HTTP/1 server sends.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How an HTTP/2 connection begins (RFC 9113, section 3.4); no HTTP/1 method does.
const HTTP2_START: [u8; 4] = *b"PRI ";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or 1.1, or nonsense that an HTTP/1 server knows how to refuse.
    Http1,
    /// HTTP/2 without TLS or upgrade.
    Http2,
}

/// A connection whose first bytes were looked at; reading it begins with them.
#[derive(Debug)]
pub struct Begun<I> {
    io: I,
    start: [u8; HTTP2_START.len()],
    /// Bytes of `start` that came, and that were read again.
    came: usize,
    read: usize,
}

/// Reads just enough to tell the versions apart. Gives up when `stop` resolves before anything came: nothing was asked
/// then, so nothing is lost. How long the client may take is the caller's business.
///
/// # Errors
/// The connection ended or failed, or `stop`.
pub async fn begin<I: AsyncRead + Unpin>(io: I, stop: impl Future<Output = ()>) -> io::Result<(Version, Begun<I>)> {
    let mut begun = Begun { io, start: [0; HTTP2_START.len()], came: 0, read: 0 };
    let mut stop = pin!(stop);
    while begun.came < HTTP2_START.len() && HTTP2_START.starts_with(&begun.start[..begun.came]) {
        let count = tokio::select! {
            count = begun.io.read(&mut begun.start[begun.came..]) => count?,
            () = &mut stop, if begun.came == 0 => 0,
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        begun.came += count;
    }
    Ok((if begun.start == HTTP2_START { Version::Http2 } else { Version::Http1 }, begun))
}

impl<I: AsyncRead + Unpin> AsyncRead for Begun<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read == self.came {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let count = (self.came - self.read).min(buffer.remaining());
        buffer.put_slice(&self.start[self.read..self.read + count]);
        self.read += count;
        // What is there already comes along: four bytes alone would be parsed, and might be refused, for themselves.
        match Pin::new(&mut self.io).poll_read(cx, buffer) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Begun<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn the_first_bytes_tell_the_version_and_are_read_again() {
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n", Version::Http1),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Version::Http2),
            ("PRINT / HTTP/1.1\r\n\r\n", Version::Http1),
            ("\x16\x03\x01", Version::Http1),
        ];
        for (text, version) in cases {
            let (mut client, server) = tokio::io::duplex(64);
            let sending = tokio::spawn(async move {
                for byte in text.as_bytes() {
                    client.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let (found, mut begun) = begin(server, pending()).await.unwrap();
            let mut read = String::new();
            begun.read_to_string(&mut read).await.unwrap();
            assert_eq!((found, read.as_str()), (version, text));
            sending.await.unwrap();
        }
        for text in ["", "PRI"] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(text.as_bytes()).await.unwrap();
            drop(client);
            assert!(begin(server, pending()).await.is_err(), "{text:?}");
        }
        let (_client, server) = tokio::io::duplex(64);
        assert!(begin(server, ready(())).await.is_err(), "stopped before it asked anything");
    }
}
