//! The type-length-value fields of a PROXY protocol v2 header (section 2.2 of its specification), checked once and kept
//! as they came.

use bytes::Bytes;
use thiserror::Error;

/// The types that are known here. All others, those for private use (0xE0 to 0xEF) among them, are kept unread.
pub mod tlv {
    pub const ALPN: u8 = 0x01;
    pub const AUTHORITY: u8 = 0x02;
    pub const CRC32C: u8 = 0x03;
    pub const NOOP: u8 = 0x04;
    pub const UNIQUE_ID: u8 = 0x05;
    pub const SSL: u8 = 0x20;
    pub const SSL_VERSION: u8 = 0x21;
    pub const SSL_CN: u8 = 0x22;
    /// The last type that stands within `SSL` only.
    pub const SSL_LAST: u8 = 0x28;
    pub const NETNS: u8 = 0x30;
}

/// The client's flags and the result of the verification, before the fields within `SSL`.
const SSL_PREFIX: usize = 5;
const MAX_UNIQUE_ID: usize = 128;

#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TlvError {
    #[error("a field is cut off")]
    CutOff,
    #[error("the ssl field is shorter than its fixed part")]
    ShortSsl,
    #[error("the unique id is longer than 128 bytes")]
    LongUniqueId,
    #[error("the checksum is not of four bytes")]
    ChecksumLength,
    #[error("there is more than one field of type {0:#04x}")]
    Twice(u8),
    #[error("the field of type {0:#04x} is no text")]
    NoText(u8),
}

/// One field: where its value begins, and the value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tlv<'a> {
    pub kind: u8,
    /// Of the value, in the block that is walked.
    pub at: usize,
    pub value: &'a [u8],
}

/// Walks the fields of a block; ends after the first that is cut off.
pub fn walk(block: &[u8]) -> impl Iterator<Item = Result<Tlv<'_>, TlvError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = block.get(at..).filter(|rest| !rest.is_empty())?;
        let field = match rest {
            [kind, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest.get(..length).map(|value| Tlv { kind: *kind, at: at + 3, value })
            }
            _ => None,
        };
        at = field.map_or(block.len(), |field| field.at + field.value.len());
        Some(field.ok_or(TlvError::CutOff))
    })
}

/// The fields of a header that a trusted peer sent; empty for a connection without one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProxyTlvs(Bytes);

impl ProxyTlvs {
    /// Checks every field, those within `SSL` too. The checksum's value is for whoever has the whole header.
    pub fn new(block: Bytes) -> Result<Self, TlvError> {
        let mut seen: [bool; 256] = [false; 256];
        for field in walk(&block) {
            let Tlv { kind, value, .. } = field?;
            match kind {
                tlv::CRC32C if value.len() != 4 => return Err(TlvError::ChecksumLength),
                tlv::UNIQUE_ID if value.len() > MAX_UNIQUE_ID => return Err(TlvError::LongUniqueId),
                tlv::AUTHORITY if std::str::from_utf8(value).is_err() => return Err(TlvError::NoText(kind)),
                tlv::NETNS if !value.is_ascii() => return Err(TlvError::NoText(kind)),
                tlv::SSL => {
                    let within = value.get(SSL_PREFIX..).ok_or(TlvError::ShortSsl)?;
                    walk(within).try_for_each(|field| field.map(drop))?;
                }
                _ => {}
            }
            // Of two, one reader would believe the first and another the last. Padding may be repeated.
            let known = matches!(kind, tlv::ALPN..=tlv::CRC32C | tlv::UNIQUE_ID | tlv::SSL | tlv::NETNS);
            if known && std::mem::replace(&mut seen[usize::from(kind)], true) {
                return Err(TlvError::Twice(kind));
            }
        }
        Ok(Self(block))
    }

    /// A field's value. The types 0x21 to 0x28 are looked for within `SSL`, where alone they mean something.
    pub fn get(&self, kind: u8) -> Option<&[u8]> {
        let find = |block, kind| walk(block).find_map(|field| field.ok().filter(|f| f.kind == kind).map(|f| f.value));
        if (tlv::SSL_VERSION..=tlv::SSL_LAST).contains(&kind) {
            return find(find(&self.0, tlv::SSL)?.get(SSL_PREFIX..)?, kind);
        }
        find(&self.0, kind)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).expect("a short value").to_be_bytes();
        [&[kind], &length[..], value].concat()
    }

    fn parse(fields: &[Vec<u8>]) -> Result<ProxyTlvs, TlvError> {
        ProxyTlvs::new(fields.concat().into())
    }

    #[test]
    fn values_are_found_by_type_and_within_ssl() {
        let ssl = [&[1, 0, 0, 0, 0][..], &field(0x21, b"TLSv1.3"), &field(0x22, b"a client")].concat();
        let fields = [
            field(tlv::NOOP, b"padding"),
            field(tlv::ALPN, b"h2"),
            field(tlv::NOOP, b""),
            field(tlv::SSL, &ssl),
            field(0x22, b"not the client"),
            field(0xEA, b"\x01vpce-1"),
            field(tlv::AUTHORITY, b""),
        ];
        let tlvs = parse(&fields).expect("all is well");
        assert_eq!(tlvs.get(tlv::ALPN), Some(&b"h2"[..]));
        assert_eq!(tlvs.get(tlv::SSL), Some(&ssl[..]));
        assert_eq!(tlvs.get(tlv::SSL_VERSION), Some(&b"TLSv1.3"[..]));
        assert_eq!(tlvs.get(0x22), Some(&b"a client"[..]), "the one within ssl");
        assert_eq!(tlvs.get(0xEA), Some(&b"\x01vpce-1"[..]));
        assert_eq!(tlvs.get(tlv::AUTHORITY), Some(&b""[..]));
        assert_eq!((tlvs.get(tlv::NETNS), ProxyTlvs::default().get(0x21)), (None, None));
    }

    #[test]
    fn what_breaks_the_bounds_is_refused() {
        let cases = [
            (vec![vec![1]], TlvError::CutOff),
            (vec![vec![1, 0]], TlvError::CutOff),
            (vec![vec![1, 0, 3, b'h', b'2']], TlvError::CutOff),
            (vec![field(tlv::SSL, &[1, 0, 0, 0])], TlvError::ShortSsl),
            (vec![field(tlv::SSL, &[1, 0, 0, 0, 0, 0x21, 0, 9, b'T'])], TlvError::CutOff),
            (vec![field(tlv::UNIQUE_ID, &[0; 129])], TlvError::LongUniqueId),
            (vec![field(tlv::CRC32C, &[0; 3])], TlvError::ChecksumLength),
            (vec![field(tlv::CRC32C, &[0; 4]), field(tlv::CRC32C, &[0; 4])], TlvError::Twice(tlv::CRC32C)),
            (vec![field(tlv::AUTHORITY, b"a"), field(tlv::AUTHORITY, b"b")], TlvError::Twice(tlv::AUTHORITY)),
            (vec![field(tlv::AUTHORITY, &[0xff])], TlvError::NoText(tlv::AUTHORITY)),
            (vec![field(tlv::NETNS, &[0x80])], TlvError::NoText(tlv::NETNS)),
        ];
        for (fields, error) in cases {
            assert_eq!(parse(&fields), Err(error));
        }
        assert!(parse(&[field(tlv::UNIQUE_ID, &[0; 128])]).is_ok());
        assert!(parse(&[field(0xE0, b"a"), field(0xE0, b"b")]).is_ok(), "private types are not ours to judge");
    }
}
