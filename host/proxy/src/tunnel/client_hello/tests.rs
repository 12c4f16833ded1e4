use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// The first bytes of a client of rustls, in one record.
fn rustls_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(crate::listener::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("a provider with both versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written");
    bytes
}

/// The same handshake in records of at most `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|part| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat())
        .collect()
}

fn pushed(bytes: &[u8], at_once: usize) -> Result<Option<ClientHello>, NoHello> {
    let mut records = Records::default();
    let mut last = Ok(None);
    for part in bytes.chunks(at_once) {
        last = records.push(part);
        if !matches!(last, Ok(None)) {
            break;
        }
    }
    last
}

/// A hello with these extensions.
fn hello_with(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, content)| [&kind.to_be_bytes(), &(content.len() as u16).to_be_bytes(), *content].concat())
        .collect();
    body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    body.extend_from_slice(&extensions);
    [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

fn sni(name: &str) -> Vec<u8> {
    let length = name.len() as u16;
    [&(length + 3).to_be_bytes()[..], &[0], &length.to_be_bytes(), name.as_bytes()].concat()
}

#[test]
fn names_and_protocols_however_the_bytes_are_cut() {
    let hello = rustls_hello("api.example.com", &["h2", "http/1.1"]);
    assert!(hello.len() > 1400, "post-quantum shares make it longer than a segment: {}", hello.len());
    for size in [1, 2, 63, 1000, 16_384] {
        let bytes = in_records(&hello, size);
        for at_once in [1, 4, 5, 6, 700, bytes.len()] {
            let found = pushed(&bytes, at_once).expect("a hello").expect("whole");
            assert_eq!(found.server_name.as_deref(), Some("api.example.com"));
            assert_eq!(found.offered().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        }
        assert_eq!(pushed(&bytes[..bytes.len() - 1], 9), Ok(None), "a byte is missing");
    }
}

#[test]
fn without_names_or_extensions() {
    let hello = rustls_hello("192.0.2.1", &[]);
    let found = pushed(&hello, hello.len()).expect("a hello").expect("whole");
    assert_eq!((found.server_name.as_deref(), found.offered().count()), (None, 0));
    let bare = [&[1, 0, 0, 41, 3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    assert_eq!(whole(&bare), Ok(Some(ClientHello::default())));
}

#[test]
fn case_and_final_dot_say_nothing() {
    let found = whole(&hello_with(&[(0, &sni("API.Example.COM."))])).expect("a hello").expect("whole");
    assert_eq!(found.server_name.as_deref(), Some("api.example.com"));
}

/// GREASE (RFC 8701) and ECH (RFC 9849) are extensions like others.
#[test]
fn unknown_extensions_are_passed_over() {
    let found = whole(&hello_with(&[(0x0a0a, &[]), (0xfe0d, &[1, 2, 3]), (0, &sni("outer.example"))]));
    assert_eq!(found.expect("a hello").expect("whole").server_name.as_deref(), Some("outer.example"));
}

#[test]
fn what_can_be_read_in_two_ways_is_malformed() {
    let name = sni("a.example");
    let two_names = [&[0, 18][..], &name[2..], &name[2..]].concat();
    for extensions in [
        &[(0, &name[..]), (0, &name)][..],
        &[(0, &two_names)],
        &[(0, &sni("a b"))],
        &[(0, &sni("a\0.example"))],
        &[(0, &sni(""))],
        &[(0, &name[..8])],
        &[(16, &[0, 3, 2, b'h', b'2']), (16, &[0, 3, 2, b'h', b'2'])],
        &[(16, &[0, 3, 3, b'h', b'2'])],
        &[(16, &[0, 0])],
    ] {
        assert_eq!(whole(&hello_with(extensions)), Err(NoHello::Malformed), "{extensions:?}");
    }
    let mut rest = hello_with(&[]);
    rest[3] += 1;
    rest.push(0);
    assert_eq!(whole(&rest), Err(NoHello::Malformed), "a byte after the extensions");
}

#[test]
fn what_is_no_hello_is_known_early() {
    assert_eq!(pushed(b"G", 1), Err(NoHello::NotTls));
    assert_eq!(pushed(b"\x16\x02", 1), Err(NoHello::NotTls), "SSL 2 and older");
    assert_eq!(pushed(b"\x80\x2e\x01\x03\x01", 5), Err(NoHello::NotTls), "a hello of SSL 2");
    assert_eq!(pushed(&[22, 3, 1, 0, 0], 5), Err(NoHello::Record));
    assert_eq!(pushed(&[22, 3, 1, 0x40, 1], 5), Err(NoHello::Record));
    assert_eq!(pushed(&[22, 3, 1, 0, 1, 2], 6), Err(NoHello::Message));
    assert_eq!(pushed(&[22, 3, 1, 0, 1, 1, 21], 7), Err(NoHello::Record), "an alert within it");
    assert_eq!(pushed(&[22, 3, 1, 0, 4, 1, 1, 0, 1], 9), Err(NoHello::TooLong));
    // One byte in each record: the records count too.
    let trickle: Vec<u8> = [1, 0, 0xff, 0xff].into_iter().chain([0; 20_000]).collect();
    let trickle: Vec<u8> = trickle.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    assert_eq!(pushed(&trickle, 1000), Err(NoHello::TooLong));
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), at_once in 1_usize..50) {
        let _ = pushed(&bytes, at_once);
        let _ = whole(&[&[1, 0, 2, 88][..], &bytes].concat());
    }

    #[test]
    fn no_change_to_a_hello_makes_it_panic(at in 0_usize..200, with: u8) {
        let mut hello = hello_with(&[(0, &sni("a.example")), (16, &[0, 3, 2, b'h', b'2'])]);
        let at = at % hello.len();
        hello[at] = with;
        let _ = whole(&hello);
    }
}
