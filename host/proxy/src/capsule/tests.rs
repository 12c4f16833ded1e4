use proptest::prelude::*;

use super::*;

/// What comes of `stream` when it arrives in pieces of `size`.
fn decoded(stream: &[u8], size: usize) -> Result<Vec<Bytes>, Malformed> {
    let mut decoder = Decoder::default();
    let mut datagrams = Vec::new();
    for piece in stream.chunks(size.max(1)) {
        let mut input = Bytes::copy_from_slice(piece);
        while let Some(datagram) = decoder.next(&mut input)? {
            datagrams.push(datagram);
        }
        assert!(input.is_empty(), "all of a piece is taken");
    }
    decoder.end()?;
    Ok(datagrams)
}

fn of_type(kind: u64, content: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    varint::write(&mut out, kind);
    varint::write(&mut out, content.len() as u64);
    out.extend_from_slice(content);
    out.to_vec()
}

/// RFC 9297, sections 3.2 and 3.5: however it is cut into pieces; what is unknown is read over, of any length.
#[test]
fn datagrams_are_found_in_any_split() {
    let long = vec![7; 20_000];
    let stream = [
        &capsule(b"one")[..],
        &of_type(0x17, b""),
        &of_type(0x0028_432f, &long),
        // Type and length in more bytes than they need.
        &[0x40, 0x00, 0xc0, 0, 0, 0, 0, 0, 0, 4, 0, b't', b'w', b'o'],
        &capsule(b""),
        &of_type(varint::MAX, b"x"),
        &capsule(&long),
    ]
    .concat();
    for size in [1, 2, 3, 7, 16, 1000, stream.len()] {
        let datagrams = decoded(&stream, size).expect("well-formed");
        let payloads: Vec<_> = datagrams.into_iter().map(|datagram| payload(datagram).expect("fine")).collect();
        let wanted = [&b"one"[..], b"two", b"", &long].map(|payload| Some(Bytes::copy_from_slice(payload)));
        assert_eq!(payloads, wanted, "in pieces of {size}");
    }
}

/// RFC 9297, section 3.3.
#[test]
fn a_stream_that_ends_within_a_capsule_is_malformed() {
    let stream = [&capsule(b"one")[..], &of_type(0x17, b"unknown"), &capsule(b"two")].concat();
    let whole = [0, 6, 15, stream.len()];
    for end in 0..=stream.len() {
        assert_eq!(decoded(&stream[..end], 4).is_ok(), whole.contains(&end), "cut after {end}");
    }
}

/// RFC 9298, section 5: a stream with a longer payload is aborted; nothing of that length is waited for.
#[test]
fn lengths_are_bounded() {
    let most = vec![1; MAX_PAYLOAD];
    let datagrams = decoded(&capsule(&most), 10_000).expect("the longest there is");
    assert_eq!(payload(datagrams[0].clone()), Ok(Some(most.clone().into())));
    let longer = [&[0][..], &most, b"!"].concat();
    let datagrams = decoded(&of_type(0, &longer), 10_000).expect("its context could have been longer");
    assert_eq!(payload(datagrams[0].clone()), Err(Malformed::TooLong));
    // The header alone tells.
    for length in [MAX_DATAGRAM + 1, varint::MAX] {
        let mut header = BytesMut::from(&[0][..]);
        varint::write(&mut header, length);
        assert_eq!(decoded(&header, 1), Err(Malformed::TooLong));
    }
    // An unknown one of the greatest length is read over, and waits for no memory.
    let mut decoder = Decoder::default();
    let mut input = BytesMut::from(&[0x17][..]);
    varint::write(&mut input, varint::MAX);
    input.extend_from_slice(&[0; 4096]);
    assert_eq!(decoder.next(&mut input.freeze()), Ok(None));
    assert!(matches!(decoder.at, At::Skip(left) if left == varint::MAX - 4096));
}

/// RFC 9298, section 4.
#[test]
fn contexts() {
    assert_eq!(payload(Bytes::from_static(&[0])), Ok(Some(Bytes::new())));
    assert_eq!(payload(Bytes::from_static(&[0x40, 0x00, 5])), Ok(Some(Bytes::from_static(&[5]))));
    assert_eq!(payload(Bytes::from_static(&[2, 5])), Ok(None));
    assert_eq!(payload(Bytes::from_static(&[0xff, 0, 0, 0, 0, 0, 0, 1])), Ok(None));
    for cut_off in [&[][..], &[0x40], &[0xc0, 0, 0]] {
        assert_eq!(payload(Bytes::copy_from_slice(cut_off)), Err(Malformed::NoContext), "{cut_off:?}");
    }
    assert_eq!(decoded(&[0, 0], 2), Err(Malformed::NoContext));
    assert_eq!(decoded(&[0, 0, 0x17, 0], 1), Err(Malformed::NoContext));
}

proptest! {
    #[test]
    fn what_comes_never_panics_and_splits_do_not_matter(
        stream in prop::collection::vec(prop_oneof![3 => 0_u8..4, 1 => any::<u8>()], 0..200),
        size in 1_usize..40,
    ) {
        prop_assert_eq!(decoded(&stream, size), decoded(&stream, stream.len()));
    }
}
