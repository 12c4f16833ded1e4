//! Answers as the request's path says: echoes, streams, waits; or traps, loops, eats memory, never answers.

use std::io::Write;

use wasip2::cli::{environment, stderr, stdout};
use wasip2::clocks::monotonic_clock;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};

struct EdgeFunction;

wasip2::http::proxy::export!(EdgeFunction);

impl wasip2::exports::http::incoming_handler::Guest for EdgeFunction {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        let number = query.parse().unwrap_or(0);
        match path {
            "/stream" => {
                let (body, mut sink) = begin(out, 200);
                let received = request.consume().expect("the body is there once");
                let source = received.stream().expect("the stream is there once");
                copy(&source, &mut sink);
                drop(source);
                IncomingBody::finish(received);
                end(body, sink);
            }
            "/drip" => {
                let (body, mut sink) = begin(out, 200);
                for count in 0..number {
                    sleep(20);
                    sink.write_all(format!("{count}\n").as_bytes()).expect("written");
                    sink.flush().expect("flushed");
                }
                end(body, sink);
            }
            "/large" => {
                let (body, mut sink) = begin(out, 200);
                let block = [b'x'; 16 * 1024];
                for _ in 0..number / block.len() as u64 {
                    sink.write_all(&block).expect("written");
                }
                end(body, sink);
            }
            "/sleep" => {
                sleep(number);
                answer(out, 200, "slept\n");
            }
            "/spin" => {
                spin(number);
                answer(out, 200, "spun\n");
            }
            "/trap" => panic!("as it was told"),
            "/trap-late" => {
                let (_body, mut sink) = begin(out, 200);
                sink.write_all(b"half of it").expect("written");
                sink.flush().expect("flushed");
                sleep(number);
                panic!("as it was told");
            }
            "/loop" | "/burn" => loop {
                std::hint::black_box(());
            },
            "/work" => {
                (0..number * 1_000_000).for_each(|step| _ = std::hint::black_box(step));
                answer(out, 200, "worked\n");
            }
            // Half an answer, and then nobody says that there is no more.
            "/unfinished" => {
                let (body, mut sink) = begin(out, 200);
                sink.write_all(b"half of it").expect("written");
                sink.flush().expect("flushed");
                sleep(number);
                std::mem::forget(body);
            }
            "/dropped" => {
                let (body, mut sink) = begin(out, 200);
                sink.write_all(b"half of it").expect("written");
                sink.flush().expect("flushed");
                sleep(number);
                drop(sink);
                drop(body);
                // It is not its end that tells.
                sleep(50);
            }
            "/short" => {
                let fields = Fields::from_list(&[("content-length".to_owned(), b"20".to_vec())]).expect("fields");
                let (body, mut sink) = begin_with(out, 200, fields);
                sink.write_all(b"half of it").expect("written");
                sink.flush().expect("flushed");
                sleep(number);
                drop(sink);
                OutgoingBody::finish(body, None).expect_err("it is too short");
            }
            "/memory" => {
                let mut eaten = Vec::new();
                loop {
                    eaten.push(vec![1_u8; 1 << 20]);
                    std::hint::black_box(&eaten);
                }
            }
            "/hang" => monotonic_clock::subscribe_duration(u64::MAX / 2).block(),
            "/silent" => {}
            "/error" => ResponseOutparam::set(out, Err(ErrorCode::InternalError(Some("as it was told".to_owned())))),
            "/out" => answer(out, 200, &ask()),
            "/print" => {
                for line in 0..number {
                    say(stdout::get_stdout(), &format!("said {line}\n"));
                }
                say(stderr::get_stderr(), "complained\x1b[31m\n");
                answer(out, 200, "printed\n");
            }
            "/after" => {
                answer(out, 200, "answered\n");
                sleep(number);
                say(stdout::get_stdout(), "went on\n");
            }
            #[cfg(feature = "sockets")]
            "/sockets" => {
                let family = wasip2::sockets::network::IpAddressFamily::Ipv4;
                let made = wasip2::sockets::tcp_create_socket::create_tcp_socket(family).is_ok();
                answer(out, 200, if made { "made\n" } else { "refused\n" });
            }
            _ => answer(out, 200, &told(&request)),
        }
    }
}

/// What it is told of a request, a line each.
fn told(request: &IncomingRequest) -> String {
    let method = match request.method() {
        Method::Get => "GET".to_owned(),
        Method::Post => "POST".to_owned(),
        Method::Put => "PUT".to_owned(),
        Method::Other(name) => name,
        other => format!("{other:?}"),
    };
    let scheme = match request.scheme() {
        Some(Scheme::Https) => "https",
        Some(Scheme::Http) => "http",
        _ => "none",
    };
    let authority = request.authority().unwrap_or_default();
    let mut text = format!("{method} {scheme}://{authority}{}\n", request.path_with_query().unwrap_or_default());
    for (name, value) in request.headers().entries() {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(&value));
    }
    for (name, value) in environment::get_environment() {
        text += &format!("${name}={value}\n");
    }
    text
}

/// What comes of a request to elsewhere.
fn ask() -> String {
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    request.set_authority(Some("127.0.0.1:1")).expect("an authority");
    request.set_path_with_query(Some("/")).expect("a path");
    let response = match outgoing_handler::handle(request, None) {
        Err(code) => return format!("{code:?}\n"),
        Ok(response) => response,
    };
    response.subscribe().block();
    match response.get() {
        Some(Ok(Ok(response))) => format!("{}\n", response.status()),
        Some(Ok(Err(code))) => format!("{code:?}\n"),
        other => format!("{other:?}\n"),
    }
}

fn begin(out: ResponseOutparam, status: u16) -> (OutgoingBody, OutputStream) {
    begin_with(out, status, Fields::new())
}

fn begin_with(out: ResponseOutparam, status: u16, fields: Fields) -> (OutgoingBody, OutputStream) {
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("a status");
    let body = response.body().expect("the body is there once");
    let sink = body.write().expect("the stream is there once");
    ResponseOutparam::set(out, Ok(response));
    (body, sink)
}

fn end(body: OutgoingBody, sink: OutputStream) {
    drop(sink);
    OutgoingBody::finish(body, None).expect("finished");
}

fn answer(out: ResponseOutparam, status: u16, text: &str) {
    let fields = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())]).expect("fields");
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("a status");
    let body = response.body().expect("the body is there once");
    ResponseOutparam::set(out, Ok(response));
    let mut sink = body.write().expect("the stream is there once");
    sink.write_all(text.as_bytes()).expect("written");
    sink.flush().expect("flushed");
    end(body, sink);
}

fn copy(source: &InputStream, sink: &mut OutputStream) {
    loop {
        match source.blocking_read(16 * 1024) {
            Ok(block) => {
                sink.write_all(&block).expect("written");
                sink.flush().expect("flushed");
            }
            Err(StreamError::Closed) => return,
            Err(StreamError::LastOperationFailed(error)) => {
                panic!("the request broke off: {}", error.to_debug_string());
            }
        }
    }
}

fn say(mut stream: OutputStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("written");
}

/// Waits so many milliseconds.
fn sleep(milliseconds: u64) {
    monotonic_clock::subscribe_duration(milliseconds * 1_000_000).block();
}

/// Computes for so many milliseconds.
fn spin(milliseconds: u64) {
    let end = monotonic_clock::now() + milliseconds * 1_000_000;
    while monotonic_clock::now() < end {
        std::hint::black_box(());
    }
}
