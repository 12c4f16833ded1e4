//! A piece of known length out of input that comes as it likes.

use bytes::{Bytes, BytesMut};

/// Takes up to `left` bytes of `input`; the whole once they are all there. Mostly it is all at hand, and is not copied.
pub(crate) fn gather(left: &mut usize, gathered: &mut BytesMut, input: &mut Bytes) -> Option<Bytes> {
    let piece = input.split_to((*left).min(input.len()));
    *left -= piece.len();
    if *left == 0 && gathered.is_empty() {
        return Some(piece);
    }
    gathered.extend_from_slice(&piece);
    (*left == 0).then(|| std::mem::take(gathered).freeze())
}
