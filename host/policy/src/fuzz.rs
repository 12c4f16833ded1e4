//! What the fuzzer calls, with `--cfg fuzzing` only: each function takes any bytes and panics where a property is broken.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::native::{TrustedFamily, parse_forwarded, received_identity, render_forwarded};
use crate::{ConnectionHead, ProxyTlvs, RequestEdits, is_core_field};

/// Forwarding fields: an untrusted peer is the client whatever it says; of trusted ones the client is the peer or an address that
/// was named; what was read is written so that it reads the same.
pub fn identity(data: &[u8]) {
    let [setup, data @ ..] = data else { return };
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let (kind, value) = line.split_first().unwrap_or((&0, &[]));
        let names = ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(HeaderName::from_static(names[usize::from(*kind) % names.len()]), value);
        }
    }
    let client = SocketAddr::from(([10, 0, 0, 1], 1234));
    let connection = ConnectionHead {
        id: 1,
        peer: client,
        client,
        local: SocketAddr::from(([127, 0, 0, 1], 443)),
        proxy_tlvs: ProxyTlvs::default(),
        listener: "edge".into(),
        tls: true,
        tls_version: None,
        server_name: None,
        alpn: None,
        client_certificate: None,
        client_chain: Box::default(),
    };
    let families = [TrustedFamily::Auto, TrustedFamily::Forwarded, TrustedFamily::XForwarded];
    let family = families[usize::from(*setup) % 3];
    assert_eq!(received_identity(&headers, &connection, &[], family), (client.ip(), Vec::new()));
    let trusted = ["10.0.0.0/8".parse().expect("a network"), "fd00::/8".parse().expect("a network")];
    let (ip, elements) = received_identity(&headers, &connection, &trusted, family);
    let named =
        |ip: IpAddr| elements.iter().any(|element| element.r#for.as_ref().and_then(|node| node.ip()) == Some(ip));
    assert!(ip == client.ip() || named(ip), "{ip}: {elements:?}");
    let text = render_forwarded(&elements);
    let again: Vec<_> = parse_forwarded(text.as_bytes()).into_iter().flatten().collect();
    // An element that says nothing is not written.
    let told = elements.iter().filter(|element| render_forwarded(std::slice::from_ref(*element)) != "");
    assert_eq!(again.iter().collect::<Vec<_>>(), told.collect::<Vec<_>>(), "{text}");
}

/// What a policy may do to a request: whatever it says, no edit touches what the core owns or ends a line.
pub fn edits(data: &[u8]) {
    let mut edits = RequestEdits::default();
    for line in data.split(|byte| *byte == 0).take(32) {
        let Some((kind, rest)) = line.split_first() else { continue };
        let text = String::from_utf8_lossy(rest);
        let (name, value) = text.split_once('=').unwrap_or((&text, ""));
        let _ = match kind % 7 {
            0 => edits.headers.set(name, value.as_bytes()),
            1 => edits.headers.append(name, value.as_bytes()),
            2 => edits.headers.remove(name),
            3 => edits.set_path(&text),
            4 => edits.set_query(Some(&text)),
            5 => edits.set_authority(&text),
            _ => edits.set_note(name, value),
        };
    }
    let breaks = |text: &str| text.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    for text in [edits.path.as_deref(), edits.authority.as_deref(), edits.query.as_ref().and_then(|q| q.as_deref())] {
        assert!(text.is_none_or(|text| !breaks(text) && !text.contains('#')), "{text:?}");
    }
    assert!(edits.path.as_deref().is_none_or(|path| path.starts_with('/') && !path.contains('?')));
    let mut headers = HeaderMap::new();
    edits.headers.apply(&mut headers);
    for (name, value) in &headers {
        assert!(!is_core_field(name), "{name}");
        assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{name}: {value:?}");
    }
}
