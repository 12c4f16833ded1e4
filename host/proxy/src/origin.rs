//! Origins within this process: HTTP/1.1 on a connection in memory, in place of a socket.
//!
//! Whatever answers there is none of this crate's business. Above the connection nothing differs: pools, timeouts, retries,
//! streaming and metrics are those of any origin.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;

/// Who answers the requests of a cluster without endpoints.
pub trait Origin: Send + Sync {
    /// Serves HTTP/1.1 on the other end of a connection. Called on the worker's thread, within its `LocalSet`; the future is
    /// dropped where it stands when the connection is closed here, as for a client that is gone.
    fn serve(self: Arc<Self>, connection: DuplexStream) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// Bytes that either end may be ahead of the other.
const BUFFER: usize = 64 * 1024;

/// Our end of such a connection.
pub(crate) struct MemoryStream {
    io: DuplexStream,
    server: JoinHandle<()>,
}

impl MemoryStream {
    pub(crate) fn connect(origin: &Arc<dyn Origin>) -> Self {
        let (io, theirs) = tokio::io::duplex(BUFFER);
        Self { io, server: tokio::task::spawn_local(origin.clone().serve(theirs)) }
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
