use proptest::prelude::*;

use super::super::target::checked_authority;
use super::*;

fn parse(text: &str) -> Result<Option<ParsedRequest>, Refusal> {
    take_request(&mut BytesMut::from(text), &mut SectionScan::default(), 8192, 20, Scheme::Http)
}

fn status(text: &str) -> u16 {
    match parse(text) {
        Err(refusal) => refusal.status.as_u16(),
        other => panic!("{text:?} gave {other:?}"),
    }
}

/// Conduct, section 3: RFC 9112, sections 2.2, 3, 3.2, 5.1 and 5.2.
#[test]
fn the_desync_corpus_is_refused() {
    for text in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: a\r\n\r\n ",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\t\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked \r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 6\r\n\r\n",
        // Known before more of it comes.
        "\r\n\r",
        "\n",
        "\rG",
        " GET",
        "\x16\x03\x01\x02",
    ] {
        assert!(matches!(status(text), 400), "{text:?}");
    }
    assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
    // RFC 9110, section 9.3.6: authority-form with a port.
    for target in ["a", "a:", ":443", "a:0", "http://a:443/", "/", "u@a:443", "[::1]", "a:65536"] {
        assert_eq!(status(&format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n")), 400, "{target}");
    }
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(30))), 431);
    assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000))), 414);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(9000))), 431);
}

#[test]
fn forms_of_the_target() {
    let head = |text: &str| match parse(text) {
        Ok(Some(parsed)) => (parsed.head.authority.to_string(), parsed.head.target.as_str().to_owned()),
        other => panic!("{text:?} gave {other:?}"),
    };
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(head("\r\nGET /a?b HTTP/1.1\r\nHost: A.example:80\r\n\r\n"), pair("a.example:80", "/a?b"));
    assert_eq!(head("GET http://B.example/x?y HTTP/1.1\r\nHost: a\r\n\r\n"), pair("b.example", "/x?y"));
    assert_eq!(head("GET http://b?y HTTP/1.1\r\nHost: a\r\n\r\n"), pair("b", "/?y"));
    assert_eq!(head("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n"), pair("b", "*"));
    assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n"), pair("[::1]:8080", "*"));
    assert_eq!(head("GET / HTTP/1.0\r\n\r\n"), pair("", "/"));
    assert_eq!(head("GET /%2e%2e//a;b\\c HTTP/1.1\r\nHost: a\r\n\r\n"), pair("a", "/%2e%2e//a;b\\c"));
}

#[test]
fn persistence() {
    let keeps = |text: &str| parse(text).ok().flatten().map(|parsed| parsed.keep_alive);
    assert_eq!(keeps("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(true));
    assert_eq!(keeps("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"), Some(false));
    assert_eq!(keeps("GET / HTTP/1.0\r\n\r\n"), Some(false));
    assert_eq!(keeps("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), Some(true));
}

fn response(text: &str, method: &Method) -> Result<Option<ParsedResponse>, BadResponse> {
    take_response(&mut BytesMut::from(text), &mut SectionScan::default(), 1024, 20, method)
}

/// Conduct, section 3, "responses"; RFC 9112, sections 4, 5.1, 5.2 and 6.3.
#[test]
fn responses_that_can_be_read_in_two_ways_are_refused() {
    for text in [
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5,5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "SSH-2.0",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let got = response(text, &Method::GET);
        assert!(matches!(got, Err(BadResponse::Invalid(_))), "{text:?} gave {got:?}");
    }
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(1024));
    assert_eq!(response(&large, &Method::GET).err(), Some(BadResponse::TooLarge));
}

#[test]
fn responses_are_framed_and_persist() {
    let parsed = |text: &str| response(text, &Method::GET).ok().flatten().map(|r| (r.framing, r.keep_alive));
    assert_eq!(parsed("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n"), Some((Framing::Length(5), true)));
    assert_eq!(parsed("HTTP/1.1 200 OK\r\n\r\n"), Some((Framing::UntilClose, false)));
    assert_eq!(parsed("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n"), Some((Framing::Length(5), false)));
    let kept = "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\n";
    assert_eq!(parsed(kept), Some((Framing::Length(5), true)));
    let closed = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
    assert_eq!(parsed(closed), Some((Framing::None, false)));
    // RFC 9110, section 8.6: a 1xx has no framing fields, and no say in the connection.
    let early = response("HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: </a>\r\n\r\n", &Method::GET);
    let early = early.ok().flatten().expect("an interim head");
    assert_eq!((early.framing, early.head.headers.len()), (Framing::None, 1));
}

/// Feeds `text` in pieces of `size`.
fn dripped<T, E>(
    text: &str,
    size: usize,
    mut take: impl FnMut(&mut BytesMut, &mut SectionScan) -> Result<Option<T>, E>,
) -> Result<Option<(T, usize)>, E> {
    let (mut read, mut scan, mut fed) = (BytesMut::new(), SectionScan::default(), 0);
    for piece in text.as_bytes().chunks(size.min(text.len().max(1))) {
        read.extend_from_slice(piece);
        fed += piece.len();
        if let Some(taken) = take(&mut read, &mut scan)? {
            return Ok(Some((taken, fed - read.len())));
        }
    }
    Ok(None)
}

proptest! {
    /// However the bytes arrive: the same head, of the same length, or the same refusal.
    #[test]
    fn any_split_of_anything_is_judged_the_same(
        lead in "(\r\n|\r|\n){0,2}",
        line in "(GET|POST|G T) (/|\\*|http://b/c|/[a-z]{0,90}) HTTP/1\\.[012]",
        end in "(\r\n|\n|\r)",
        fields in "((Host: a|X: [ -~]{0,6}|Content-Length: 5|Transfer-Encoding: ?chunked|Connection: close|[ -~]{0,9})\r\n){0,5}",
        rest in "(\r\n|\n)[a-z]{0,9}",
        size in 1_usize..20,
    ) {
        let text = format!("{lead}{line}{end}{fields}{rest}");
        let verdict = |size| {
            let taken = dripped(&text, size, |read, scan| take_request(read, scan, 120, 4, Scheme::Http));
            taken.map(|taken| taken.map(|(parsed, length)| (format!("{:?}", parsed.head), parsed.framing, length)))
        };
        prop_assert_eq!(verdict(size), verdict(usize::MAX));

        let text = format!("HTTP/1.1 200 OK{end}{fields}{rest}");
        let verdict = |size| {
            let taken = dripped(&text, size, |read, scan| take_response(read, scan, 90, 4, &Method::GET));
            taken.map(|taken| taken.map(|(parsed, length)| (format!("{:?}", parsed.head), parsed.framing, length)))
        };
        prop_assert_eq!(verdict(size), verdict(usize::MAX));
    }

    #[test]
    fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let fresh = || (BytesMut::from(&bytes[..]), SectionScan::default());
        let (mut read, mut scan) = fresh();
        let _ = take_request(&mut read, &mut scan, 300, 10, Scheme::Http);
        let (mut read, mut scan) = fresh();
        let _ = take_response(&mut read, &mut scan, 300, 10, &Method::GET);
        checked_authority(&bytes);
    }

    #[test]
    fn odd_fields_never_panic(name in "[ -~]{0,12}", value in "[\\x00-\\x7f]{0,30}") {
        let _ = parse(&format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\n\r\n"));
    }
}

/// RFC 9110, section 7.8: only what is asked for in both fields, of what a gateway can be, in HTTP/1.1.
#[test]
fn tunnels_that_are_asked_for() {
    let asked = |start: &str, fields: &str| match parse(&format!("{start}\r\nHost: a:1\r\n{fields}\r\n")) {
        Ok(Some(parsed)) => (parsed.head.tunnel, parsed.keep_alive),
        other => panic!("{start:?} gave {other:?}"),
    };
    let websocket = Some(Tunnel::WebSocket);
    let get = "GET / HTTP/1.1";
    for (start, fields, expected) in [
        (get, "Connection: Upgrade\r\nUpgrade: websocket\r\n", websocket),
        (get, "Connection: keep-alive, UPGRADE\r\nUpgrade: h2c, WebSocket\r\n", websocket),
        (get, "Connection: a\r\nConnection: upgrade\r\nUpgrade: a\r\nUpgrade: websocket\r\n", websocket),
        (get, "Upgrade: websocket\r\n", None),
        (get, "Connection: upgrade\r\n", None),
        (get, "Connection: upgrade\r\nUpgrade: h2c\r\n", None),
        (get, "Connection: upgrade\r\nUpgrade: websocket/13\r\n", None),
        ("GET / HTTP/1.0", "Connection: upgrade, keep-alive\r\nUpgrade: websocket\r\n", None),
        ("POST / HTTP/1.1", "Connection: upgrade\r\nUpgrade: websocket\r\n", None),
    ] {
        assert_eq!(asked(start, fields), (expected, true), "{start} {fields}");
    }
    assert_eq!(asked("CONNECT a:1 HTTP/1.1", ""), (Some(Tunnel::Connect), false), "what follows may be no request");
    let udp = "Connection: Upgrade\r\nUpgrade: connect-udp\r\n";
    assert_eq!(asked(get, udp), (Some(Tunnel::ConnectUdp), false), "what follows may be capsules");
    assert_eq!(
        asked("POST / HTTP/1.1", udp),
        (Some(Tunnel::ConnectUdp), false),
        "malformed, and not for the codec to say"
    );
    assert_eq!(asked("GET / HTTP/1.0", &format!("{udp}Connection: keep-alive\r\n")), (None, true));
}
