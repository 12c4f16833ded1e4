use proptest::prelude::*;

use super::*;
use crate::tunnel::quic::LEAST_INITIAL;

const DESTINATION: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let number = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    digits.chunks(2).map(number).collect()
}

/// The CRYPTO frame of RFC 9001, appendix A.2.
fn example_frame() -> Vec<u8> {
    hex("060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c00000413011302010000c0
         00000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d0017001800100007000504616c706e0005000501
         00000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b0003020304
         000d0010000e0403050306030203080408050806002d00020101001c00024001003900320408ffffffffffffffff05048000ffff07
         048000ffff0801100104800075300901100f088394c8f03e51570806048000ffff")
}

fn example_hello() -> Vec<u8> {
    example_frame()[4..].to_vec()
}

/// A client's Initial packet with these frames, padded to `size` bytes.
fn packet(version: Version, destination: &[u8], number: u32, frames: &[u8], size: usize) -> Vec<u8> {
    let (id, wire, first) = match version {
        Version::V1 => (quic::Version::V1, 1_u32, 0xc3),
        Version::V2 => (quic::Version::V2, 0x6b33_43cf, 0xd3),
    };
    let provider = provider();
    let suite = provider
        .cipher_suites
        .iter()
        .find_map(|suite| suite.tls13().filter(|suite| suite.common.suite == CipherSuite::TLS13_AES_128_GCM_SHA256))
        .expect("the suite of Initial packets");
    let keys = quic::Keys::initial(id, suite, suite.quic.expect("QUIC"), destination, Side::Client).local;
    let mut header = vec![first];
    header.extend_from_slice(&wire.to_be_bytes());
    header.push(destination.len() as u8);
    header.extend_from_slice(destination);
    // No source id, no token.
    header.extend_from_slice(&[0, 0]);
    let overhead = header.len() + 2 + 4 + 16;
    let mut payload = frames.to_vec();
    payload.resize(frames.len().max(size.saturating_sub(overhead)), 0);
    header.extend_from_slice(&(0x4000 | (4 + payload.len() + 16) as u16).to_be_bytes());
    let number_at = header.len();
    header.extend_from_slice(&number.to_be_bytes());
    let tag = keys.packet.encrypt_in_place(number.into(), &header, &mut payload).expect("encrypted");
    let mut packet = [&header[..], &payload, tag.as_ref()].concat();
    let (header, payload) = packet.split_at_mut(number_at + 4);
    let (first, rest) = header.split_first_mut().expect("a first byte");
    keys.header
        .encrypt_in_place(&payload[..keys.header.sample_len()], first, &mut rest[number_at - 1..])
        .expect("protected");
    packet
}

fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[6][..], &(0x4000 | offset as u16).to_be_bytes(), &(0x4000 | data.len() as u16).to_be_bytes(), data].concat()
}

fn hearing(version: Version) -> Hearing {
    Hearing::new(version, Id::new(&DESTINATION).expect("an id")).expect("keys")
}

fn name(heard: Result<Option<ClientHello>, NoHello>) -> Option<String> {
    heard.expect("nothing wrong").and_then(|hello| hello.server_name).map(|name| name.to_string())
}

#[test]
fn the_example_of_the_rfc() {
    let packet = packet(Version::V1, &DESTINATION, 2, &example_frame(), LEAST_INITIAL);
    assert_eq!(packet.len(), 1200);
    let protected = "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9b";
    assert_eq!(packet[..38], hex(protected), "what we read is what the RFC's client sends");
    assert_eq!(packet[1184..], hex("e221af44860018ab0856972e194cd934"));
    let hello = hearing(Version::V1).push(&packet).expect("a hello").expect("whole");
    assert_eq!(hello.server_name.as_deref(), Some("example.com"));
    assert_eq!(hello.offered().collect::<Vec<_>>(), [b"alpn"]);
}

#[test]
fn version_2_has_keys_of_its_own() {
    let packet = packet(Version::V2, &DESTINATION, 0, &example_frame(), LEAST_INITIAL);
    assert_eq!(name(hearing(Version::V2).push(&packet)).as_deref(), Some("example.com"));
    assert_eq!(hearing(Version::V1).push(&packet), Ok(None));
}

#[test]
fn pieces_come_in_any_order_and_twice() {
    let hello = example_hello();
    let (one, two, three) = (crypto(0, &hello[..80]), crypto(80, &hello[80..150]), crypto(120, &hello[120..]));
    let frames = |pieces: &[&[u8]]| [&[0, 1][..], &pieces.concat(), &[2, 0, 0, 0, 0], &[0; 3]].concat();
    let packet = |number, pieces: &[&[u8]]| packet(Version::V1, &DESTINATION, number, &frames(pieces), 400);
    for order in [[&one, &two, &three], [&three, &two, &one], [&two, &one, &three]] {
        // In one packet, in packets of one datagram, in datagrams.
        let mut together = hearing(Version::V1);
        assert!(name(together.push(&packet(0, &order.map(Vec::as_slice)))).is_some());
        let mut coalesced = hearing(Version::V1);
        let packets: Vec<u8> = order.iter().enumerate().flat_map(|(n, piece)| packet(n as u32, &[piece])).collect();
        assert!(name(coalesced.push(&packets)).is_some());
        let mut apart = hearing(Version::V1);
        assert_eq!(apart.push(&packet(0, &[order[0]])), Ok(None));
        assert_eq!(apart.push(&packet(0, &[order[0]])), Ok(None), "again");
        assert_eq!(apart.push(&packet(1, &[order[1]])), Ok(None));
        assert!(name(apart.push(&packet(7, &[order[2]]))).is_some());
    }
}

/// RFC 9000, section 12.2: packets that cannot be read are dropped, those after them are looked at.
#[test]
fn what_is_not_of_this_connection_is_passed_over() {
    let good = packet(Version::V1, &DESTINATION, 1, &example_frame(), 1200);
    let mut broken = packet(Version::V1, &DESTINATION, 0, &example_frame(), 400);
    broken[100] ^= 1;
    let other = packet(Version::V1, &[9; 8], 0, &example_frame(), 400);
    let mut early = broken.clone();
    // A packet of early data has no token.
    early[0] = 0xd0;
    early.remove(15);
    for before in [broken, other, early] {
        assert!(name(hearing(Version::V1).push(&[&before[..], &good].concat())).is_some());
    }
    let cut_off = &good[..1199];
    assert_eq!(hearing(Version::V1).push(cut_off), Ok(None));
}

#[test]
fn what_two_could_read_differently_is_malformed() {
    let hello = example_hello();
    let mut other = hello.clone();
    other[100] ^= 1;
    let packet = |number, frames: &[u8]| packet(Version::V1, &DESTINATION, number, frames, 400);
    let mut hearing = hearing(Version::V1);
    assert_eq!(hearing.push(&packet(0, &crypto(90, &hello[90..120]))), Ok(None));
    assert_eq!(hearing.push(&packet(1, &crypto(0, &other))), Err(NoHello::Malformed));
}

#[test]
fn what_is_no_hello_is_known() {
    let pushed = |frames: &[u8]| hearing(Version::V1).push(&packet(Version::V1, &DESTINATION, 0, frames, 400));
    assert_eq!(pushed(&crypto(0, &[2, 0, 0, 1, 0])), Err(NoHello::Message));
    assert_eq!(pushed(&[0x1c, 0, 0, 0]), Err(NoHello::Malformed), "a close");
    assert_eq!(pushed(&[0x08, 0]), Err(NoHello::Malformed), "a stream");
    assert_eq!(pushed(&[6, 0, 0x7f, 0xff]), Err(NoHello::Malformed), "longer than the packet");
    assert_eq!(pushed(&[2, 0, 0, 0xbf, 0xff, 0xff, 0xff]), Err(NoHello::Malformed), "endless ranges");
    assert_eq!(pushed(&[6, 0xbf, 0xff, 0xff, 0xff, 1, 1]), Err(NoHello::TooLong));
    assert_eq!(pushed(&crypto(0, &[1, 0xff, 0, 0])), Err(NoHello::TooLong));
    let crumbs: Vec<u8> = (0..300).flat_map(|number| crypto(2 * number, &[0])).collect();
    assert_eq!(pushed(&crumbs), Err(NoHello::Malformed), "hundreds of gaps");
}

proptest! {
    #[test]
    fn any_cut_of_a_hello_is_put_together(cuts in prop::collection::vec(0_usize..241, 0..12), seed: u64) {
        let hello = example_hello();
        let mut cuts = [cuts, vec![0, hello.len()]].concat();
        cuts.sort_unstable();
        let mut pieces: Vec<Range<usize>> = cuts.windows(2).map(|two| two[0]..two[1]).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut pieces);
        let mut handshake = Pieces::default();
        for piece in pieces {
            handshake.put(piece.start as u64, &hello[piece]).expect("the same bytes");
        }
        prop_assert_eq!(handshake.beginning(), &hello[..]);
        prop_assert_eq!(handshake.there.len(), 1);
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut hearing = hearing(Version::V1);
        let _ = hearing.push(&bytes);
        let _ = hearing.frames(&bytes);
        let _ = hearing.push(&packet(Version::V1, &DESTINATION, 0, &bytes, 300));
    }
}
