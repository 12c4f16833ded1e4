//! QPACK without a dynamic table (RFC 9204): we announce a capacity of 0, so a field section stands for itself, nothing
//! blocks, and a client cannot make us keep state. Slices in, fields out; no IO.

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

mod huffman;
pub(super) mod integer;
mod static_table;

use static_table::Found;

/// What a field counts beyond its octets towards the size of its section (RFC 9114, section 4.2.2).
const OVERHEAD: usize = 32;

/// Why a section is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Error {
    /// QPACK_DECOMPRESSION_FAILED, an error of the connection.
    Decompression,
    /// Larger than the limit. What comes after was not decoded.
    TooLarge,
}

/// A field as it was decoded.
pub(super) enum Field {
    /// A field of the static table.
    Static(&'static HeaderName, &'static HeaderValue),
    /// A name of the static table.
    Named(&'static HeaderName, Bytes, Sensitive),
    /// Anything else, not yet checked. Names begin with `:` for pseudo-header fields.
    Literal(Bytes, Bytes, Sensitive),
}

/// Never to be indexed on any hop (RFC 9204, section 4.5.4).
pub(super) type Sensitive = bool;

/// Decodes a section field by field, in order, up to `limit` octets of it.
pub(super) struct Fields {
    section: Bytes,
    at: usize,
    left: usize,
    scratch: BytesMut,
}

impl Fields {
    pub(super) fn new(section: Bytes, limit: usize) -> Result<Self, Error> {
        let mut fields = Self { section, at: 0, left: limit, scratch: BytesMut::new() };
        // RFC 9204, section 4.5.1: no entry of a dynamic table can be required, and a base below zero is an error.
        let required = fields.integer(8)?;
        let negative = fields.peek().is_some_and(|byte| byte & 0x80 != 0);
        fields.integer(7)?;
        if required != 0 || negative {
            return Err(Error::Decompression);
        }
        Ok(fields)
    }

    /// The next field; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Field>, Error> {
        let Some(first) = self.peek() else { return Ok(None) };
        let field = match first {
            // Indexed, static (section 4.5.2).
            0xc0.. => {
                let index = self.index(6)?;
                match static_table::field(index) {
                    Some((name, value)) => Field::Static(name, value),
                    None => {
                        let (name, value) = static_table::ENTRIES.get(index).ok_or(Error::Decompression)?;
                        Field::Literal(Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()), false)
                    }
                }
            }
            // Literal with a name of the static table (section 4.5.4).
            0x50..=0x5f | 0x70..=0x7f => {
                let index = self.index(4)?;
                let value = self.string(7)?;
                let sensitive = first & 0x20 != 0;
                match static_table::field(index) {
                    Some((name, _)) => Field::Named(name, value, sensitive),
                    None => {
                        let (name, _) = static_table::ENTRIES.get(index).ok_or(Error::Decompression)?;
                        Field::Literal(Bytes::from_static(name.as_bytes()), value, sensitive)
                    }
                }
            }
            // Literal with a literal name (section 4.5.6).
            0x20..=0x3f => {
                let name = self.string(3)?;
                let value = self.string(7)?;
                Field::Literal(name, value, first & 0x10 != 0)
            }
            // Everything else refers to a dynamic table.
            _ => return Err(Error::Decompression),
        };
        let octets = match &field {
            Field::Static(name, value) => name.as_str().len() + value.len(),
            Field::Named(name, value, _) => name.as_str().len() + value.len(),
            Field::Literal(name, value, _) => name.len() + value.len(),
        };
        self.left = self.left.checked_sub(octets + OVERHEAD).ok_or(Error::TooLarge)?;
        Ok(Some(field))
    }

    fn peek(&self) -> Option<u8> {
        self.section.get(self.at).copied()
    }

    fn integer(&mut self, prefix: u32) -> Result<usize, Error> {
        let (value, used) = integer::read(&self.section[self.at..], prefix).map_err(|_| Error::Decompression)?;
        self.at += used;
        usize::try_from(value).map_err(|_| Error::Decompression)
    }

    fn index(&mut self, prefix: u32) -> Result<usize, Error> {
        self.integer(prefix)
    }

    /// A string whose length has a prefix of so many bits, and the Huffman flag before it.
    fn string(&mut self, prefix: u32) -> Result<Bytes, Error> {
        let huffman = self.peek().is_some_and(|byte| byte >> prefix & 1 != 0);
        let length = self.integer(prefix)?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.section.len()).ok_or(Error::Decompression)?;
        let begin = std::mem::replace(&mut self.at, end);
        if !huffman {
            return Ok(self.section.slice(begin..end));
        }
        huffman::decode(&self.section[begin..end], &mut self.scratch).map_err(|_| Error::Decompression)?;
        Ok(self.scratch.split().freeze())
    }
}

/// Begins a section: nothing of a dynamic table is required.
pub(super) fn begin(out: &mut BytesMut) {
    out.extend_from_slice(&[0, 0]);
}

/// Appends a field, and gives its size as the peer counts it.
pub(super) fn encode(out: &mut BytesMut, name: &str, value: &[u8], sensitive: Sensitive) -> usize {
    match static_table::find(name, value) {
        // One that must never be indexed is sent as a literal even so.
        Some(Found::Field(index)) if !sensitive => integer::write(out, 0xc0, 6, index),
        Some(Found::Field(index) | Found::Name(index)) => {
            integer::write(out, if sensitive { 0x70 } else { 0x50 }, 4, index);
            string(out, 0, 7, value);
        }
        None => {
            string(out, if sensitive { 0x30 } else { 0x20 }, 3, name.as_bytes());
            string(out, 0, 7, value);
        }
    }
    name.len() + value.len() + OVERHEAD
}

fn string(out: &mut BytesMut, flags: u8, prefix: u32, text: &[u8]) {
    let length = huffman::encoded_length(text);
    if length < text.len() {
        integer::write(out, flags | 1 << prefix, prefix, length);
        huffman::encode(text, out);
    } else {
        integer::write(out, flags, prefix, text.len());
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Plain = (String, Vec<u8>, Sensitive);

    fn decoded(section: &[u8], limit: usize) -> Result<Vec<Plain>, Error> {
        let mut fields = Fields::new(Bytes::copy_from_slice(section), limit)?;
        let mut all = Vec::new();
        while let Some(field) = fields.next()? {
            all.push(match field {
                Field::Static(name, value) => (name.to_string(), value.as_bytes().to_vec(), false),
                Field::Named(name, value, sensitive) => (name.to_string(), value.to_vec(), sensitive),
                Field::Literal(name, value, sensitive) => {
                    (String::from_utf8_lossy(&name).into_owned(), value.to_vec(), sensitive)
                }
            });
        }
        Ok(all)
    }

    /// RFC 9204, appendix B.1.
    #[test]
    fn the_example_without_a_dynamic_table() {
        let section = b"\x00\x00\x51\x0b/index.html";
        assert_eq!(decoded(section, 1000), Ok(vec![(":path".to_owned(), b"/index.html".to_vec(), false)]));
    }

    /// RFC 9204, sections 2.2.3, 3.1, 4.5 and appendix B.2: what a table of no capacity cannot have, and what is broken.
    #[test]
    fn references_to_a_dynamic_table_and_broken_sections_are_refused() {
        for section in [
            &b""[..],
            b"\x00",
            b"\x03\x81\x10\x11",
            b"\x00\x80",
            b"\x00\x00\x80",
            b"\x00\x00\x10",
            b"\x00\x00\x40\x01a",
            b"\x00\x00\x00\x01a",
            b"\x00\x00\xff\x24",
            b"\x00\x00\x5f\x54\x01a",
            b"\x00\x00\x51\x0b/index",
            b"\x00\x00\x51\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x00\x00\x51\x81\xff",
            b"\x00\x00\x23a",
            b"\x00\x00\x51",
        ] {
            assert_eq!(decoded(section, 1000), Err(Error::Decompression), "{section:x?}");
        }
    }

    /// RFC 9114, section 4.2.2: the octets of name and value, and 32 for each field.
    #[test]
    fn a_section_is_bounded_by_its_decoded_size() {
        let section = b"\x00\x00\x51\x0b/index.html\xd1";
        assert_eq!(decoded(section, 5 + 11 + 32 + 7 + 3 + 32).map(|fields| fields.len()), Ok(2));
        assert_eq!(decoded(section, 5 + 11 + 32 + 7 + 3 + 31), Err(Error::TooLarge));
        assert_eq!(decoded(section, 20), Err(Error::TooLarge));
    }

    #[test]
    fn sensitive_fields_are_never_indexed() {
        let mut out = BytesMut::new();
        begin(&mut out);
        encode(&mut out, "accept", b"*/*", true);
        encode(&mut out, "x-key", b"secret", true);
        let plain = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec(), true);
        assert_eq!(decoded(&out, 1000), Ok(vec![plain("accept", "*/*"), plain("x-key", "secret")]));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            fields in proptest::collection::vec(("[a-z:][a-z0-9-]{0,20}", proptest::collection::vec(any::<u8>(), 0..60), any::<bool>()), 0..20)
        ) {
            let mut out = BytesMut::new();
            begin(&mut out);
            let size: usize = fields.iter().map(|(name, value, sensitive)| encode(&mut out, name, value, *sensitive)).sum();
            prop_assert_eq!(decoded(&out, size), Ok(fields));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(section in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decoded(&section, 4096);
        }
    }
}
