//! Responses compressed on their way, and those that must not be.

use std::io::Read;

use http::{HeaderMap, Method, Response};
use tidegate_tests::origin::{full, read_head};
use tidegate_tests::{Answer, Client, Gateway, Origin, RawClient, RawOrigin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn page() -> String {
    (0..4000).map(|line| format!("<p>line {line} of a page</p>\n")).collect()
}

fn compressing(endpoint: std::net::SocketAddr, compress: &str) -> String {
    crate::simple(&[endpoint], "")
        .replace("cluster = \"api\"\n", &format!("cluster = \"api\"\ncompress = {{ {compress} }}\n"))
}

fn decoded(answer: &Answer) -> Vec<u8> {
    let mut out = Vec::new();
    let read = match answer.header("content-encoding") {
        Some("gzip") => flate2::read::GzDecoder::new(&answer.body[..]).read_to_end(&mut out),
        Some("br") => brotli::Decompressor::new(&answer.body[..], 4096).read_to_end(&mut out),
        Some("zstd") => zstd::stream::read::Decoder::new(&answer.body[..]).expect("a decoder").read_to_end(&mut out),
        other => panic!("encoded as {other:?}"),
    };
    read.expect("a whole encoding");
    out
}

/// An origin whose answers have the fields that the path names, as `/etag="a";vary=origin`, and this page.
async fn as_told() -> Origin {
    Origin::answering(false, |request| {
        let mut answer = Response::builder().status(200);
        let mut fields = HeaderMap::new();
        fields.insert("content-type", "text/html; charset=utf-8".parse().expect("a value"));
        for field in request.path.trim_start_matches('/').split('&').filter(|field| !field.is_empty()) {
            let (name, value) = field.split_once('=').expect("a field");
            if name == "status" {
                answer = answer.status(value.parse::<u16>().expect("a status"));
            } else {
                let name = name.parse::<http::HeaderName>().expect("a name");
                fields.insert(name, value.replace('_', " ").parse().expect("a value"));
            }
        }
        let body = if request.method == Method::HEAD { String::new() } else { page() };
        let mut answer = answer.body(full(body)).expect("a response");
        answer.headers_mut().extend(fields);
        answer
    })
    .await
}

/// Conduct "Content": the coding that the client likes best, `Vary`, a weak tag, no length and no ranges of the old content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_are_compressed_for_who_takes_it() {
    let origin = as_told().await;
    let gateway = Gateway::start(&compressing(origin.address, "")).await;
    for client in [Client::http1(gateway.edge()), Client::http2(gateway.edge())] {
        for (accept, coding) in [("gzip", "gzip"), ("br;q=0.9, gzip;q=0.1", "br"), ("gzip, deflate, br, zstd", "zstd")]
        {
            let fields = [("accept-encoding", accept)];
            let path = "/etag=\"a\"&accept-ranges=bytes&vary=origin";
            let answer = client.send(Method::GET, path, &fields, "").await.expect("an answer");
            assert_eq!(answer.header("content-encoding"), Some(coding));
            assert_eq!((answer.header("etag"), answer.header("accept-ranges")), (Some("W/\"a\""), None));
            assert_eq!(answer.header("content-length"), None);
            let vary: Vec<_> = answer.headers.get_all("vary").iter().collect();
            assert_eq!(vary, ["origin", "accept-encoding"]);
            assert!(answer.body.len() * 4 < page().len());
            assert!(decoded(&answer) == page().as_bytes());
            // The fields of HEAD are those of GET.
            let head = client.send(Method::HEAD, path, &fields, "").await.expect("an answer");
            assert_eq!((head.header("content-encoding"), head.header("etag")), (Some(coding), Some("W/\"a\"")));
        }
    }
    let counted = gateway.metric("tidegate_compressed_responses_total{coding=\"zstd\"}").await;
    assert_eq!(counted, 2.0);
    // Who takes none gets the same as ever, and caches are told that others do not.
    let plain = Client::http1(gateway.edge()).get("/etag=\"a\"").await.expect("an answer");
    assert_eq!((plain.header("content-encoding"), plain.header("etag")), (None, Some("\"a\"")));
    assert_eq!((plain.header("vary"), plain.text()), (Some("accept-encoding"), page()));
}

/// Conduct "Content": no transform under `no-transform`, no ranges, nothing that is encoded, digested or too short; not where
/// nobody asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_be_transformed_is_not() {
    let origin = as_told().await;
    let gateway = Gateway::start(&compressing(origin.address, "min_size = \"1KiB\", credentials = false")).await;
    let off = Gateway::start(&crate::simple(&[origin.address], "")).await;
    let client = Client::http1(gateway.edge());
    let untouched = async |client: &Client, path: &str, more: &[(&str, &str)]| {
        let fields = [&[("accept-encoding", "gzip, br")], more].concat();
        let answer = client.send(Method::GET, path, &fields, "").await.expect("an answer");
        let length = answer.header("content-length").expect("a length");
        assert_eq!((length, answer.text()), (page().len().to_string().as_str(), page()), "{path}");
        assert!(answer.header("etag").is_none_or(|tag| tag == "\"a\""), "{path}");
        answer
    };
    for path in [
        "/cache-control=max-age=60,_No-Transform&etag=\"a\"",
        "/content-encoding=x-own&etag=\"a\"",
        "/status=206&content-range=bytes_0-9/10&etag=\"a\"",
        "/content-digest=sha-256=:AAAA:&etag=\"a\"",
        "/content-type=image/png&etag=\"a\"",
        "/content-type=textual/html",
        "/status=500",
    ] {
        let answer = untouched(&client, path, &[]).await;
        let encoding = answer.header("content-encoding");
        assert!(encoding.is_none_or(|encoding| encoding == "x-own"), "{path}: {encoding:?}");
    }
    untouched(&client, "/", &[("cache-control", "no-transform")]).await;
    untouched(&client, "/", &[("cookie", "session=secret")]).await;
    untouched(&client, "/", &[("authorization", "Bearer secret")]).await;
    untouched(&Client::http1(off.edge()), "/etag=\"a\"", &[]).await;
    assert_eq!(origin.last().header("accept-encoding"), Some("gzip, br"), "the origin may encode itself");
    // A 304 refreshes what was weak.
    let fields = [("accept-encoding", "gzip")];
    let fresh = client.send(Method::GET, "/status=304&etag=\"a\"", &fields, "").await.expect("an answer");
    assert_eq!((fresh.status.as_u16(), fresh.header("etag"), fresh.body.len()), (304, Some("W/\"a\""), 0));
}

/// Conduct "Streaming (SSE)", "no compression buffering": each event can be decoded before the next is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_not_held_back() {
    let origin = RawOrigin::start(|mut stream, _| async move {
        read_head(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head).await;
        for number in 0..3 {
            let event = format!("data: {number}\n\n");
            let _ = stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await;
            // Nothing comes: only the end of the connection lets the next event out.
            let _ = stream.read_u8().await;
        }
    })
    .await;
    for coding in ["gzip", "br", "zstd"] {
        let gateway = Gateway::start(&compressing(origin.address, "")).await;
        let mut client = RawClient::connect(gateway.edge()).await;
        let request = format!("GET / HTTP/1.0\r\nHost: a\r\nAccept-Encoding: {coding}\r\n\r\n");
        client.send(request.as_bytes()).await;
        assert!(client.until("\r\n\r\n").await.contains(&format!("content-encoding: {coding}")));
        // To HTTP/1.0 the content is not framed: what is read is the encoding. The origin waits, so only a flush ends this.
        let mut encoded = Vec::new();
        loop {
            encoded.push(client.0.read_u8().await.expect("an event"));
            let mut text = Vec::new();
            let _ = match coding {
                "gzip" => flate2::read::GzDecoder::new(&encoded[..]).read_to_end(&mut text),
                "br" => brotli::Decompressor::new(&encoded[..], 4096).read_to_end(&mut text),
                _ => zstd::stream::read::Decoder::new(&encoded[..]).expect("a decoder").read_to_end(&mut text),
            };
            if text == b"data: 0\n\n" {
                break;
            }
        }
    }
}
