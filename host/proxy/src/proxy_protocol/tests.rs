//! Both versions from the outside: what is taken, what is refused, and that writing and reading agree.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use tidegate_policy::{TlvError, tlv};

use super::*;

fn header(bytes: &[u8]) -> Header {
    match parse(bytes) {
        Ok(Parsed::Header { length, header }) if length == bytes.len() => header,
        other => panic!("{other:?} of {:?}", String::from_utf8_lossy(bytes)),
    }
}

fn addresses(source: &str, destination: &str) -> Addresses {
    let parse = |text: &str| text.parse().expect("an address and port");
    Addresses { source: parse(source), destination: parse(destination) }
}

/// A version 2 header from its parts.
fn raw(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = (block.len() as u16).to_be_bytes();
    [v2::SIGNATURE, &[version_command, family], &length, block].concat()
}

const IPV4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0x1f, 0x90, 0, 80];

#[test]
fn version_1_lines() {
    let given = header(b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n");
    assert_eq!(given.addresses, Some(addresses("192.0.2.1:56324", "192.0.2.2:443")));
    let given = header(b"PROXY TCP6 2001:DB8::1 2001:db8:0:0:0:0:0:2 0 65535\r\n");
    assert_eq!(given.addresses, Some(addresses("[2001:db8::1]:0", "[2001:db8::2]:65535")));
    for unknown in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        b"PROXY UNKNOWN \xff\0 any thing\r\n",
    ] {
        assert_eq!(header(unknown), Header::default());
    }
    let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 91], b"\r\n"].concat();
    assert_eq!((long.len(), header(&long)), (107, Header::default()));
}

/// Section 2.1: whatever differs from the one form is no header, and the connection ends.
#[test]
fn version_1_lines_that_are_refused() {
    for line in [
        "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 00",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 -1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 0x1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2  2",
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.256 192.0.2.2 1 2",
        "PROXY TCP4 ::1 ::2 1 2",
        "PROXY TCP4 192.0.2.1 ::2 1 2",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP6 [::1] [::2] 1 2",
        "PROXY TCP6 fe80::1%eth0 ::2 1 2",
        "PROXY TCP6 ::1::2 ::2 1 2",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP5 192.0.2.1 192.0.2.2 1 2",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY UNKNOWNX",
        "PROXY \tUNKNOWN",
        "PROXY ",
    ] {
        assert_eq!(parse(format!("{line}\r\n").as_bytes()), Err(Invalid::Line), "{line}");
    }
    for line in
        ["PROXY UNKNOWN\n", "PROXY UNKNOWN\r\r\n", "PROXY UNKNOWN a\rb\r\n", "PROXY UNKNOWN\rGET / HTTP/1.1\r\n"]
    {
        assert_eq!(parse(line.as_bytes()), Err(Invalid::LineBreak), "{line:?}");
    }
    let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat();
    assert_eq!((long.len(), parse(&long)), (108, Err(Invalid::LongLine)));
    assert_eq!(parse(&long[..107]), Err(Invalid::LongLine), "its end cannot come any more");
    assert_eq!(parse(&[b"PROXY ", &[b'x'; 200][..]].concat()), Err(Invalid::LongLine));
}

#[test]
fn other_protocols_are_told_apart_as_early_as_can_be() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROPFIND / HTTP/1.1\r\n",
        b"PUT",
        b"PROXYX",
        b"\x16\x03\x01\x02\x00",
        b"\r\nGET",
        b"\r\n\r\nG",
        b"proxy ",
        b"\r\n\r\n\0\r\nQUIT\r",
    ] {
        assert_eq!(parse(bytes), Ok(Parsed::Absent), "{bytes:?}");
    }
    for bytes in [&b""[..], b"P", b"PR", b"PROXY", b"\r", b"\r\n\r\n", b"\r\n\r\n\0\r\nQUIT\n"] {
        assert!(matches!(parse(bytes), Ok(Parsed::NeedsMore { .. })), "{bytes:?}");
    }
}

#[test]
fn version_2_families() {
    let tcp4 = Some(addresses("192.0.2.1:8080", "192.0.2.2:80"));
    assert_eq!(header(&raw(0x21, 0x11, &IPV4)).addresses, tcp4);
    assert_eq!(header(&raw(0x21, 0x12, &IPV4)).addresses, tcp4, "over UDP");
    let mut ipv6 = [0; 36];
    (ipv6[15], ipv6[31], ipv6[33], ipv6[35]) = (1, 2, 3, 4);
    for family in [0x21, 0x22] {
        assert_eq!(header(&raw(0x21, family, &ipv6)).addresses, Some(addresses("[::1]:3", "[::2]:4")));
    }
    for family in [0x31, 0x32] {
        assert_eq!(header(&raw(0x21, family, &[b'/'; 216])), Header::default(), "no address to take");
        assert_eq!(parse(&raw(0x21, family, &[b'/'; 215])), Err(Invalid::Short));
    }
    assert_eq!(header(&raw(0x21, 0x00, &[])), Header::default());
    let unspecified = header(&raw(0x21, 0x00, &[tlv::AUTHORITY, 0, 1, b'a']));
    assert_eq!((unspecified.addresses, unspecified.tlvs.get(tlv::AUTHORITY)), (None, Some(&b"a"[..])));
    for family in [0x01, 0x02, 0x10, 0x13, 0x20, 0x23, 0x30, 0x33, 0x41, 0xf1, 0xff] {
        assert_eq!(parse(&raw(0x21, family, &[0; 216])), Err(Invalid::Family(family)));
    }
    assert_eq!(parse(&raw(0x21, 0x11, &IPV4[..11])), Err(Invalid::Short));
    assert_eq!(parse(&raw(0x21, 0x21, &IPV4)), Err(Invalid::Short));
}

/// Section 2.2: LOCAL takes the socket's ends and skips what the length says; other commands and versions are dropped.
#[test]
fn version_2_commands_and_versions() {
    for (family, block) in [(0x00, &[][..]), (0x11, &IPV4), (0xff, b"anything at all, fields it is not")] {
        assert_eq!(header(&raw(0x20, family, block)), Header::default());
    }
    for command in 2..16 {
        assert_eq!(parse(&raw(0x20 | command, 0x11, &IPV4)), Err(Invalid::Command(command)));
    }
    for version in (0..16).filter(|version| *version != 2) {
        assert_eq!(parse(&raw(version << 4 | 1, 0x11, &IPV4)), Err(Invalid::Version(version)));
    }
    assert_eq!(parse(&raw(0x20, 0, &[0; 4313])), Err(Invalid::Length(4329)));
    assert_eq!(header(&raw(0x20, 0, &[0; 4312])), Header::default());
}

/// Section 2.2.3: a checksum that is there must be right, wherever it stands.
#[test]
fn version_2_fields_and_checksum() {
    let mut writer = v2::Writer::new(&addresses("192.0.2.1:1", "192.0.2.2:2"));
    writer.field(tlv::ALPN, &[b"h2"]);
    let good = writer.finish(true);
    assert_eq!(header(&good).tlvs.get(tlv::ALPN), Some(&b"h2"[..]));
    // Any changed bit of addresses, values and the checksum itself is noticed.
    for at in (16..28).chain(31..33).chain(good.len() - 4..good.len()) {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert_eq!(parse(&bad), Err(Invalid::Checksum), "byte {at}");
        }
    }
    let first = [&IPV4[..], &[tlv::CRC32C, 0, 4, 0, 0, 0, 0, tlv::NOOP, 0, 0]].concat();
    let mut first = raw(0x21, 0x11, &first);
    assert_eq!(parse(&first), Err(Invalid::Checksum));
    let right = crc32c::checksum(&[&first]).to_be_bytes();
    first[31..35].copy_from_slice(&right);
    assert!(!header(&first).tlvs.is_empty());
    let cut = raw(0x21, 0x11, &[&IPV4[..], &[tlv::ALPN, 0, 3, b'h']].concat());
    assert_eq!(parse(&cut), Err(Invalid::Tlv(TlvError::CutOff)));
}

#[test]
fn lines_that_are_written() {
    let line = |source, destination| String::from_utf8(v1::emit(&addresses(source, destination))).expect("text");
    assert_eq!(line("192.0.2.1:1", "192.0.2.2:65535"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 65535\r\n");
    assert_eq!(line("[2001:db8::1]:1", "[::]:0"), "PROXY TCP6 2001:db8::1 :: 1 0\r\n");
    assert_eq!(line("192.0.2.1:1", "[::1]:2"), "PROXY TCP6 ::ffff:c000:201 ::1 1 2\r\n");
    assert_eq!(header(&v1::emit_local()), Header::default());
    assert_eq!(header(&v2::emit_local()), Header::default());
    assert_eq!(v2::emit_local(), raw(0x20, 0, &[]));
}

#[test]
fn a_field_that_would_be_too_long_is_left_out() {
    let mut writer = v2::Writer::new(&addresses("192.0.2.1:1", "192.0.2.2:2"));
    writer.field(tlv::SSL, &[&[0; 4300]]);
    writer.field(tlv::AUTHORITY, &[b"a"]);
    let header = header(&writer.finish(true));
    assert_eq!((header.tlvs.get(tlv::SSL), header.tlvs.get(tlv::AUTHORITY)), (None, Some(&b"a"[..])));
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

/// IPv4 in IPv6's clothes where the families differ.
fn mapped(given: Addresses) -> Addresses {
    let map = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    if given.source.is_ipv4() == given.destination.is_ipv4() {
        given
    } else {
        Addresses { source: map(given.source), destination: map(given.destination) }
    }
}

proptest! {
    /// What is written is read again, whatever follows it; every part of it alone asks for more.
    #[test]
    fn written_headers_are_read_again(
        source in any_address(),
        destination in any_address(),
        alpn in proptest::option::of("[a-z0-9/.]{1,20}"),
        private in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        checksum in any::<bool>(),
        rest in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let given = Addresses { source, destination };
        let mut writer = v2::Writer::new(&given);
        if let Some(alpn) = &alpn {
            writer.field(tlv::ALPN, &[alpn.as_bytes()]);
        }
        if let Some(private) = &private {
            writer.field(0xE5, &[private]);
        }
        for header in [v1::emit(&given), writer.finish(checksum)] {
            for end in 0..header.len() {
                match parse(&header[..end]) {
                    Ok(Parsed::NeedsMore { at_most }) => prop_assert!(at_most >= header.len()),
                    other => prop_assert!(false, "{other:?} after {end} of {header:?}"),
                }
            }
            let version_2 = header.starts_with(v2::SIGNATURE);
            match parse(&[&header[..], &rest].concat()) {
                Ok(Parsed::Header { length, header: read }) => {
                    prop_assert_eq!(length, header.len());
                    prop_assert_eq!(read.addresses, Some(mapped(given)));
                    prop_assert_eq!(read.tlvs.get(tlv::ALPN), alpn.as_deref().map(str::as_bytes).filter(|_| version_2));
                    prop_assert_eq!(read.tlvs.get(0xE5), private.as_deref().filter(|_| version_2));
                }
                other => prop_assert!(false, "{:?} of {:?}", other, header),
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        begin in prop_oneof![Just(&b""[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 "[..]), Just(v2::SIGNATURE), Just(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x40"[..])],
    ) {
        let bytes = [begin, &bytes].concat();
        if let Ok(Parsed::Header { length, .. }) = parse(&bytes) {
            prop_assert!(length <= bytes.len());
        }
    }
}

/// Section 2.2, in datagrams: all of the header is there or it is none, and version 1 is bytes like any others.
#[test]
fn datagrams_have_all_of_their_header() {
    let addresses = Addresses {
        source: "192.0.2.1:1".parse().expect("an address"),
        destination: "192.0.2.2:2".parse().expect("an address"),
    };
    let mut writer = v2::Writer::of_datagram(&addresses);
    writer.field(0xE0, &[b"mine"]);
    let header = writer.finish(true);
    assert_eq!(header[13], 0x12);
    let datagram = [&header[..], b"payload"].concat();
    let (found, rest) = of_datagram(&datagram).expect("valid").expect("there");
    assert_eq!((found.addresses, rest), (Some(addresses), &b"payload"[..]));
    assert_eq!(of_datagram(&header).expect("valid").expect("there").1, b"", "nothing after it");
    for end in 12..header.len() {
        assert_eq!(of_datagram(&datagram[..end]), Err(Invalid::Short), "{end}");
    }
    for other in [&b""[..], b"\r\n", &datagram[..11], b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nx", &datagram[1..]] {
        assert_eq!(of_datagram(other), Ok(None));
    }
    let mut wrong = datagram.clone();
    wrong[20] ^= 1;
    assert_eq!(of_datagram(&wrong), Err(Invalid::Checksum));
    let six = Addresses { destination: "[2001:db8::1]:2".parse().expect("an address"), ..addresses };
    assert_eq!(v2::Writer::of_datagram(&six).finish(false)[13], 0x22);
}
