//! Both ends of a tunnel in a test's hands: clients that ask for one over HTTP/1.1 and HTTP/2, an origin that opens it,
//! and the bytes in between. WebSocket's handshake and frames are written out here, independent of the program's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::quic::{self, QuicClient};

/// Nothing a test waits for takes longer.
const LONGEST: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONGEST, work).await {
        Ok(done) => done,
        Err(_) => panic!("it takes too long: {what}"),
    }
}

/// A stream of bytes, TLS or not.
pub trait Bytewise: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytewise for T {}

/// One end of a tunnel.
pub enum End {
    Tcp(TcpStream),
    Tls(Box<dyn Bytewise>),
    Http2(SendStream<Bytes>, RecvStream),
    /// Frames written and read by hand; what came and was not read.
    Http3(quinn::SendStream, quinn::RecvStream, BytesMut),
}

/// How a direction of a tunnel ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended {
    /// FIN, END_STREAM.
    Cleanly,
    /// TCP reset, or RST_STREAM with this code.
    Reset(Option<Reason>),
    /// RESET_STREAM with this code.
    QuicReset(u64),
}

impl End {
    pub async fn send(&mut self, bytes: &[u8]) {
        soon("sending", async {
            match self {
                Self::Tcp(tcp) => tcp.write_all(bytes).await.expect("sent"),
                Self::Tls(tls) => tls.write_all(bytes).await.expect("sent"),
                Self::Http2(send, _) => {
                    let mut left = Bytes::copy_from_slice(bytes);
                    while !left.is_empty() {
                        send.reserve_capacity(left.len());
                        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
                        let room = room.expect("the stream is open").expect("room");
                        send.send_data(left.split_to(room.min(left.len())), false).expect("sent");
                    }
                }
                Self::Http3(send, ..) => {
                    for piece in bytes.chunks(8 * 1024) {
                        send.write_all(&quic::data(piece)).await.expect("sent");
                    }
                }
            }
        })
        .await;
    }

    /// Closes this half.
    pub async fn finish(&mut self) {
        match self {
            Self::Tcp(tcp) => tcp.shutdown().await.expect("shut down"),
            Self::Tls(tls) => tls.shutdown().await.expect("shut down"),
            Self::Http2(send, _) => send.send_data(Bytes::new(), true).expect("ended"),
            Self::Http3(send, ..) => send.finish().expect("ended"),
        }
    }

    /// Cuts it off.
    pub fn reset(self) {
        match self {
            Self::Tcp(tcp) => tcp.set_zero_linger().expect("no linger"),
            Self::Tls(_) => panic!("a test resets TCP or streams"),
            Self::Http2(mut send, _) => send.send_reset(Reason::CANCEL),
            Self::Http3(mut send, mut recv, _) => {
                let cancelled = quinn::VarInt::from_u32(0x10c);
                send.reset(cancelled).expect("reset");
                recv.stop(cancelled).expect("stopped");
            }
        }
    }

    /// What comes next; how it ended if nothing does.
    pub async fn next(&mut self) -> Result<Bytes, Ended> {
        soon("bytes", async {
            let mut piece = BytesMut::with_capacity(64 * 1024);
            let read = match self {
                Self::Tcp(tcp) => tcp.read_buf(&mut piece).await,
                Self::Tls(tls) => tls.read_buf(&mut piece).await,
                Self::Http2(_, recv) => {
                    return match recv.data().await {
                        Some(Ok(data)) => {
                            recv.flow_control().release_capacity(data.len()).expect("credit");
                            Ok(data)
                        }
                        Some(Err(error)) => Err(Ended::Reset(error.reason())),
                        None => Err(Ended::Cleanly),
                    };
                }
                Self::Http3(_, recv, ahead) => return next_frame(recv, ahead).await.map(|(_, payload)| payload),
            };
            match read {
                Ok(0) => Err(Ended::Cleanly),
                Ok(_) => Ok(piece.freeze()),
                Err(_) => Err(Ended::Reset(None)),
            }
        })
        .await
    }

    /// That many bytes, and not one more so far.
    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut all = Vec::with_capacity(count);
        while all.len() < count {
            match self.next().await {
                Ok(piece) => all.extend_from_slice(&piece),
                Err(ended) => panic!("{ended:?} after {} of {count} bytes", all.len()),
            }
        }
        assert_eq!(all.len(), count, "more came than was sent");
        all
    }

    /// The end, with nothing before it.
    pub async fn end(&mut self) -> Ended {
        loop {
            match self.next().await {
                Ok(piece) => assert!(piece.is_empty(), "{piece:?} came instead of the end"),
                Err(ended) => return ended,
            }
        }
    }

    /// Whether nothing comes for a while.
    pub async fn is_silent(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.next()).await.is_err()
    }
}

/// A key, and what a server answers to it (RFC 6455, section 1.3).
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A WebSocket handshake as HTTP/1.1 writes it.
pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}

/// A frame (RFC 6455, section 5.2): final, binary; masked as a client's, or not.
pub fn frame(payload: &[u8], masked: bool) -> Vec<u8> {
    let mut frame = vec![0x82];
    let bit = if masked { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..126 => frame.push(bit | short as u8),
        medium @ 126..0x1_0000 => {
            frame.push(bit | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(bit | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    let mask = if masked { [1, 2, 3, 4] } else { [0; 4] };
    if masked {
        frame.extend_from_slice(&mask);
    }
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Sends a head over HTTP/1.1 and takes the answer's; the connection is the tunnel if that was 101 or 200.
pub async fn ask_http1(address: SocketAddr, request: &str) -> (String, End) {
    let mut tcp = TcpStream::connect(address).await.expect("a connection");
    tcp.write_all(request.as_bytes()).await.expect("sent");
    let head = soon("a response head", crate::origin::read_head(&mut tcp)).await;
    (head, End::Tcp(tcp))
}

/// A connection of HTTP/2 by prior knowledge, once the gateway's SETTINGS are here.
#[derive(Clone)]
pub struct Http2Client(h2::client::SendRequest<Bytes>);

impl Http2Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let (sender, connection) = h2::client::handshake(tcp).await.expect("a handshake");
        tokio::spawn(connection);
        let enabled = || sender.is_extended_connect_protocol_enabled().then_some(());
        crate::eventually("extended CONNECT is announced (RFC 8441)", async || enabled()).await;
        Self(sender)
    }

    /// A request with an open body: the head that answers it, and the stream.
    pub async fn ask(&self, request: Request<()>) -> Result<(Response<()>, End), h2::Error> {
        self.ask_early(request, b"").await
    }

    /// The same, with bytes that do not wait for the answer.
    pub async fn ask_early(
        &self,
        request: Request<()>,
        early: &'static [u8],
    ) -> Result<(Response<()>, End), h2::Error> {
        let mut sender = self.0.clone().ready().await?;
        let (response, mut send) = sender.send_request(request, false)?;
        if !early.is_empty() {
            // Who was refused already has no stream to send it on; the answer tells.
            let _ = send.send_data(Bytes::from_static(early), false);
        }
        let response = soon("a response head", response).await?;
        let (parts, recv) = response.into_parts();
        Ok((Response::from_parts(parts, ()), End::Http2(send, recv)))
    }

    /// Extended CONNECT.
    pub fn request(protocol: &str, path: &str) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = format!("http://a{path}").parse().expect("a URI");
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
        let headers = request.headers_mut();
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        headers.insert("sec-websocket-protocol", HeaderValue::from_static("chat"));
        request
    }
}

/// The next frame that is whole, by type and payload.
async fn next_frame(recv: &mut quinn::RecvStream, ahead: &mut BytesMut) -> Result<(u64, Bytes), Ended> {
    loop {
        let mut rest = &ahead[..];
        if let (Some(kind), Some(length)) = (varint(&mut rest), varint(&mut rest))
            && rest.len() >= length as usize
        {
            let header = ahead.len() - rest.len();
            let mut frame = ahead.split_to(header + length as usize).freeze();
            return Ok((kind, frame.split_off(header)));
        }
        match recv.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => ahead.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err(Ended::Cleanly),
            Err(quinn::ReadError::Reset(code)) => return Err(Ended::QuicReset(code.into_inner())),
            Err(error) => panic!("{error}"),
        }
    }
}

/// RFC 9000, section 16.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let length = 1 << (bytes.first()? >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)) & (u64::MAX >> (66 - 8 * length)))
}

/// A connection of HTTP/3 whose frames are written by hand: crates for it know no `:protocol = websocket`.
pub struct Http3Client {
    quic: QuicClient,
    /// Ours and theirs: neither may close.
    _control: (quinn::SendStream, quinn::RecvStream),
}

impl Http3Client {
    /// Connects, and checks that the gateway's SETTINGS allow extended CONNECT (RFC 9220, section 3).
    pub async fn connect(address: SocketAddr, config: rustls::ClientConfig, name: &str) -> Self {
        let quic = QuicClient::connect(address, config, name).await;
        let control = quic.uni(&quic::control(&[], &[])).await;
        let settings = soon("SETTINGS", async {
            loop {
                let mut stream = quic.connection.accept_uni().await.expect("a stream");
                let mut kind = [0xff];
                stream.read_exact(&mut kind).await.expect("its type");
                if kind == [0] {
                    let settings = next_frame(&mut stream, &mut BytesMut::new()).await.expect("SETTINGS");
                    return (settings, stream);
                }
            }
        });
        let ((kind, payload), theirs) = settings.await;
        let (mut payload, mut numbers) = (&payload[..], Vec::new());
        while let Some(number) = varint(&mut payload) {
            numbers.push(number);
        }
        assert!(kind == 4 && numbers.chunks(2).any(|setting| setting == [8, 1]), "{kind}: {numbers:?}");
        Self { quic, _control: (control, theirs) }
    }

    /// Extended CONNECT: whether the answer is 200, and the stream.
    pub async fn ask(&self, protocol: &str, path: &str) -> (bool, End) {
        let fields = [
            (":method", "CONNECT"),
            (":protocol", protocol),
            (":scheme", "https"),
            (":authority", "edge.example"),
            (":path", path),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "chat"),
        ];
        let (mut send, mut recv) = self.quic.connection.open_bi().await.expect("a stream");
        send.write_all(&quic::headers(&fields)).await.expect("sent");
        let mut ahead = BytesMut::new();
        let (kind, section) = soon("a response head", next_frame(&mut recv, &mut ahead)).await.expect("HEADERS");
        // RFC 9204, appendix A: 25 is `:status: 200`, and nothing refers to a dynamic table.
        (kind == 1 && section.starts_with(&[0, 0, 0xc0 | 25]), End::Http3(send, recv, ahead))
    }
}

/// A request as a tunnelling origin saw it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub path: String,
    /// Of `:protocol`, or of `Upgrade`.
    pub protocol: Option<String>,
    pub headers: HeaderMap,
    /// Counts from 0.
    pub connection: usize,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// An origin that opens a WebSocket to whoever asks for one, but refuses below `/refuse` with 403; other requests are
/// answered 200 `ok`.
pub struct TunnelOrigin {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    asked: UnboundedReceiver<(Asked, Option<End>)>,
}

/// How an origin speaks.
#[derive(Clone)]
pub enum Speaks {
    Http1,
    Http2,
    /// Without SETTINGS_ENABLE_CONNECT_PROTOCOL.
    OldHttp2,
    /// By ALPN, where HTTP/2 is an old one.
    Tls(Arc<rustls::ServerConfig>),
}

impl TunnelOrigin {
    pub async fn start(speaks: Speaks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (sender, asked) = unbounded_channel();
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (speaks, sender) = (speaks.clone(), sender.clone());
                tokio::spawn(async move {
                    match speaks {
                        Speaks::Http1 => http1(tcp, number, sender, End::Tcp).await,
                        Speaks::Http2 => http2(tcp, number, sender, true).await,
                        Speaks::OldHttp2 => http2(tcp, number, sender, false).await,
                        Speaks::Tls(config) => {
                            let Ok(tls) = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await else { return };
                            if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
                                http2(tls, number, sender, false).await;
                            } else {
                                http1(tls, number, sender, |tls| End::Tls(Box::new(tls))).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, connections, asked }
    }

    /// What was asked next, and the tunnel if it was one.
    pub async fn next(&mut self) -> (Asked, Option<End>) {
        soon("a request at the origin", self.asked.recv()).await.expect("the origin runs")
    }

    /// The next tunnel.
    pub async fn tunnel(&mut self) -> (Asked, End) {
        let (asked, end) = self.next().await;
        (asked, end.expect("a tunnel was asked for"))
    }

    /// Whether nobody asked anything that was not looked at.
    pub fn unasked(&mut self) -> bool {
        self.asked.try_recv().is_err()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn http1<S: Bytewise>(
    mut stream: S,
    connection: usize,
    asked: UnboundedSender<(Asked, Option<End>)>,
    end: impl FnOnce(S) -> End,
) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).expect("text");
        let mut words = head.split(' ');
        let mut request = Asked {
            method: words.next().unwrap_or_default().parse().expect("a method"),
            path: words.next().unwrap_or_default().to_owned(),
            protocol: None,
            headers: fields(&head),
            connection,
        };
        request.protocol = request.header("upgrade").map(str::to_owned);
        let opens = request.protocol.is_some() && !request.path.starts_with("/refuse");
        let answer = if opens {
            let accept = accept(request.header("sec-websocket-key").expect("a key"));
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
            )
        } else if request.path.starts_with("/refuse") {
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned()
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        if opens {
            // A test that is over needs no more tunnels.
            let _ = asked.send((request, Some(end(stream))));
            return;
        }
        let _ = asked.send((request, None));
    }
}

/// The fields of a head.
fn fields(head: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in head.lines().skip(1) {
        if let Some((name, value)) = line.split_once(": ") {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
    }
    headers
}

async fn http2<S: Bytewise + 'static>(
    stream: S,
    connection: usize,
    asked: UnboundedSender<(Asked, Option<End>)>,
    extended: bool,
) {
    let mut builder = h2::server::Builder::new();
    if extended {
        builder.enable_connect_protocol();
    }
    let Ok(mut streams) = builder.handshake::<_, Bytes>(stream).await else { return };
    while let Some(Ok((request, mut respond))) = streams.accept().await {
        let (parts, recv) = request.into_parts();
        let request = Asked {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            protocol: parts.extensions.get::<h2::ext::Protocol>().map(|protocol| protocol.as_str().to_owned()),
            headers: parts.headers,
            connection,
        };
        let refuses = request.path.starts_with("/refuse");
        let mut response = Response::new(());
        if request.protocol.is_some() && !refuses {
            response.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("chat"));
            let Ok(send) = respond.send_response(response, false) else { continue };
            let _ = asked.send((request, Some(End::Http2(send, recv))));
            continue;
        }
        *response.status_mut() = if refuses { StatusCode::FORBIDDEN } else { StatusCode::OK };
        response.headers_mut().insert("content-length", HeaderValue::from_static("2"));
        if let Ok(mut send) = respond.send_response(response, false) {
            let _ = send.send_data(Bytes::from_static(if refuses { b"no" } else { b"ok" }), true);
        }
        let _ = asked.send((request, None));
    }
}

/// The answer to a key.
pub fn accept(key: &str) -> String {
    let digest = sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let mut bits: Vec<bool> =
        digest.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect();
    bits.resize(bits.len().div_ceil(6) * 6, false);
    let sextets = bits.chunks(6).map(|bits| bits.iter().fold(0_u8, |sextet, bit| sextet << 1 | u8::from(*bit)));
    let mut text: String = sextets
        .map(|sextet| match sextet {
            0..26 => (b'A' + sextet) as char,
            26..52 => (b'a' + sextet - 26) as char,
            52..62 => (b'0' + sextet - 52) as char,
            62 => '+',
            _ => '/',
        })
        .collect();
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

/// For messages of one or two blocks (RFC 3174, section 6.1).
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = [message, &[0x80]].concat();
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    let mut hash: [u32; 5] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];
    for block in padded.chunks(64) {
        let mut w: Vec<u32> =
            block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().expect("four bytes"))).collect();
        for t in 16..80 {
            w.push((w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
        for (t, word) in w.iter().enumerate() {
            let (f, k) = match t / 20 {
                0 => (d ^ (b & (c ^ d)), 0x5A82_7999),
                1 => (b ^ c ^ d, 0x6ED9_EBA1),
                2 => ((b & c) | (d & (b | c)), 0x8F1B_BCDC),
                _ => (b ^ c ^ d, 0xCA62_C1D6_u32),
            };
            let temp = [a.rotate_left(5), f, e, k, *word].iter().fold(0_u32, |sum, part| sum.wrapping_add(*part));
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, temp);
        }
        for (sum, part) in hash.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let bytes: Vec<u8> = hash.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.try_into().expect("twenty bytes")
}
