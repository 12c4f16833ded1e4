//! The chunked coding (RFC 9112, section 7.1), as strict as its grammar.

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head::{Section, SectionScan, parse_fields};

/// Longest size line, its extensions and CRLF included: they mean nothing to us and are dropped.
const MAX_SIZE_LINE: usize = 1024;
/// Bytes of extensions that a body may have beyond its bytes of data: one that is all extension costs the receiver much
/// and counts as little.
const MAX_EXTENSIONS: usize = 16 * 1024;

#[derive(Debug)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// Takes a chunked body apart, from whatever pieces it comes in.
#[derive(Debug)]
pub(super) struct ChunkDecoder {
    state: State,
    scan: SectionScan,
    /// What is left of `MAX_EXTENSIONS`.
    extensions: usize,
    max_trailers: usize,
    max_fields: usize,
}

#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    End(Option<HeaderMap>),
    /// Nothing can be said without more bytes.
    More,
}

impl ChunkDecoder {
    pub(super) fn new(max_trailers: usize, max_fields: usize) -> Self {
        let scan = SectionScan::default();
        Self { state: State::Size, scan, extensions: MAX_EXTENSIONS, max_trailers, max_fields }
    }

    /// The next piece of what is in `read`. An error is final.
    pub(super) fn decode(&mut self, read: &mut BytesMut) -> Result<Piece, String> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = take_line(read, MAX_SIZE_LINE)? else { return Ok(Piece::More) };
                    let (size, extension) = chunk_size(&line)?;
                    let left = self.extensions.checked_sub(extension);
                    self.extensions = left.ok_or("more chunk extensions than data")?;
                    self.state = match size {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    if read.is_empty() {
                        return Ok(Piece::More);
                    }
                    let take = read.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let data = read.split_to(take).freeze();
                    self.extensions = (self.extensions + take).min(MAX_EXTENSIONS);
                    self.state = match left - take as u64 {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                    return Ok(Piece::Data(data));
                }
                State::DataEnd => {
                    if read.len() < 2 {
                        return if read.first().is_some_and(|b| *b != b'\r') {
                            Err(no_crlf())
                        } else {
                            Ok(Piece::More)
                        };
                    }
                    if &read[..2] != b"\r\n" {
                        return Err(no_crlf());
                    }
                    read.advance(2);
                    self.state = State::Size;
                }
                State::Trailers => {
                    let end = match self.scan.find(read, self.max_trailers)? {
                        Section::Whole(end) => end,
                        Section::More => return Ok(Piece::More),
                        Section::TooLarge => return Err("the trailers are too large".to_owned()),
                    };
                    let text = read.split_to(end).freeze();
                    let trailers = parse_fields(&text, self.max_fields)?;
                    self.state = State::Done;
                    return Ok(Piece::End((!trailers.is_empty()).then_some(trailers)));
                }
                State::Done => return Ok(Piece::End(None)),
            }
        }
    }
}

fn no_crlf() -> String {
    "a chunk does not end with CRLF".to_owned()
}

/// A line without its CRLF; a line feed of its own is an error (RFC 9112, section 2.2 lets only lines of heads be lax).
fn take_line(read: &mut BytesMut, most: usize) -> Result<Option<Bytes>, String> {
    let Some(at) = memchr::memchr(b'\n', &read[..read.len().min(most)]) else {
        return if read.len() >= most { Err("a chunk size line is too long".to_owned()) } else { Ok(None) };
    };
    if at == 0 || read[at - 1] != b'\r' {
        return Err("a chunk size line ends with a bare line feed".to_owned());
    }
    let mut line = read.split_to(at + 1).freeze();
    line.truncate(at - 1);
    Ok(Some(line))
}

/// `chunk-size [ chunk-ext ]`: the size, and the length of the rest.
fn chunk_size(line: &[u8]) -> Result<(u64, usize), String> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let bad = || format!("{:?} is no chunk size", String::from_utf8_lossy(&line[..line.len().min(40)]));
    let rest = &line[digits..];
    // 15 digits cannot overflow, and nobody sends an exabyte in a chunk.
    if digits == 0 || digits > 15 {
        return Err(bad());
    }
    let extension = rest.trim_ascii_start();
    let fine = rest.is_empty() || extension.first() == Some(&b';');
    if !fine || rest.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(bad());
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| bad())?;
    let size = u64::from_str_radix(text, 16).map_err(|_| bad())?;
    Ok((size, rest.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(input: &[u8], split: usize) -> Result<(Vec<u8>, Option<HeaderMap>), String> {
        let mut decoder = ChunkDecoder::new(1024, 10);
        let (mut read, mut body) = (BytesMut::new(), Vec::new());
        let mut pieces = input.chunks(split.max(1));
        loop {
            match decoder.decode(&mut read)? {
                Piece::Data(data) => body.extend_from_slice(&data),
                Piece::End(trailers) => return Ok((body, trailers)),
                Piece::More => read.extend_from_slice(pieces.next().ok_or("cut off")?),
            }
        }
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        let input = b"5\r\nhello\r\n6;a=b ;c\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n";
        for split in 1..input.len() {
            let (body, trailers) = decode(input, split).expect("a good body");
            assert_eq!(body, b"hello world");
            assert_eq!(trailers.expect("trailers")["x-sum"], "1");
        }
    }

    /// Conduct, section 3: size overflow, bad CRLF after a chunk, LF only, oversized extensions.
    #[test]
    fn what_is_not_the_grammar_is_refused() {
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(2000));
        for bad in [
            "g\r\n",
            "\r\n",
            "5\nhello\n0\n\n",
            "5\r\nhelloXX0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "-5\r\n",
            "+5\r\n",
            "0x5\r\n",
            "5 5\r\n",
            "ffffffffffffffff1\r\n",
            "5\r\nhello\r\n0\r\nbad header\r\n\r\n",
            "5\r\nhello\r\n0\r\nA : b\r\n\r\n",
            "5;\x00\r\nhello\r\n",
            " 5\r\nhello\r\n",
            "5\rX\nhello",
            &long,
        ] {
            assert!(decode(bad.as_bytes(), 1000).is_err_and(|e| e != "cut off"), "{bad:?}");
        }
    }

    /// Extensions are dropped, so a body of nothing else would be free for its sender.
    #[test]
    fn a_body_of_extensions_is_refused() {
        let chunk = |data: &str| format!("{:x};{}\r\n{data}\r\n", data.len(), "x".repeat(900));
        let thin = format!("{}0\r\n\r\n", chunk("y").repeat(100));
        assert_eq!(decode(thin.as_bytes(), 4096), Err("more chunk extensions than data".to_owned()));
        let signed = format!("{}0\r\n\r\n", chunk(&"y".repeat(900)).repeat(100));
        assert!(decode(signed.as_bytes(), 4096).is_ok());
    }

    /// RFC 9112, section 7.1.2: trailers are bounded, however they arrive.
    #[test]
    fn trailers_are_bounded() {
        let large = format!("0\r\nX: {}\r\n\r\n", "y".repeat(1024));
        let many = format!("0\r\n{}\r\n", "X: y\r\n".repeat(11));
        for split in [1, 7, 4096] {
            assert!(decode(large.as_bytes(), split).is_err_and(|e| e.contains("too large")), "{split}");
            assert!(decode(many.as_bytes(), split).is_err_and(|e| e != "cut off"), "{split}");
        }
    }

    proptest! {
        /// Two parsers that differ by how the bytes arrived are two parsers.
        #[test]
        fn any_split_of_anything_is_judged_the_same(
            text in r"([0-9a-f]{0,2}|;x|\r\n|\n|\r|[ -~]{0,3}|5\r\nhello\r\n|0\r\n\r\n|A: b\r\n){0,12}",
            split in 1_usize..12,
        ) {
            let verdict = |split| decode(text.as_bytes(), split).map_err(|error| error == "cut off");
            prop_assert_eq!(verdict(split), verdict(usize::MAX));
        }

        #[test]
        fn any_split_reads_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..300), split in 1_usize..40) {
            let input = [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n0\r\n\r\n"].concat();
            let whole = decode(&input, input.len());
            prop_assert_eq!(decode(&input, split), whole);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), split in 1_usize..40) {
            let _ = decode(&bytes, split);
        }
    }
}
