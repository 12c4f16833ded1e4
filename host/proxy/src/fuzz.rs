//! What the fuzzer calls, with `--cfg fuzzing` only: each function takes any bytes and panics where a property is broken.
//! `tests/fuzz` has a target for each.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use crate::codec::http1::fuzz::{http1_chunked, http1_request, http1_response, http2_head, upstream_http1};
pub use crate::codec::http3::fuzz::{http3_control, http3_head, http3_message, qpack_section};
pub use crate::exchange::fuzz::small_fields;
use crate::proxy_protocol::{Addresses, Header, Parsed, of_datagram, parse, v1, v2};
pub use crate::tunnel::fuzz::client_hello;
pub use crate::tunnel::fuzz_quic::quic_hello;

/// The PROXY protocol: bytes are never asked for that would not be read, a judgement does not change when more bytes come, and
/// the addresses of a header survive our own writers.
pub fn proxy_protocol(data: &[u8]) {
    let whole = parse(data);
    for end in 0..data.len().min(256) {
        match parse(&data[..end]) {
            Ok(Parsed::NeedsMore { at_most }) => assert!(at_most > end),
            Ok(Parsed::Absent) => assert_eq!(whole, Ok(Parsed::Absent)),
            Ok(Parsed::Header { length, header }) => {
                assert!(length <= end);
                assert_eq!(whole, Ok(Parsed::Header { length, header }));
            }
            Err(_) => assert!(whole.is_err(), "{whole:?}"),
        }
    }
    if let (true, Ok(Some((header, rest)))) = (data.starts_with(b"\r\n\r\n\0\r\nQUIT\n"), of_datagram(data)) {
        assert_eq!(whole, Ok(Parsed::Header { length: data.len() - rest.len(), header }));
    }
    let Ok(Parsed::Header { length, header }) = whole else { return };
    assert!(length <= data.len());
    crate::upstream::said_again(&header.tlvs, &data[length..]);
    let Some(addresses) = header.addresses else { return };
    let written = |text: &[u8]| match parse(text) {
        Ok(Parsed::Header { length, header: Header { addresses: Some(read), .. } }) => {
            assert_eq!(length, text.len());
            let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            let plain = |both: &Addresses| (plain(both.source), plain(both.destination));
            assert_eq!(plain(&read), plain(&addresses));
        }
        other => panic!("{other:?} of {text:?}"),
    };
    written(&v1::emit(&addresses));
    written(&v2::Writer::new(&addresses).finish(true));
    written(&v2::Writer::new(&addresses).finish(false));
    written(&v2::Writer::of_datagram(&addresses).finish(true));
}

/// Lines of `name: value` as a header map, for whoever fuzzes what reads one.
pub(crate) fn header_map(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    headers
}
