//! Properties of what reads Initial packets, for any bytes.

use super::*;

/// As a datagram: the head of a packet is all that says where it ends. As the frames of a packet: a handshake says the same
/// whether its pieces come in order or from the last to the first, and where one could be read in two ways, neither is taken.
pub fn quic_hello(data: &[u8]) {
    if let Some(Head::Long { end, .. }) = head(data) {
        assert_eq!(head(&data[..end]), head(data));
        assert!((0..end).all(|shorter| !matches!(head(&data[..shorter]), Some(Head::Long { .. }))));
    }
    let id = Id::new(&[7; 8]).expect("no longer than an id");
    let Some(mut hearing) = Hearing::new(Version::V1, id) else { return };
    let _ = hearing.push(data);
    if hearing.frames(data).is_ok() {
        let _ = whole(hearing.handshake.beginning());
    }
    in_any_order(data);
}

/// `data` as offsets of one byte, lengths of one byte, and bytes.
fn in_any_order(mut data: &[u8]) {
    let mut pieces: Vec<(u64, &[u8])> = Vec::new();
    while let [offset, length, rest @ ..] = data {
        let (piece, rest) = rest.split_at(rest.len().min((*length).into()));
        pieces.push(((*offset).into(), piece));
        data = rest;
    }
    match (put(pieces.iter()), put(pieces.iter().rev())) {
        (Ok(one), Ok(other)) => {
            assert_eq!((&one.bytes, &one.there), (&other.bytes, &other.there));
            assert!(one.there.windows(2).all(|two| two[0].end < two[1].start), "{:?}", one.there);
            for (offset, piece) in pieces.iter().filter(|(_, piece)| !piece.is_empty()) {
                assert_eq!(&one.bytes[*offset as usize..][..piece.len()], *piece);
            }
        }
        (Err(one), Err(other)) => assert_eq!(one, other),
        (one, other) => panic!("{:?} and {:?}", one.err(), other.err()),
    }
}

fn put<'a>(mut pieces: impl Iterator<Item = &'a (u64, &'a [u8])>) -> Result<Pieces, NoHello> {
    let mut together = Pieces::default();
    pieces.try_for_each(|(offset, piece)| together.put(*offset, piece)).map(|()| together)
}
