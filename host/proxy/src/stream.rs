//! A byte stream that may be TCP, TLS or memory, and that gives back what was read ahead of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::origin::MemoryStream;

/// One connection's bytes, either side. TLS states are boxed: they are ten times the size of a socket.
pub(crate) enum Transport {
    Tcp(TcpStream),
    ServerTls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    ClientTls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// To an origin within this process.
    Memory(MemoryStream),
}

/// A transport, with bytes that were read to find out what it speaks and are still to be consumed.
pub(crate) struct Stream {
    ahead: Bytes,
    transport: Transport,
}

impl Stream {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { ahead: Bytes::new(), transport }
    }

    /// Gives back bytes that were read: they are delivered before anything else.
    pub(crate) fn put_back(self, ahead: Bytes) -> Self {
        let ahead = if self.ahead.is_empty() { ahead } else { [ahead, self.ahead].concat().into() };
        Self { ahead, transport: self.transport }
    }

    fn tcp(&self) -> Option<&TcpStream> {
        match &self.transport {
            Transport::Tcp(tcp) => Some(tcp),
            Transport::ServerTls(tls) => Some(tls.get_ref().0),
            Transport::ClientTls(tls) => Some(tls.get_ref().0),
            Transport::Memory(_) => None,
        }
    }

    /// Ready when a read may find something. TLS and memory say so always: only reading tells.
    pub(crate) fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.transport {
            Transport::Tcp(tcp) if self.ahead.is_empty() => tcp.poll_read_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Makes the close of this stream a reset: the peer must not take what it got for a whole message.
    pub(crate) fn reset_on_close(&self) {
        // Memory has no other close than one that drops who serves it.
        if let Some(tcp) = self.tcp() {
            reset_on_close(tcp);
        }
    }
}

/// Makes the close of this connection a reset.
pub(crate) fn reset_on_close(tcp: &TcpStream) {
    // A socket that is already gone needs no reset.
    let _ = socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.has_remaining() {
            let take = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(take));
            return Poll::Ready(Ok(()));
        }
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::ServerTls(tls) => Pin::new(tls).poll_read(cx, buf),
            Transport::ClientTls(tls) => Pin::new(tls).poll_read(cx, buf),
            Transport::Memory(memory) => Pin::new(memory).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::ServerTls(tls) => Pin::new(tls).poll_write(cx, buf),
            Transport::ClientTls(tls) => Pin::new(tls).poll_write(cx, buf),
            Transport::Memory(memory) => Pin::new(memory).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::ServerTls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Transport::ClientTls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Transport::Memory(memory) => Pin::new(memory).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        // rustls copies into records anyway and takes slices well; TCP has writev.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::ServerTls(tls) => Pin::new(tls).poll_flush(cx),
            Transport::ClientTls(tls) => Pin::new(tls).poll_flush(cx),
            Transport::Memory(memory) => Pin::new(memory).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::ServerTls(tls) => Pin::new(tls).poll_shutdown(cx),
            Transport::ClientTls(tls) => Pin::new(tls).poll_shutdown(cx),
            Transport::Memory(memory) => Pin::new(memory).poll_shutdown(cx),
        }
    }
}
