//! A connection that tells what came in one read: the request-splitting bug of the real daemon shows only there.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Bytes that came after the last header's end, in the same read.
#[derive(Clone, Debug, Default)]
pub(super) struct AfterHeader(Arc<AtomicUsize>);

impl AfterHeader {
    /// How many bytes of the body came together with the header.
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A TCP stream that notes where each header ended.
pub(super) struct Noting {
    stream: TcpStream,
    after: AfterHeader,
    tail: Vec<u8>,
}

impl Noting {
    pub(super) fn new(stream: TcpStream, after: AfterHeader) -> Self {
        Self { stream, after, tail: Vec::new() }
    }

    fn note(&mut self, chunk: &[u8]) {
        // The end of a header may be split between two reads: its beginning is kept from the one before.
        let seen = [self.tail.as_slice(), chunk].concat();
        if let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
            self.after.0.store(seen.len() - at - 4, Ordering::Relaxed);
        }
        self.tail = seen[seen.len().saturating_sub(3)..].to_vec();
    }
}

impl AsyncRead for Noting {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            this.note(&buffer.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Noting {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
