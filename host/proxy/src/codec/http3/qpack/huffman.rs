//! The Huffman code of RFC 7541, appendix B, which QPACK took over. It is canonical: the lengths alone give the codes.

use bytes::{BufMut, BytesMut};

/// Bits of each symbol's code; the last is the end of string, which must not occur.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const END_OF_STRING: u16 = 256;
const LONGEST: usize = 30;
/// Codes of up to this many bits are found in one look: all printable characters but a few.
const QUICK: usize = 10;

struct Code {
    codes: [u32; 257],
    /// The first code of each length, and where its symbols begin in `symbols`.
    first: [u32; LONGEST + 2],
    begins: [u16; LONGEST + 2],
    counts: [u16; LONGEST + 2],
    symbols: [u16; 257],
    /// By the next `QUICK` bits: symbol and length, length 0 for longer codes.
    quick: [(u8, u8); 1 << QUICK],
}

static CODE: Code = canonical();

const fn canonical() -> Code {
    let mut code = Code {
        codes: [0; 257],
        first: [0; LONGEST + 2],
        begins: [0; LONGEST + 2],
        counts: [0; LONGEST + 2],
        symbols: [0; 257],
        quick: [(0, 0); 1 << QUICK],
    };
    let (mut next, mut placed, mut length) = (0_u32, 0_usize, 1_usize);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.begins[length] = placed as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                code.codes[symbol] = next;
                code.symbols[placed] = symbol as u16;
                code.counts[length] += 1;
                if length <= QUICK {
                    let mut index = (next as usize) << (QUICK - length);
                    let end = (next as usize + 1) << (QUICK - length);
                    while index < end {
                        code.quick[index] = (symbol as u8, length as u8);
                        index += 1;
                    }
                }
                next += 1;
                placed += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Not a string of this code: a code that is none, the end of string, or padding other than its first bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Invalid;

/// Appends what `input` stands for. Every symbol has at least five bits, so that is at most 8/5 of its length.
pub(super) fn decode(input: &[u8], out: &mut BytesMut) -> Result<(), Invalid> {
    out.reserve(input.len() * 8 / 5);
    let (mut bits, mut held) = (0_u64, 0_usize);
    let mut input = input.iter();
    loop {
        while held <= 32 {
            let Some(byte) = input.next() else { break };
            bits = bits << 8 | u64::from(*byte);
            held += 8;
        }
        // The next 32 bits, with ones after the end: those are what padding must be.
        let ahead = if held >= 32 {
            (bits >> (held - 32)) as u32
        } else {
            ((bits << (32 - held)) as u32) | ((1_u64 << (32 - held)) - 1) as u32
        };
        let (symbol, length) = next_symbol(ahead);
        if length > held {
            // RFC 7541, section 5.2: less than a byte of padding, all ones.
            let padding = held == 0 || (held < 8 && ahead == u32::MAX);
            return if padding { Ok(()) } else { Err(Invalid) };
        }
        if symbol == END_OF_STRING {
            return Err(Invalid);
        }
        out.put_u8(symbol as u8);
        held -= length;
        bits &= (1_u64 << held) - 1;
    }
}

fn next_symbol(ahead: u32) -> (u16, usize) {
    let (symbol, length) = CODE.quick[(ahead >> (32 - QUICK)) as usize];
    if length != 0 {
        return (u16::from(symbol), usize::from(length));
    }
    for length in QUICK + 1..=LONGEST {
        let offset = (ahead >> (32 - length)).wrapping_sub(CODE.first[length]);
        if offset < u32::from(CODE.counts[length]) {
            return (CODE.symbols[usize::from(CODE.begins[length]) + offset as usize], length);
        }
    }
    // The code is complete, so this is not reached; ending the string is safe in any case.
    (END_OF_STRING, LONGEST)
}

/// Bytes that `input` takes when encoded.
pub(super) fn encoded_length(input: &[u8]) -> usize {
    input.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum::<usize>().div_ceil(8)
}

pub(super) fn encode(input: &[u8], out: &mut BytesMut) {
    let (mut bits, mut held) = (0_u64, 0_u32);
    for byte in input {
        let symbol = usize::from(*byte);
        bits = bits << LENGTHS[symbol] | u64::from(CODE.codes[symbol]);
        held += u32::from(LENGTHS[symbol]);
        while held >= 8 {
            held -= 8;
            out.put_u8((bits >> held) as u8);
        }
    }
    if held > 0 {
        out.put_u8((bits << (8 - held)) as u8 | (0xff >> held));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, Invalid> {
        let mut out = BytesMut::new();
        decode(input, &mut out).map(|()| out.to_vec())
    }

    /// RFC 7541, appendices C.4 and C.6.
    #[test]
    fn the_examples_of_the_rfc() {
        for (text, bytes) in [
            ("www.example.com", &[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..]),
            ("no-cache", &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            ("302", &[0x64, 0x02]),
            ("private", &[0xae, 0xc3, 0x77, 0x1a, 0x4b]),
        ] {
            assert_eq!(decoded(bytes).as_deref(), Ok(text.as_bytes()));
            let mut out = BytesMut::new();
            encode(text.as_bytes(), &mut out);
            assert_eq!(&out[..], bytes);
            assert_eq!(encoded_length(text.as_bytes()), bytes.len());
        }
    }

    /// RFC 7541, section 5.2: padding of a byte or more, other padding, and the end of string are errors.
    #[test]
    fn wrong_ends_are_refused() {
        assert_eq!(decoded(&[0xff]), Err(Invalid));
        assert_eq!(decoded(&[0x64, 0x02, 0xff]), Err(Invalid));
        assert_eq!(decoded(&[0x60]), Err(Invalid));
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(Invalid));
        assert_eq!(decoded(&[]), Ok(Vec::new()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = BytesMut::new();
            encode(&text, &mut out);
            prop_assert_eq!(out.len(), encoded_length(&text));
            prop_assert_eq!(decoded(&out), Ok(text));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(text) = decoded(&bytes) {
                let mut out = BytesMut::new();
                encode(&text, &mut out);
                prop_assert_eq!(&out[..], &bytes[..]);
            }
        }
    }
}
