//! Peers that speak HTTP/3 byte by byte, right or wrong.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, TransportConfig};

const LONGEST: Duration = Duration::from_secs(30);

/// A variable-length integer (RFC 9000, section 16).
pub fn varint(value: u64) -> Vec<u8> {
    match value {
        ..0x40 => vec![value as u8],
        0x40..0x4000 => (value as u16 | 0x4000).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
        _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
    }
}

/// A frame (RFC 9114, section 7.1).
pub fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [varint(kind), varint(payload.len() as u64), payload.to_vec()].concat()
}

/// A field section of literals only (RFC 9204, section 4.5.6).
pub fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0, 0];
    let string = |out: &mut Vec<u8>, flags: u8, prefix: u32, text: &str| {
        let most = (1 << prefix) - 1;
        if text.len() < most {
            out.push(flags | text.len() as u8);
        } else {
            out.push(flags | most as u8);
            let mut rest = text.len() - most;
            while rest >= 0x80 {
                out.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
        out.extend_from_slice(text.as_bytes());
    };
    for (name, value) in fields {
        string(&mut out, 0x20, 3, name);
        string(&mut out, 0, 7, value);
    }
    out
}

/// A HEADERS frame.
pub fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(0x1, &section(fields))
}

pub fn data(bytes: &[u8]) -> Vec<u8> {
    frame(0x0, bytes)
}

/// The head of a GET, with more fields.
pub fn get(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "edge.example"), (":path", path)];
    headers(&[&fields[..], more].concat())
}

/// The head of a POST.
pub fn post(more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [(":method", "POST"), (":scheme", "https"), (":authority", "edge.example"), (":path", "/")];
    headers(&[&fields[..], more].concat())
}

/// A control stream with these settings, and what follows them.
pub fn control(settings: &[(u64, u64)], more: &[u8]) -> Vec<u8> {
    let payload: Vec<u8> = settings.iter().flat_map(|(id, value)| [varint(*id), varint(*value)].concat()).collect();
    [varint(0), frame(0x4, &payload), more.to_vec()].concat()
}

/// A client without any HTTP/3 of its own.
pub struct QuicClient {
    endpoint: quinn::Endpoint,
    pub connection: Connection,
}

impl QuicClient {
    pub async fn connect(address: SocketAddr, tls: rustls::ClientConfig, name: &str) -> Self {
        Self::with(address, tls, name, TransportConfig::default()).await.expect("a connection")
    }

    pub async fn with(
        address: SocketAddr,
        tls: rustls::ClientConfig,
        name: &str,
        transport: TransportConfig,
    ) -> Result<Self, ConnectionError> {
        let (endpoint, connecting) = Self::begin(address, tls, name, transport);
        let connection = tokio::time::timeout(LONGEST, connecting).await.expect("a handshake in time")?;
        Ok(Self { endpoint, connection })
    }

    /// Comes back to say something in early data, if the last connection left it a ticket for that. The second value tells
    /// in the end whether it was taken.
    pub fn early(address: SocketAddr, tls: rustls::ClientConfig, name: &str) -> Option<(Self, quinn::ZeroRttAccepted)> {
        let (endpoint, connecting) = Self::begin(address, tls, name, TransportConfig::default());
        let (connection, accepted) = connecting.into_0rtt().ok()?;
        Some((Self { endpoint, connection }, accepted))
    }

    fn begin(
        address: SocketAddr,
        tls: rustls::ClientConfig,
        name: &str,
        transport: TransportConfig,
    ) -> (quinn::Endpoint, quinn::Connecting) {
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        let connecting = endpoint.connect_with(config, address, name).expect("a configuration");
        (endpoint, connecting)
    }

    /// Opens a unidirectional stream that begins with these bytes.
    pub async fn uni(&self, bytes: &[u8]) -> SendStream {
        let mut send = self.connection.open_uni().await.expect("a stream");
        // A gateway that closed already is the test's to notice.
        let _ = send.write_all(bytes).await;
        send
    }

    /// Opens a request stream that begins with these bytes.
    pub async fn stream(&self, bytes: &[u8]) -> (SendStream, Answering) {
        let (mut send, recv) = self.connection.open_bi().await.expect("a stream");
        let _ = send.write_all(bytes).await;
        (send, Answering::new(recv))
    }

    /// Sends a whole request, and takes the whole response.
    pub async fn ask(&self, bytes: &[u8]) -> Result<RawAnswer, u64> {
        self.send(bytes).await.answer().await
    }

    /// Sends a whole request; the response is still to come.
    pub async fn send(&self, bytes: &[u8]) -> Answering {
        let (mut send, answering) = self.stream(bytes).await;
        let _ = send.finish();
        answering
    }

    /// The code that the gateway closes the connection with.
    pub async fn closed(&self) -> u64 {
        code(&tokio::time::timeout(LONGEST, self.connection.closed()).await.expect("the connection is closed"))
    }

    /// Goes on from another port, as after a change of network (RFC 9000, section 9).
    pub fn moves(&self) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        self.endpoint.rebind(socket).expect("another socket");
    }
}

fn code(error: &ConnectionError) -> u64 {
    match error {
        ConnectionError::ApplicationClosed(closed) => closed.error_code.into_inner(),
        other => panic!("not closed by HTTP/3: {other}"),
    }
}

/// What came on a stream.
#[derive(Debug, Default)]
pub struct RawAnswer {
    /// All of them, interim ones too.
    pub statuses: Vec<u16>,
    pub body: Vec<u8>,
    /// HEADERS after the content.
    pub trailers: bool,
}

impl RawAnswer {
    pub fn status(&self) -> u16 {
        self.statuses.last().copied().unwrap_or(0)
    }
}

/// A response that comes.
pub struct Answering {
    recv: RecvStream,
    ahead: VecDeque<u8>,
}

impl Answering {
    pub fn new(recv: RecvStream) -> Self {
        Self { recv, ahead: VecDeque::new() }
    }

    /// The next frame, `None` at the end, or the code that the stream is reset with.
    pub async fn frame(&mut self) -> Result<Option<(u64, Vec<u8>)>, u64> {
        let Some(first) = self.byte().await? else { return Ok(None) };
        let kind = self.number(first).await?;
        let first = self.byte().await?.expect("a length");
        let length = self.number(first).await?;
        let mut payload = Vec::new();
        for _ in 0..length {
            payload.push(self.byte().await?.expect("a whole frame"));
        }
        Ok(Some((kind, payload)))
    }

    /// Wants no more.
    pub fn stop(&mut self, code: u32) {
        let _ = self.recv.stop(code.into());
    }

    /// The type that a unidirectional stream begins with.
    pub async fn kind(&mut self) -> Result<u64, u64> {
        let first = self.byte().await?.expect("a type");
        self.number(first).await
    }

    pub async fn answer(mut self) -> Result<RawAnswer, u64> {
        let mut answer = RawAnswer::default();
        while let Some((kind, payload)) = self.frame().await? {
            match kind {
                0x0 => answer.body.extend_from_slice(&payload),
                0x1 if answer.body.is_empty() && answer.statuses.last().is_none_or(|status| *status < 200) => {
                    answer.statuses.push(status(&payload));
                }
                0x1 => answer.trailers = true,
                _ => {}
            }
        }
        Ok(answer)
    }

    async fn number(&mut self, first: u8) -> Result<u64, u64> {
        let mut value = u64::from(first & 0x3f);
        for _ in 1..1 << (first >> 6) {
            value = value << 8 | u64::from(self.byte().await?.expect("a whole number"));
        }
        Ok(value)
    }

    async fn byte(&mut self) -> Result<Option<u8>, u64> {
        while self.ahead.is_empty() {
            let read = tokio::time::timeout(LONGEST, self.recv.read_chunk(64 * 1024, true));
            match read.await.expect("something comes") {
                Ok(Some(chunk)) => self.ahead.extend(chunk.bytes),
                Ok(None) => return Ok(None),
                Err(ReadError::Reset(code)) => return Err(code.into_inner()),
                Err(ReadError::ConnectionLost(error)) => return Err(code(&error)),
                Err(error) => panic!("{error}"),
            }
        }
        Ok(self.ahead.pop_front())
    }
}

/// The status of a response's section: an entry of the static table, or a literal value with its name.
fn status(section: &[u8]) -> u16 {
    match &section[2..] {
        // By Huffman's code where that is shorter: 0 to 2 have five bits, the other digits six (RFC 7541, appendix B).
        [0x5f, 0x09, 0x82, one, two, ..] => {
            let (bits, mut at, mut number) = (u32::from(*one) << 24 | u32::from(*two) << 16, 0, 0);
            for _ in 0..3 {
                let next = |length: u32| bits << at >> (32 - length);
                let (digit, length) = if next(5) < 3 { (next(5), 5) } else { (next(6) - 0x19 + 3, 6) };
                number = number * 10 + digit as u16;
                at += length;
            }
            number
        }
        [0x5f, 0x09, 0x03, digits @ ..] => {
            std::str::from_utf8(&digits[..3]).expect("digits").parse().expect("a number")
        }
        [0xff, offset, ..] => [100, 204, 206, 302, 400, 403, 421, 425, 500][usize::from(*offset)],
        [index, ..] => [103, 200, 304, 404, 503][usize::from(*index & 0x3f) - 24],
        [] => panic!("an empty section"),
    }
}

/// An origin that speaks HTTP/3 byte by byte.
pub struct QuicOrigin {
    pub address: SocketAddr,
    connections: Arc<std::sync::atomic::AtomicUsize>,
}

impl QuicOrigin {
    /// `serve` gets each connection and its number, from 0.
    pub async fn start<F>(
        tls: rustls::ServerConfig,
        serve: impl Fn(Connection, usize) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::limited(tls, 100, serve).await
    }

    /// The same, with so many streams at once.
    pub async fn limited<F>(
        tls: rustls::ServerConfig,
        streams: u32,
        serve: impl Fn(Connection, usize) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("TLS 1.3");
        let mut transport = TransportConfig::default();
        transport.max_concurrent_bidi_streams(streams.into());
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = endpoint.local_addr().expect("an address");
        let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if let Ok(connection) = incoming.await {
                    tokio::spawn(serve(connection, count.fetch_add(1, std::sync::atomic::Ordering::SeqCst)));
                }
            }
        });
        Self { address, connections }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(std::sync::atomic::Ordering::SeqCst)
    }
}
