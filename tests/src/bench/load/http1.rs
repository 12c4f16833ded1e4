//! HTTP/1.1, in clear text and over TLS, written out by hand.

use std::pin::Pin;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::{Front, Shared};
use crate::bench::message::{Check, KIB, NAME, head, pattern};

pub(super) trait Both: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Both for T {}

type Stream = Pin<Box<dyn Both>>;

fn io(error: std::io::Error) -> String {
    error.to_string()
}

/// A connection, over TLS where the load has that; `alpn` is checked then.
pub(super) async fn connect(shared: &Shared, alpn: &[u8]) -> Result<Stream, String> {
    let socket = TcpSocket::new_v4().map_err(io)?;
    socket.bind(shared.source()).map_err(io)?;
    let tcp = socket.connect(shared.address).await.map_err(io)?;
    tcp.set_nodelay(true).map_err(io)?;
    if shared.load.reset {
        socket2::SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO)).map_err(io)?;
    }
    if shared.load.front == Front::Http1 {
        return Ok(Box::pin(tcp));
    }
    let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(shared.tls.clone()).connect(name, tcp).await.map_err(io)?;
    match tls.get_ref().1.alpn_protocol() {
        Some(agreed) if agreed != alpn => Err(format!("ALPN agreed on {:?}", String::from_utf8_lossy(agreed))),
        _ => Ok(Box::pin(tls)),
    }
}

struct Client {
    stream: Stream,
    buffer: Vec<u8>,
    request: Vec<u8>,
}

impl Client {
    async fn open(shared: &Shared) -> Result<Self, String> {
        let stream = connect(shared, b"http/1.1").await?;
        let room = if shared.load.ask.answer > KIB { 256 * KIB } else { 4 * KIB };
        Ok(Self { stream, buffer: vec![0; room], request: head(&shared.load.ask, NAME, shared.load.ask.path, &[]) })
    }

    async fn ask(&mut self, shared: &Shared) -> Result<(), String> {
        let ask = &shared.load.ask;
        match &shared.load.requests {
            None => self.stream.write_all(&self.request).await.map_err(io)?,
            Some(requests) => {
                let next = shared.next.get();
                shared.next.set((next + 1) % requests.len());
                self.stream.write_all(&requests[next]).await.map_err(io)?;
            }
        }
        if ask.upload > 0 {
            self.stream.write_all(&pattern(ask.upload)).await.map_err(io)?;
        }
        self.stream.flush().await.map_err(io)?;
        let mut filled = 0;
        let end = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await.map_err(io)?;
            if read == 0 {
                return Err("closed before an answer".to_owned());
            }
            filled += read;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = &self.buffer[..end];
        if !head.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&self.buffer[..filled]).into_owned());
        }
        let mut check = Check::new(ask.answer);
        let mut right = check.take(&self.buffer[end..filled]);
        while right && !check.is_complete() {
            let read = self.stream.read(&mut self.buffer).await.map_err(io)?;
            right = read > 0 && check.take(&self.buffer[..read]);
        }
        if right { Ok(()) } else { Err("the content is not what the origin sent".to_owned()) }
    }
}

pub(super) async fn client(shared: &Shared) -> Result<(), String> {
    if shared.load.fresh {
        while shared.another() {
            let begun = shared.turn().await;
            let mut client = Client::open(shared).await?;
            client.ask(shared).await?;
            shared.answered(begun);
        }
        return Ok(());
    }
    let mut client = Client::open(shared).await?;
    while shared.another() {
        let begun = shared.turn().await;
        client.ask(shared).await?;
        shared.answered(begun);
    }
    Ok(())
}

/// A connection that had one answer.
pub(super) async fn once(shared: &Shared) -> Result<impl Sized + use<>, String> {
    let mut client = Client::open(shared).await?;
    client.ask(shared).await?;
    Ok(client.stream)
}
