//! Prefixed integers (RFC 9204, section 4.1.1; RFC 7541, section 5.1).

use bytes::{BufMut, BytesMut};

/// Why a number could not be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unread {
    /// More bytes are needed.
    Short,
    /// Above 2^62, the largest that must be understood.
    TooLarge,
}

/// Reads a number whose first `prefix` bits (1 to 8) sit at the end of the first byte. Gives the bytes it takes too.
pub(crate) fn read(input: &[u8], prefix: u32) -> Result<(u64, usize), Unread> {
    let mask = (1_u64 << prefix) - 1;
    let first = u64::from(*input.first().ok_or(Unread::Short)?) & mask;
    if first < mask {
        return Ok((first, 1));
    }
    let mut value = mask;
    for (index, byte) in input[1..].iter().enumerate() {
        // Nine groups of seven bits hold all that is allowed; zeros in front of nothing are refused with them.
        if index == 9 {
            return Err(Unread::TooLarge);
        }
        value = value.saturating_add(u64::from(byte & 0x7f) << (7 * index));
        if byte & 0x80 == 0 {
            return if value < 1 << 62 { Ok((value, index + 2)) } else { Err(Unread::TooLarge) };
        }
    }
    if input.len() > 9 { Err(Unread::TooLarge) } else { Err(Unread::Short) }
}

/// Writes `value` with `flags` in the bits before its prefix.
pub(super) fn write(out: &mut BytesMut, flags: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        return out.put_u8(flags | value as u8);
    }
    out.put_u8(flags | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.1.
    #[test]
    fn the_examples_of_the_rfc() {
        for (bytes, prefix, value) in
            [(&[0b0000_1010][..], 5, 10), (&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5, 1337), (&[0b0010_1010], 8, 42)]
        {
            assert_eq!(read(bytes, prefix), Ok((value, bytes.len())));
            let mut out = BytesMut::new();
            write(&mut out, 0, prefix, value as usize);
            assert_eq!(&out[..], bytes);
        }
    }

    #[test]
    fn numbers_without_an_end_are_refused() {
        assert_eq!(read(&[], 5), Err(Unread::Short));
        assert_eq!(read(&[0x1f, 0x80], 5), Err(Unread::Short));
        assert_eq!(read(&[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], 5), Err(Unread::TooLarge));
        assert_eq!(read(&[0xff; 64], 8), Err(Unread::TooLarge));
        assert_eq!(read(&[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], 5), Err(Unread::TooLarge));
    }
}
