//! Frames and settings as slices (RFC 9114, section 7): what kinds there are, and what breaks the connection.

use bytes::BytesMut;
use h3::error::Code;

use super::varint;

/// An error of the whole connection: it is closed with this code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Violation {
    pub(super) code: Code,
    pub(super) reason: &'static str,
}

impl Violation {
    pub(super) const fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Data,
    Headers,
    CancelPush,
    Settings,
    PushPromise,
    GoAway,
    MaxPushId,
    /// A type that HTTP/2 had and HTTP/3 forbids (section 7.2.8).
    Http2,
    /// To be ignored (section 9), reserved ones included.
    Unknown,
}

pub(super) const DATA: u64 = 0x0;
pub(super) const HEADERS: u64 = 0x1;
const CANCEL_PUSH: u64 = 0x3;
const SETTINGS: u64 = 0x4;
const PUSH_PROMISE: u64 = 0x5;
const GOAWAY: u64 = 0x7;
const MAX_PUSH_ID: u64 = 0xd;

/// Type and length are a variable-length integer each.
pub(super) const LONGEST_HEADER: usize = 16;

/// Reads type and length of a frame, and tells the bytes they take; `None` when they are not all there.
pub(super) fn header(input: &[u8]) -> Option<(Kind, u64, usize)> {
    let (kind, first) = varint::read(input)?;
    let (length, second) = varint::read(&input[first..])?;
    let kind = match kind {
        DATA => Kind::Data,
        HEADERS => Kind::Headers,
        CANCEL_PUSH => Kind::CancelPush,
        SETTINGS => Kind::Settings,
        PUSH_PROMISE => Kind::PushPromise,
        GOAWAY => Kind::GoAway,
        MAX_PUSH_ID => Kind::MaxPushId,
        0x2 | 0x6 | 0x8 | 0x9 => Kind::Http2,
        _ => Kind::Unknown,
    };
    Some((kind, length, first + second))
}

/// Writes type and length.
pub(super) fn write_header(out: &mut BytesMut, kind: u64, length: usize) {
    varint::write(out, kind);
    varint::write(out, length as u64);
}

/// The payload of GOAWAY, CANCEL_PUSH and MAX_PUSH_ID: one number, and nothing after it (section 7.1).
pub(super) fn number(payload: &[u8]) -> Result<u64, Violation> {
    match varint::read(payload) {
        Some((value, used)) if used == payload.len() => Ok(value),
        _ => Err(Violation::new(Code::H3_FRAME_ERROR, "a frame that is not one number")),
    }
}

pub(super) fn write_goaway(out: &mut BytesMut, id: u64) {
    let mut payload = BytesMut::new();
    varint::write(&mut payload, id);
    write_header(out, GOAWAY, payload.len());
    out.unsplit(payload);
}

/// What a peer told of itself, or we tell of ourselves (section 7.2.4.1; RFC 8441, section 3; RFC 9204, section 5).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Settings {
    /// Largest field section it wants; `None` for no limit.
    pub(super) max_field_section_size: Option<u64>,
    /// Extended CONNECT (RFC 9220, section 3).
    pub(super) connect_protocol: bool,
    /// HTTP Datagrams in QUIC's (RFC 9297, section 2.1.1).
    pub(super) datagrams: bool,
}

const MAX_FIELD_SECTION_SIZE: u64 = 0x6;
const ENABLE_CONNECT_PROTOCOL: u64 = 0x8;
const H3_DATAGRAM: u64 = 0x33;

impl Settings {
    pub(super) fn read(mut payload: &[u8]) -> Result<Self, Violation> {
        let wrong = |reason| Violation::new(Code::H3_SETTINGS_ERROR, reason);
        let short = Violation::new(Code::H3_FRAME_ERROR, "SETTINGS ends within a setting");
        let mut settings = Self::default();
        let mut seen = Vec::new();
        while !payload.is_empty() {
            let (id, first) = varint::read(payload).ok_or(short)?;
            let (value, second) = varint::read(&payload[first..]).ok_or(short)?;
            payload = &payload[first + second..];
            if seen.contains(&id) {
                return Err(wrong("a setting occurs twice"));
            }
            seen.push(id);
            match id {
                // Settings of HTTP/2 (section 7.2.4.1).
                0x0 | 0x2..=0x5 => return Err(wrong("a setting of HTTP/2")),
                MAX_FIELD_SECTION_SIZE => settings.max_field_section_size = Some(value),
                ENABLE_CONNECT_PROTOCOL if value <= 1 => settings.connect_protocol = value == 1,
                H3_DATAGRAM if value <= 1 => settings.datagrams = value == 1,
                ENABLE_CONNECT_PROTOCOL | H3_DATAGRAM => return Err(wrong("a setting that is neither 0 nor 1")),
                // Among those to be ignored are QPACK's, since we never use a dynamic table.
                _ => {}
            }
        }
        Ok(settings)
    }

    /// The whole frame. The QPACK settings are left out: their defaults of 0 are what we want.
    pub(super) fn write(&self, out: &mut BytesMut) {
        let mut payload = BytesMut::new();
        let mut setting = |id, value| {
            varint::write(&mut payload, id);
            varint::write(&mut payload, value);
        };
        if let Some(size) = self.max_field_section_size {
            setting(MAX_FIELD_SECTION_SIZE, size);
        }
        if self.connect_protocol {
            setting(ENABLE_CONNECT_PROTOCOL, 1);
        }
        if self.datagrams {
            setting(H3_DATAGRAM, 1);
        }
        write_header(out, SETTINGS, payload.len());
        out.unsplit(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9114, sections 7.1, 7.2.8 and 9.
    #[test]
    fn headers_of_frames() {
        assert_eq!(header(&[0x00, 0x05]), Some((Kind::Data, 5, 2)));
        assert_eq!(header(&[0x40, 0x01, 0xc0, 0, 1, 0, 0, 0, 0, 0]), Some((Kind::Headers, 1 << 40, 10)));
        for reserved in [0x2, 0x6, 0x8, 0x9] {
            assert_eq!(header(&[reserved, 0]), Some((Kind::Http2, 0, 2)));
        }
        assert_eq!(header(&[0x21, 0x01]), Some((Kind::Unknown, 1, 2)));
        assert_eq!(header(&[0x00]), None);
        assert_eq!(header(&[0x80, 0, 0]), None);
    }

    #[test]
    fn settings_are_read_as_they_are_written() {
        let ours = Settings { max_field_section_size: Some(65_536), connect_protocol: true, datagrams: true };
        let mut out = BytesMut::new();
        ours.write(&mut out);
        let (kind, length, used) = header(&out).expect("a frame");
        assert_eq!((kind, length as usize), (Kind::Settings, out.len() - used));
        assert_eq!(Settings::read(&out[used..]), Ok(ours));
        assert_eq!(Settings::read(&[]), Ok(Settings::default()));
        assert_eq!(Settings::read(&[0x21, 0x07, 0x01, 0x10, 0x07, 0x08, 0x33, 0x00]), Ok(Settings::default()));
    }

    /// RFC 9114, section 7.2.4 and 7.2.4.1; RFC 8441, section 3.
    #[test]
    fn wrong_settings_are_refused() {
        let code = |payload: &[u8]| Settings::read(payload).map_err(|violation| violation.code);
        for id in [0x0, 0x2, 0x3, 0x4, 0x5] {
            assert_eq!(code(&[id, 0]), Err(Code::H3_SETTINGS_ERROR));
        }
        assert_eq!(code(&[0x6, 0x1, 0x6, 0x1]), Err(Code::H3_SETTINGS_ERROR));
        assert_eq!(code(&[0x8, 0x2]), Err(Code::H3_SETTINGS_ERROR));
        assert_eq!(code(&[0x33, 0x2]), Err(Code::H3_SETTINGS_ERROR));
        assert_eq!(code(&[0x6]), Err(Code::H3_FRAME_ERROR));
        assert_eq!(code(&[0x6, 0x40]), Err(Code::H3_FRAME_ERROR));
    }

    #[test]
    fn a_number_fills_its_frame() {
        let mut out = BytesMut::new();
        write_goaway(&mut out, 400);
        let (kind, _, used) = header(&out).expect("a frame");
        assert_eq!((kind, number(&out[used..])), (Kind::GoAway, Ok(400)));
        for wrong in [&[][..], &[0x40], &[0x01, 0x00]] {
            assert_eq!(number(wrong).map_err(|violation| violation.code), Err(Code::H3_FRAME_ERROR));
        }
    }
}
