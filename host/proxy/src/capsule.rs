//! The capsule protocol (RFC 9297, section 3): what a stream's bytes are once it became a tunnel for datagrams. Bytes in,
//! datagrams out; no IO.
//!
//! Only DATAGRAM capsules are gathered, whose size is bounded; of the others nothing is kept, however long they say to be.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::codec::gather::gather;
use crate::codec::http3::varint;

/// Most bytes of a UDP payload (RFC 9298, section 5).
pub(crate) const MAX_PAYLOAD: usize = 65_527;
/// Most bytes of an HTTP Datagram: such a payload and its context id, in as many bytes as that may take.
const MAX_DATAGRAM: u64 = MAX_PAYLOAD as u64 + 8;
/// Type and length are a variable-length integer each.
const LONGEST_HEADER: usize = 16;

/// The type of the one capsule we know (section 3.5).
const DATAGRAM: u64 = 0;
/// The context of UDP payloads (RFC 9298, section 4).
const UDP: u64 = 0;

/// Why a stream of capsules, or a datagram, is malformed (section 3.3).
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub(crate) enum Malformed {
    #[error("a datagram is longer than UDP has")]
    TooLong,
    #[error("a datagram has no context id")]
    NoContext,
    #[error("the stream ends within a capsule")]
    CutOff,
}

enum At {
    /// Bytes of a capsule's type and length that came so far.
    Header(usize),
    Datagram {
        left: usize,
        gathered: BytesMut,
    },
    Skip(u64),
}

/// Takes datagrams out of a stream.
pub(crate) struct Decoder {
    header: [u8; LONGEST_HEADER],
    at: At,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { header: [0; LONGEST_HEADER], at: At::Header(0) }
    }
}

impl Decoder {
    /// Takes from `input` up to the end of the next datagram; `None` when the input is used up.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
        loop {
            if let At::Datagram { left: 0, .. } = self.at {
                // Of nothing at all: it has not even a context.
                return Err(Malformed::NoContext);
            }
            if input.is_empty() {
                return Ok(None);
            }
            match &mut self.at {
                At::Header(had) => {
                    let had = *had;
                    let room = &mut self.header[had..];
                    let take = room.len().min(input.len());
                    room[..take].copy_from_slice(&input[..take]);
                    match header(&self.header[..had + take]) {
                        None => {
                            input.advance(take);
                            self.at = At::Header(had + take);
                        }
                        Some((kind, length, used)) => {
                            // The header was not whole before, so it takes more than was had.
                            input.advance(used - had);
                            self.at = match (kind, length) {
                                (DATAGRAM, ..=MAX_DATAGRAM) => {
                                    At::Datagram { left: length as usize, gathered: BytesMut::new() }
                                }
                                (DATAGRAM, _) => return Err(Malformed::TooLong),
                                (_, 0) => At::Header(0),
                                (_, length) => At::Skip(length),
                            };
                        }
                    }
                }
                At::Datagram { left, gathered } => {
                    let Some(datagram) = gather(left, gathered, input) else { continue };
                    self.at = At::Header(0);
                    return Ok(Some(datagram));
                }
                At::Skip(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    input.advance(take);
                    *left -= take as u64;
                    if *left == 0 {
                        self.at = At::Header(0);
                    }
                }
            }
        }
    }

    /// The stream ends here. Section 3.3: not within a capsule.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        match self.at {
            At::Header(0) => Ok(()),
            _ => Err(Malformed::CutOff),
        }
    }
}

/// Type, length, and the bytes they take; `None` when they are not all there.
fn header(input: &[u8]) -> Option<(u64, u64, usize)> {
    let (kind, first) = varint::read(input)?;
    let (length, second) = varint::read(&input[first..])?;
    Some((kind, length, first + second))
}

/// The UDP payload of an HTTP Datagram (RFC 9298, section 5); `None` for one of a context that nobody registered.
pub(crate) fn payload(mut datagram: Bytes) -> Result<Option<Bytes>, Malformed> {
    let (context, used) = varint::read(&datagram).ok_or(Malformed::NoContext)?;
    if context != UDP {
        return Ok(None);
    }
    datagram.advance(used);
    if datagram.len() > MAX_PAYLOAD { Err(Malformed::TooLong) } else { Ok(Some(datagram)) }
}

/// An HTTP Datagram of a UDP payload, after what `prefix` puts before it.
pub(crate) fn datagram(payload: &[u8], prefix: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(LONGEST_HEADER + 1 + payload.len());
    prefix(&mut out);
    varint::write(&mut out, UDP);
    out.put_slice(payload);
    out.freeze()
}

/// A DATAGRAM capsule of a UDP payload.
pub(crate) fn capsule(payload: &[u8]) -> Bytes {
    datagram(payload, |out| {
        varint::write(out, DATAGRAM);
        // The context id is a byte.
        varint::write(out, payload.len() as u64 + 1);
    })
}

#[cfg(test)]
mod tests;
