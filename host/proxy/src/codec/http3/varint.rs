//! Integers of QUIC and HTTP/3 (RFC 9000, section 16): the first two bits tell the length.

use bytes::{BufMut, BytesMut};

/// The largest number that can be written.
pub(crate) const MAX: u64 = (1 << 62) - 1;

/// The number at the beginning of `input` and the bytes it takes; `None` when there is not all of it.
pub(crate) fn read(input: &[u8]) -> Option<(u64, usize)> {
    let first = *input.first()?;
    let length = 1 << (first >> 6);
    let bytes = input.get(1..length)?;
    let value = bytes.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, length))
}

/// Writes `value`, which is at most [`MAX`], in as few bytes as it takes.
pub(crate) fn write(out: &mut BytesMut, value: u64) {
    match value.min(MAX) {
        value @ ..0x40 => out.put_u8(value as u8),
        value @ ..0x4000 => out.put_u16(value as u16 | 0x4000),
        value @ ..0x4000_0000 => out.put_u32(value as u32 | 0x8000_0000),
        value => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9000, appendix A.1.
    #[test]
    fn the_examples_of_the_rfc() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ] {
            assert_eq!(read(bytes), Some((value, bytes.len())));
            assert_eq!(read(&bytes[..bytes.len() - 1]), None);
            let mut out = BytesMut::new();
            write(&mut out, value);
            assert_eq!(&out[..], bytes);
        }
        assert_eq!(read(&[0x40, 0x25, 0xff]), Some((37, 2)), "longer than need be is allowed");
        assert_eq!(read(&[]), None);
        let mut out = BytesMut::new();
        write(&mut out, u64::MAX);
        assert_eq!(read(&out), Some((MAX, 8)));
    }
}
