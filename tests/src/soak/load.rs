//! What the clients of a soak do: good requests of every kind, faults that they ask for by name, and bad manners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::ask::{Ask, Content, NAME, Session, Want};
use super::chance::{Chance, pattern};
use super::tally::Tally;
use crate::tunnel::{Ended, Http2Client, Http3Client, ask_http1, frame, handshake};

/// Nothing takes longer: what does hangs.
const LONGEST: Duration = Duration::from_secs(45);

/// What all clients share.
pub(super) struct World {
    /// TLS, all three versions.
    pub(super) edge: SocketAddr,
    /// Clear text.
    pub(super) plain: SocketAddr,
    /// For HTTP/1.1, HTTP/2 and HTTP/3.
    pub(super) tls: [Arc<rustls::ClientConfig>; 3],
    pub(super) tally: Tally,
    pub(super) stop: AtomicBool,
    pub(super) refusals: AtomicU64,
}

/// One client until the end.
pub(super) async fn client(world: Arc<World>, mut chance: Chance) {
    while !world.stop.load(Ordering::Relaxed) {
        one(&world, &mut chance).await;
        tokio::time::sleep(chance.millis(2, 40)).await;
    }
}

/// Every kind of thing once, so that whatever is made on first use is there.
pub(super) async fn everything(world: &Arc<World>, mut chance: Chance) {
    for kind in 0..KINDS {
        some(world, &mut chance, kind).await;
    }
}

async fn one(world: &Arc<World>, chance: &mut Chance) {
    let kind = if chance.one_in(4) { 5 + chance.below(KINDS - 5) } else { chance.below(5) };
    some(world, chance, kind).await;
}

/// Five sessions, then what is odd.
const KINDS: usize = 15;

async fn some(world: &Arc<World>, chance: &mut Chance, kind: usize) {
    let (edge, plain) = (world.edge, world.plain);
    let mut own = Chance::new(chance.below(usize::MAX) as u64, 1);
    match kind {
        0 => session(world, chance, "h1", plain, Version::HTTP_11, None).await,
        1 => session(world, chance, "h1 tls", edge, Version::HTTP_11, Some(0)).await,
        2 => session(world, chance, "h2", plain, Version::HTTP_2, None).await,
        3 => session(world, chance, "h2 tls", edge, Version::HTTP_2, Some(1)).await,
        4 => session(world, chance, "h3", edge, Version::HTTP_3, Some(2)).await,
        5 => alone(world, "h1", "pipelined", async move { pipelined(plain, &mut own).await }).await,
        6 => alone(world, "h1", "expect", async move { expects(plain, &mut own).await }).await,
        7 => alone(world, "h1", "garbage", async move { garbage(plain, &mut own).await }).await,
        8 => alone(world, "h1 tls", "garbage", async move { garbage(edge, &mut own).await }).await,
        9 => alone(world, "h3", "garbage", async move { datagrams(edge, &mut own).await }).await,
        10 => alone(world, "h1 tls", "half a handshake", half_open(edge)).await,
        11 => alone(world, "h1", "websocket", async move { websocket1(plain, &mut own).await }).await,
        12 => alone(world, "h2", "websocket", off_thread(move || websocket2(plain, own))).await,
        13 => {
            let tls = (*world.tls[2]).clone();
            alone(world, "h3", "websocket", async move { websocket3(edge, tls, &mut own).await }).await;
        }
        _ => alone(world, "h1", "connect", async move { connect(plain, &mut own).await }).await,
    }
}

/// Runs something that may fail by a panic, as the harness does, or not end.
async fn alone(
    world: &World,
    protocol: &str,
    kind: &'static str,
    work: impl Future<Output = Result<(), String>> + Send + 'static,
) {
    let outcome = match tokio::time::timeout(LONGEST, tokio::spawn(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(format!("{panic}")),
        Err(_) => Err("it hangs".to_owned()),
    };
    world.tally.note(protocol, kind, outcome);
}

/// One connection and some requests on it, at once where the version can.
async fn session(
    world: &Arc<World>,
    chance: &mut Chance,
    protocol: &'static str,
    address: SocketAddr,
    version: Version,
    tls: Option<usize>,
) {
    let tls = tls.map(|which| world.tls[which].clone());
    let opened = tokio::time::timeout(LONGEST, Session::open(address, version, tls)).await;
    let mut session = match opened {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return world.tally.note(protocol, "handshake", Err(error.to_string())),
        Err(_) => return world.tally.note(protocol, "handshake", Err("it hangs".to_owned())),
    };
    for _ in 0..=chance.below(8) {
        let mut asks = vec![request(world, chance, version)];
        if session.share().is_some() {
            asks.extend((0..chance.below(5)).map(|_| request(world, chance, version)));
        }
        let (last, others) = asks.split_last().expect("one at least");
        let others: Vec<_> = others
            .iter()
            .filter_map(|ask| {
                let (mut session, ask, world) = (session.share()?, ask.clone(), world.clone());
                Some(tokio::spawn(async move {
                    answered(&world, protocol, &mut session, &ask).await;
                }))
            })
            .collect();
        let goes_on = answered(world, protocol, &mut session, last).await;
        for other in others {
            if let Err(panic) = other.await {
                world.tally.note(protocol, "client", Err(panic.to_string()));
            }
        }
        if !goes_on && version == Version::HTTP_11 {
            return;
        }
        tokio::time::sleep(chance.millis(0, 20)).await;
    }
}

/// Whether an HTTP/1.1 connection goes on after it.
async fn answered(world: &World, protocol: &str, session: &mut Session, ask: &Ask) -> bool {
    match tokio::time::timeout(LONGEST, session.ask(ask)).await {
        Ok(got) => {
            world.tally.note(protocol, ask.name, got.judge(ask));
            // A response that came before the request was whole ends the connection; one that is cut off, too.
            ask.leave.is_none() && matches!(ask.want, Want::Bytes(_) | Want::Status(_))
        }
        Err(_) => {
            world.tally.note(protocol, ask.name, Err(format!("{} {} hangs", ask.method, ask.path)));
            false
        }
    }
}

fn request(world: &World, chance: &mut Chance, version: Version) -> Ask {
    if chance.one_in(4) { fault(world, chance) } else { good(chance, version) }
}

/// On the routes that lead to good origins.
fn good(chance: &mut Chance, version: Version) -> Ask {
    let route = chance.of(&["h1", "h1", "h2", "h2", "h3", "flap", "tenant", "private"]);
    let seed = chance.below(1000);
    let down = |length: usize| (format!("/{route}/down/{length}/{seed}"), Want::Bytes(pattern(seed, length)));
    let up = |name, content: Content| {
        let bytes = match &content {
            Content::Whole(bytes) | Content::Pieces(bytes, ..) => bytes.clone(),
            Content::Nothing => Bytes::new(),
        };
        let mut ask = Ask::get(name, format!("/{route}/echo"), Want::Bytes(bytes));
        (ask.method, ask.content) = (Method::POST, content);
        ask
    };
    match chance.below(12) {
        0..=2 => {
            let (path, want) = down(chance.size(300_000));
            Ask::get("download", path, want)
        }
        3..=4 => up("upload", Content::Whole(pattern(seed, chance.size(200_000)))),
        5 => {
            let size = 1 + chance.below(20_000);
            up("upload chunked", Content::Pieces(pattern(seed, chance.size(200_000)), size, Duration::ZERO))
        }
        6 => {
            // Of nothing, hyper does not say how much it is.
            let (path, want) = down(1 + chance.size(50_000));
            let mut ask = Ask::get("head", path.replace("/h3/", "/h1/"), want);
            ask.method = Method::HEAD;
            ask
        }
        7 => {
            let size = 1 + chance.below(2_000);
            let mut ask = up("grpc", Content::Pieces(pattern(seed, chance.size(10_000)), size, chance.millis(0, 3)));
            if version == Version::HTTP_11 {
                // It has no trailers for those who read with hyper.
                ask.name = "upload chunked";
                return ask;
            }
            ask.path = chance.of(&["/h2/echo", "/h3/echo"]).to_owned();
            ask.fields = vec![("content-type", "application/grpc".to_owned()), ("te", "trailers".to_owned())];
            ask
        }
        8 => {
            let count = chance.below(20);
            let events: String = (0..count).map(|event| format!("data: {event}\n\n")).collect();
            Ask::get("event stream", format!("/{route}/events/{count}"), Want::Bytes(events.into()))
        }
        9 => up("slow sender", Content::Pieces(pattern(seed, 5_000 + chance.below(5_000)), 700, chance.millis(5, 40))),
        10 => {
            let (path, want) = down(50_000 + chance.below(250_000));
            let mut ask = Ask::get("slow reader", path, want);
            ask.pause = chance.millis(1, 12);
            ask
        }
        _ => {
            let (path, want) = down(300_000 + chance.below(500_000));
            let mut ask = Ask::get("leaves half-way", path, want);
            ask.leave = Some(1 + chance.below(100_000));
            ask
        }
    }
}

/// On the routes that lead to bad origins: the path says what happens, so it is known what must come.
fn fault(world: &World, chance: &mut Chance) -> Ask {
    const TERMINATED: Want = Want::Fault(502, "connection_terminated");
    const INCOMPLETE: Want = Want::Fault(502, "http_response_incomplete");
    const INVALID: Want = Want::Fault(502, "http_protocol_error");
    let ok = || Want::Bytes(Bytes::from_static(b"ok"));
    let id = world.refusals.fetch_add(1, Ordering::Relaxed);
    let (name, path, want) = match chance.below(21) {
        0 => ("origin resets", "/f1/reset", TERMINATED),
        1 => ("origin closes", "/f1/close", TERMINATED),
        2 => ("origin truncates", "/f1/truncated", Want::Cut),
        3 => ("origin never ends", "/f1/unended", Want::Cut),
        4 => ("origin talks nonsense", "/f1/garbage", INVALID),
        5 => ("two lengths", "/f1/lengths", INVALID),
        6 => ("invalid chunks", "/f1/chunks", Want::Cut),
        7 => ("origin never answers", "/f1/never", Want::Fault(504, "http_response_timeout")),
        8 => ("origin stalls", "/f1/stall", Want::Cut),
        9 => ("bytes nobody asked for", "/f1/extra", ok()),
        10 => ("origin says 500", "/f1/500", Want::Status(500)),
        11 => ("origin says 503", "/f1/503", Want::Status(503)),
        12 => ("slow origin", "/f1/slow", ok()),
        13 => ("idle closes", "/closing/ok", ok()),
        14 => ("h2 refuses", "/f2/refuse", INCOMPLETE),
        15 => ("h2 refuses once", "/f2/once/ID/refuse", ok()),
        16 => ("h2 cancels", "/f2/cancel", INCOMPLETE),
        17 => ("h2 cuts off", "/f2/cut", Want::Cut),
        18 => ("h2 goes away", "/f2/goaway", ok()),
        19 => ("h3 rejects", "/f3reject/x", INCOMPLETE),
        _ => ("h3 cuts off", "/f3cut/x", Want::Cut),
    };
    let mut ask = Ask::get(name, path.replace("ID", &id.to_string()), want);
    // What is refused may be sent again whatever it is; what is idempotent, whatever became of it.
    if path.starts_with("/f2/") && chance.one_in(3) {
        (ask.method, ask.content) = (Method::POST, Content::Whole(pattern(7, 1 + chance.below(3_000))));
    } else if name == "origin resets" && chance.one_in(2) {
        (ask.method, ask.content) = (Method::POST, Content::Whole(pattern(7, 100)));
    } else if name == "h2 refuses" && chance.one_in(2) {
        (ask.path, ask.want, ask.name) = ("/f2close/x".to_owned(), TERMINATED, "h2 closes");
    }
    ask
}

/// RFC 9112, section 9.3.2: answers in the order of the requests.
async fn pipelined(address: SocketAddr, chance: &mut Chance) -> Result<(), String> {
    let asked: Vec<(usize, usize)> = (0..2 + chance.below(5)).map(|seed| (seed, chance.size(20_000))).collect();
    let mut bytes = String::new();
    for (at, (seed, length)) in asked.iter().enumerate() {
        let last = if at + 1 == asked.len() { "Connection: close\r\n" } else { "" };
        bytes += &format!("GET /h1/down/{length}/{seed} HTTP/1.1\r\nHost: {NAME}\r\n{last}\r\n");
    }
    let all = said(address, bytes.as_bytes()).await?;
    let mut rest = &all[..];
    for (seed, length) in asked {
        let (head, after) = split_head(rest).ok_or("a head is missing")?;
        if !head.starts_with("HTTP/1.1 200 ") || after.get(..length) != Some(&pattern(seed, length)[..]) {
            return Err(format!("not the answer to {length}/{seed}: {head}"));
        }
        rest = &after[length..];
    }
    if rest.is_empty() { Ok(()) } else { Err(format!("{} bytes too many", rest.len())) }
}

/// RFC 9110, section 10.1.1: content waits for 100.
async fn expects(address: SocketAddr, chance: &mut Chance) -> Result<(), String> {
    let (length, sent) = (chance.size(20_000), 1 + chance.below(50_000));
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let head = format!(
        "POST /h1/down/{length}/5 HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {sent}\r\nExpect: 100-continue\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
    let interim = crate::origin::read_head(&mut stream).await;
    if !interim.starts_with("HTTP/1.1 100 ") {
        return Err(format!("not 100: {interim}"));
    }
    stream.write_all(&pattern(1, sent)).await.map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.map_err(|error| error.to_string())?;
    let (head, body) = split_head(&all).ok_or("no head")?;
    if head.starts_with("HTTP/1.1 200 ") && *body == pattern(5, length)[..] {
        Ok(())
    } else {
        Err(format!("{head} and {} of {length} bytes", body.len()))
    }
}

/// Whatever it is, it ends, and never in a success.
async fn garbage(address: SocketAddr, chance: &mut Chance) -> Result<(), String> {
    let mut bytes: Vec<u8> = (0..1 + chance.below(3_000)).map(|_| chance.below(256) as u8).collect();
    match chance.below(4) {
        0 => bytes.splice(..0, *b"GET / HTTP/1.1\r\n").for_each(drop),
        1 => bytes.splice(..0, *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").for_each(drop),
        2 => bytes.extend(b"\r\n\r\n"),
        _ => {}
    }
    let all = said(address, &bytes).await?;
    let success = all.windows(13).any(|window| window == b"HTTP/1.1 200 ");
    if success { Err("garbage has success".to_owned()) } else { Ok(()) }
}

async fn datagrams(address: SocketAddr, chance: &mut Chance) -> Result<(), String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    for _ in 0..chance.below(10) {
        let mut datagram: Vec<u8> = (0..1 + chance.below(1_400)).map(|_| chance.below(256) as u8).collect();
        // As of a long header, version 1, now and then.
        if chance.one_in(2) && datagram.len() > 6 {
            datagram[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        socket.send_to(&datagram, address).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Begins a handshake, and waits for the gateway to lose its patience.
async fn half_open(address: SocketAddr) -> Result<(), String> {
    let all = said(address, &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await?;
    // An alert, or nothing.
    if all.len() < 20 { Ok(()) } else { Err(format!("{} bytes for half a handshake", all.len())) }
}

/// Sends bytes, and takes everything until the gateway closes.
async fn said(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    // A gateway that has seen enough may reset.
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    Ok(all)
}

fn split_head(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    Some((String::from_utf8_lossy(&bytes[..end]).into_owned(), &bytes[end..]))
}

async fn websocket1(address: SocketAddr, chance: &mut Chance) -> Result<(), String> {
    let (answer, end) = ask_http1(address, &handshake("/ws/1")).await;
    if !answer.starts_with("HTTP/1.1 101 ") {
        return Err(answer);
    }
    talk(end, chance).await
}

/// For what is not `Send`, by the compiler's present notions: a thread of its own.
async fn off_thread<F>(work: impl FnOnce() -> F + Send + 'static) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work())).await.map_err(|panic| panic.to_string())?
}

async fn websocket2(address: SocketAddr, mut chance: Chance) -> Result<(), String> {
    let client = Http2Client::connect(address).await;
    let asked = client.ask(Http2Client::request("websocket", "/ws/2")).await;
    let (response, end) = asked.map_err(|error| error.to_string())?;
    if response.status() != 200 {
        return Err(response.status().to_string());
    }
    talk(end, &mut chance).await
}

async fn websocket3(address: SocketAddr, tls: rustls::ClientConfig, chance: &mut Chance) -> Result<(), String> {
    let client = Http3Client::connect(address, tls, NAME).await;
    let (opened, end) = client.ask("websocket", "/ws/3").await;
    if !opened {
        return Err("not opened".to_owned());
    }
    talk(end, chance).await
}

async fn connect(address: SocketAddr, chance: &mut Chance) -> Result<(), String> {
    let head = "CONNECT echo.example:7 HTTP/1.1\r\nHost: echo.example:7\r\n\r\n";
    let (answer, end) = ask_http1(address, head).await;
    if !answer.starts_with("HTTP/1.1 200 ") {
        return Err(answer);
    }
    talk(end, chance).await
}

/// What is sent comes back; then the tunnel is closed in order, or broken off.
async fn talk(mut end: crate::tunnel::End, chance: &mut Chance) -> Result<(), String> {
    for message in 0..chance.below(12) {
        let sent = frame(&pattern(message, chance.size(20_000)), true);
        end.send(&sent).await;
        if end.exactly(sent.len()).await != sent {
            return Err("not what was sent".to_owned());
        }
        tokio::time::sleep(chance.millis(0, 30)).await;
    }
    if chance.one_in(3) {
        end.reset();
        return Ok(());
    }
    end.finish().await;
    match end.end().await {
        Ended::Cleanly => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
