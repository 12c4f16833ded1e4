//! A message as the frames of its stream: heads, content, trailers, in the order that RFC 9114, section 4.1 allows and no
//! other. Bytes in, pieces out; no IO.
//!
//! Nothing is gathered but a HEADERS frame, whose size is bounded; data passes as it comes, and what is unknown is read
//! over. A frame that is cut off, or not allowed where it is, is an error of the connection.

use bytes::{Buf, Bytes, BytesMut};
use h3::error::Code;

use super::frame::{self, Kind, Violation};
use super::link::Role;
use crate::codec::gather::gather;

/// What a stream brings.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Piece {
    /// The whole payload of a HEADERS frame.
    Section(Bytes),
    /// Some of the payload of a DATA frame; never empty.
    Data(Bytes),
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum Step {
    Piece(Piece),
    /// A frame that carries nothing: unknown, or DATA of no length.
    Idle,
    /// The input is used up.
    More,
}

/// Why a stream is not read on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    Violation(Violation),
    /// A HEADERS frame is larger than the limit.
    TooLarge,
}

/// What comes next within a message.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Phase {
    Head,
    Content,
    /// Trailers came: only what is unknown may follow.
    Over,
}

enum At {
    /// Bytes of a frame's type and length that came so far.
    Header(usize),
    Section {
        left: usize,
        gathered: BytesMut,
    },
    Data(u64),
    Skip(u64),
}

pub(super) struct Message {
    /// Ours: the message comes from the other side.
    role: Role,
    max_section: usize,
    header: [u8; frame::LONGEST_HEADER],
    at: At,
    phase: Phase,
}

impl Message {
    pub(super) fn new(role: Role, max_section: usize) -> Self {
        let header = [0; frame::LONGEST_HEADER];
        Self { role, max_section, header, at: At::Header(0), phase: Phase::Head }
    }

    /// The section that came was an interim response's: a head comes again.
    pub(super) fn was_interim(&mut self) {
        self.phase = Phase::Head;
    }

    /// Takes from `input` up to the next thing to tell.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Step, Refused> {
        loop {
            if let At::Section { left: 0, .. } = self.at {
                // Of nothing at all: QPACK will refuse it.
                self.at = At::Header(0);
                return Ok(Step::Piece(Piece::Section(Bytes::new())));
            }
            if input.is_empty() {
                return Ok(Step::More);
            }
            match &mut self.at {
                At::Header(had) => {
                    let had = *had;
                    let room = &mut self.header[had..];
                    let take = room.len().min(input.len());
                    room[..take].copy_from_slice(&input[..take]);
                    match frame::header(&self.header[..had + take]) {
                        None => {
                            input.advance(take);
                            self.at = At::Header(had + take);
                        }
                        Some((kind, length, used)) => {
                            // The header was not whole before, so it takes more than was had.
                            input.advance(used - had);
                            if !self.begin(kind, length)? {
                                return Ok(Step::Idle);
                            }
                        }
                    }
                }
                At::Section { left, gathered } => {
                    let Some(section) = gather(left, gathered, input) else { continue };
                    self.at = At::Header(0);
                    return Ok(Step::Piece(Piece::Section(section)));
                }
                At::Data(left) => {
                    let data = input.split_to(within(*left, input));
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.at = At::Header(0);
                    }
                    return Ok(Step::Piece(Piece::Data(data)));
                }
                At::Skip(left) => {
                    let take = within(*left, input);
                    input.advance(take);
                    *left -= take as u64;
                    if *left == 0 {
                        self.at = At::Header(0);
                        return Ok(Step::Idle);
                    }
                }
            }
        }
    }

    /// The stream ends here. Section 7.1: not within a frame.
    pub(super) fn end(&self) -> Result<(), Violation> {
        match self.at {
            At::Header(0) => Ok(()),
            _ => Err(Violation::new(Code::H3_FRAME_ERROR, "the stream ends within a frame")),
        }
    }

    /// What may come where (section 4.1, and section 7, table 1); false for a frame that is over already, and told nothing.
    fn begin(&mut self, kind: Kind, length: u64) -> Result<bool, Refused> {
        let unexpected = |reason| Refused::Violation(Violation::new(Code::H3_FRAME_UNEXPECTED, reason));
        self.at = match (kind, self.phase) {
            (Kind::Headers, Phase::Head | Phase::Content) => {
                self.phase = if self.phase == Phase::Head { Phase::Content } else { Phase::Over };
                let left = usize::try_from(length).ok().filter(|length| *length <= self.max_section);
                At::Section { left: left.ok_or(Refused::TooLarge)?, gathered: BytesMut::new() }
            }
            (Kind::Data, Phase::Content) if length > 0 => At::Data(length),
            (Kind::Unknown, _) if length > 0 => At::Skip(length),
            (Kind::Data, Phase::Content) | (Kind::Unknown, _) => At::Header(0),
            // Section 4.6: we never allowed a push.
            (Kind::PushPromise, _) if self.role == Role::Client => {
                let reason = "a push that was not allowed";
                return Err(Refused::Violation(Violation::new(Code::H3_ID_ERROR, reason)));
            }
            (Kind::Data, Phase::Head) => return Err(unexpected("DATA before HEADERS")),
            (Kind::Data | Kind::Headers, _) => return Err(unexpected("a frame after the trailers")),
            _ => return Err(unexpected("a frame that no request stream has")),
        };
        Ok(!matches!(self.at, At::Header(_)))
    }
}

/// As much of `input` as belongs to what has `left` bytes left.
fn within(left: u64, input: &Bytes) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(input.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a stream that comes in these pieces, to its end: sections, and data joined.
    fn read<'a>(role: Role, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<Vec<u8>>, Vec<u8>), Refused> {
        let mut message = Message::new(role, 100);
        let (mut sections, mut content) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            loop {
                match message.next(&mut input)? {
                    Step::Piece(Piece::Section(section)) => sections.push(section.to_vec()),
                    Step::Piece(Piece::Data(data)) => content.extend_from_slice(&data),
                    Step::Idle => {}
                    Step::More => break,
                }
            }
        }
        message.end().map_err(Refused::Violation)?;
        Ok((sections, content))
    }

    const WHOLE: &[u8] = b"\x21\x02xx\x01\x04head\x00\x03abc\x21\x00\x00\x00\x40\x00\x40\x02de\x01\x03sum\x21\x01x";

    /// RFC 9114, sections 4.1 and 9: however the bytes are cut, the message is the same.
    #[test]
    fn a_message_is_read_however_it_is_cut() {
        let expected = Ok((vec![b"head".to_vec(), b"sum".to_vec()], b"abcde".to_vec()));
        assert_eq!(read(Role::Server, [WHOLE]), expected);
        assert_eq!(read(Role::Server, WHOLE.chunks(1)), expected);
        for cut in 0..WHOLE.len() {
            assert_eq!(read(Role::Server, [&WHOLE[..cut], &WHOLE[cut..]]), expected, "cut at {cut}");
        }
    }

    /// RFC 9114, section 7.1.
    #[test]
    fn an_end_within_a_frame_is_an_error() {
        let ends = [0, 4, 10, 15, 17, 19, 25, 30, 33];
        for end in 0..=WHOLE.len() {
            let whole = read(Role::Server, [&WHOLE[..end]]).is_ok();
            assert_eq!(whole, ends.contains(&end), "{end}");
        }
    }

    /// RFC 9114, sections 4.1, 4.6, 7.2 and 7.2.8.
    #[test]
    fn frames_out_of_place_are_errors() {
        let code = |role, bytes: &[u8]| match read(role, [bytes]) {
            Err(Refused::Violation(violation)) => Some(violation.code),
            _ => None,
        };
        for bytes in [
            &b"\x00\x01x"[..],
            b"\x00\x00",
            b"\x01\x01h\x01\x01t\x00\x01x",
            b"\x01\x01h\x01\x01t\x01\x01t",
            b"\x03\x01\x00",
            b"\x04\x00",
            b"\x07\x01\x00",
            b"\x0d\x01\x00",
            b"\x02\x00",
            b"\x06\x00",
            b"\x01\x01h\x08\x00",
            b"\x01\x01h\x09\x00",
        ] {
            assert_eq!(code(Role::Server, bytes), Some(Code::H3_FRAME_UNEXPECTED), "{bytes:?}");
            assert_eq!(code(Role::Client, bytes), Some(Code::H3_FRAME_UNEXPECTED), "{bytes:?}");
        }
        assert_eq!(code(Role::Server, b"\x05\x01\x00"), Some(Code::H3_FRAME_UNEXPECTED));
        assert_eq!(code(Role::Client, b"\x05\x01\x00"), Some(Code::H3_ID_ERROR));
        assert_eq!(read(Role::Server, [&b"\x01\x40\x65"[..]]), Err(Refused::TooLarge));
        assert_eq!(read(Role::Server, [&b"\x01\xc0\x00\x01\x00\x00\x00\x00\x00"[..]]), Err(Refused::TooLarge));
        assert_eq!(read(Role::Server, [&b"\x01\x00"[..]]), Ok((vec![Vec::new()], Vec::new())));
    }

    #[test]
    fn heads_come_again_after_interim_ones() {
        let mut message = Message::new(Role::Client, 100);
        let mut input = Bytes::from_static(b"\x01\x01a\x01\x01b\x01\x01t\x01\x01x");
        let section = |byte: &'static [u8]| Ok(Step::Piece(Piece::Section(Bytes::from_static(byte))));
        assert_eq!(message.next(&mut input), section(b"a"));
        message.was_interim();
        assert_eq!(message.next(&mut input), section(b"b"));
        assert_eq!(message.next(&mut input), section(b"t"));
        assert!(matches!(message.next(&mut input), Err(Refused::Violation(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_the_same_way(
            bytes in proptest::collection::vec(0_u8..0x48, 0..60), cut in 0_usize..60
        ) {
            let (one, two) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(read(Role::Server, [&bytes[..]]), read(Role::Server, [one, two]));
        }
    }
}
