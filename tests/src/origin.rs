//! Origins that do as they are told, and remember what they were asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub type Body = BoxBody<Bytes, std::io::Error>;

/// A request as an origin saw it.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: Method,
    pub path: String,
    pub version: Version,
    pub authority: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    /// Counts from 0.
    pub connection: usize,
}

impl Recorded {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// An origin on hyper.
pub struct Origin {
    pub address: SocketAddr,
    record: Arc<Mutex<Vec<Recorded>>>,
    connections: Arc<AtomicUsize>,
}

/// Makes a response body of bytes at hand.
pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

type Answer = dyn Fn(&Recorded) -> Response<Body> + Send + Sync;

impl Origin {
    /// Answers 200 `ok`, over HTTP/1.1.
    pub async fn http1() -> Self {
        Self::answering(false, |_| Response::new(full("ok"))).await
    }

    /// Answers 200 `ok`, over HTTP/2 by prior knowledge.
    pub async fn http2() -> Self {
        Self::answering(true, |_| Response::new(full("ok"))).await
    }

    /// Answers as `answer` says, once it has the whole request.
    pub async fn answering(http2: bool, answer: impl Fn(&Recorded) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start(http2, None, Arc::new(answer)).await
    }

    /// The same over TLS.
    pub async fn tls(http2: bool, tls: rustls::ServerConfig) -> Self {
        Self::start(http2, Some(Arc::new(tls)), Arc::new(|_| Response::new(full("ok")))).await
    }

    /// Answers as `answer` says, over HTTP/3.
    pub async fn http3(
        tls: rustls::ServerConfig,
        answer: impl Fn(&Recorded) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("TLS 1.3");
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = endpoint.local_addr().expect("an address");
        let record = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (records, count) = (record.clone(), connections.clone());
        let answer: Arc<Answer> = Arc::new(answer);
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let connection = count.fetch_add(1, Ordering::SeqCst);
                let (answer, record) = (answer.clone(), records.clone());
                tokio::spawn(async move {
                    // A connection that its peer gives up is part of many tests.
                    let _ = serve_http3(incoming, connection, answer, record).await;
                });
            }
        });
        Self { address, record, connections }
    }

    async fn start(http2: bool, tls: Option<Arc<rustls::ServerConfig>>, answer: Arc<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let record = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (records, count) = (record.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = count.fetch_add(1, Ordering::SeqCst);
                let (answer, record, tls) = (answer.clone(), records.clone(), tls.clone());
                tokio::spawn(async move {
                    let service =
                        service_fn(move |request| respond(request, connection, answer.clone(), record.clone()));
                    // A connection that its peer gives up is part of many tests.
                    match tls {
                        None => serve(TokioIo::new(stream), http2, service).await,
                        Some(tls) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                serve(TokioIo::new(stream), http2, service).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, record, connections }
    }

    /// What it was asked so far.
    pub fn record(&self) -> Vec<Recorded> {
        self.record.lock().expect("no panic").clone()
    }

    /// Lets go of what it remembers, where nobody will ask.
    pub fn forget(&self) {
        self.record.lock().expect("no panic").clear();
    }

    pub fn last(&self) -> Recorded {
        self.record().pop().expect("the origin was asked")
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve_http3(
    incoming: quinn::Incoming,
    number: usize,
    answer: Arc<Answer>,
    record: Arc<Mutex<Vec<Recorded>>>,
) -> Result<(), Failure> {
    let connection = h3_quinn::Connection::new(incoming.await?);
    let mut connection = h3::server::Connection::<_, Bytes>::new(connection).await?;
    while let Some(resolver) = connection.accept().await? {
        let (answer, record) = (answer.clone(), record.clone());
        tokio::spawn(async move {
            let (request, mut stream) = resolver.resolve_request().await?;
            let (parts, ()) = request.into_parts();
            let mut body = Vec::new();
            while let Some(mut data) = stream.recv_data().await? {
                body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
            }
            let trailers = stream.recv_trailers().await?;
            let mut recorded = recorded(parts, body.into(), number);
            recorded.trailers = trailers;
            let response = answer(&recorded);
            record.lock().expect("no panic").push(recorded);
            let (parts, mut body) = response.into_parts();
            if parts.headers.contains_key("x-hint") {
                let hint = Response::builder().status(103).header("link", "</a.css>; rel=preload").body(())?;
                stream.send_response(hint).await?;
            }
            stream.send_response(Response::from_parts(parts, ())).await?;
            while let Some(frame) = body.frame().await {
                match frame?.into_data() {
                    Ok(data) => stream.send_data(data).await?,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            stream.send_trailers(trailers).await?;
                        }
                    }
                }
            }
            stream.finish().await?;
            Ok::<(), Failure>(())
        });
    }
    Ok(())
}

fn recorded(parts: http::request::Parts, body: Bytes, connection: usize) -> Recorded {
    let host = parts.headers.get("host").and_then(|host| host.to_str().ok());
    Recorded {
        method: parts.method,
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        version: parts.version,
        authority: parts.uri.authority().map(ToString::to_string).or(host.map(str::to_owned)).unwrap_or_default(),
        headers: parts.headers,
        body,
        trailers: None,
        connection,
    }
}

async fn serve<I, S, F>(io: I, http2: bool, service: S)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

async fn respond(
    request: Request<Incoming>,
    connection: usize,
    answer: Arc<Answer>,
    record: Arc<Mutex<Vec<Recorded>>>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    // What broke off was never a request.
    let Ok(collected) = body.collect().await else { return Ok(Response::new(full(""))) };
    let trailers = collected.trailers().cloned();
    let mut recorded = recorded(parts, collected.to_bytes(), connection);
    recorded.trailers = trailers;
    let response = answer(&recorded);
    record.lock().expect("no panic").push(recorded);
    Ok(response)
}

/// An origin that reads and writes raw bytes as a test's closure says, a task per connection.
pub struct RawOrigin {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl RawOrigin {
    /// `serve` gets each connection and its number, from 0.
    pub async fn start<F>(serve: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, count.fetch_add(1, Ordering::SeqCst)));
            }
        });
        Self { address, connections }
    }

    /// Answers each request head with these bytes, and closes the connection.
    pub async fn saying(bytes: &'static [u8]) -> Self {
        Self::start(move |mut stream, _| async move {
            read_head(&mut stream).await;
            // A gateway that has hung up is the test's to notice.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        })
        .await
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads up to the empty line; less when the peer hangs up.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}
