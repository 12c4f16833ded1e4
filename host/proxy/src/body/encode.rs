//! Content codings: a body compressed as it passes, without holding back what its sender has flushed.

use std::io::{self, Write};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;

use super::{BodyError, Frame, Incoming};
use crate::observe::WorkerMetrics;

/// What we can encode to (RFC 9110, section 8.4.1; RFC 7932; RFC 8878).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    pub const ALL: [Self; 3] = [Self::Gzip, Self::Brotli, Self::Zstd];

    /// The name in `Accept-Encoding` and `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// A piece of output.
const PIECE: usize = 16 * 1024;
/// Most input of one poll: a worker has other exchanges to serve.
const SHARE: usize = 128 * 1024;
/// Levels at which a core keeps up with a fast network; the windows bound the memory of a stream (RFC 9659 allows zstd
/// 8 MiB, here it is 1 MiB).
const GZIP_LEVEL: u32 = 5;
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW: u32 = 18;
const ZSTD_LEVEL: i32 = 3;
const ZSTD_WINDOW_LOG: u32 = 20;

enum Writer {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Writer {
    fn new(coding: Coding) -> io::Result<Self> {
        let out = Vec::with_capacity(PIECE);
        Ok(match coding {
            Coding::Gzip => Self::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL))),
            Coding::Brotli => {
                Self::Brotli(Box::new(brotli::CompressorWriter::new(out, 4096, BROTLI_QUALITY, BROTLI_WINDOW)))
            }
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                Self::Zstd(encoder)
            }
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(data),
            Self::Brotli(encoder) => encoder.write_all(data),
            Self::Zstd(encoder) => encoder.write_all(data),
        }
    }

    /// Everything written so far can be decoded from what is out then.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.flush(),
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }

    fn out(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        }
    }

    /// What is out once everything is flushed.
    fn flushed(&mut self) -> io::Result<Bytes> {
        self.flush()?;
        Ok(self.take())
    }

    fn take(&mut self) -> Bytes {
        let next = Vec::with_capacity(PIECE);
        std::mem::replace(self.out(), next).into()
    }

    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Gzip(encoder) => encoder.finish()?.into(),
            Self::Brotli(encoder) => encoder.into_inner().into(),
            Self::Zstd(encoder) => encoder.finish()?.into(),
        })
    }
}

/// A body on its way through an encoder.
pub(crate) struct Encoded {
    source: Incoming,
    /// Gone once it is finished.
    writer: Option<Writer>,
    /// Why there never was one.
    failed: Option<io::Error>,
    /// Something was written that is not flushed.
    unflushed: bool,
    trailers: Option<HeaderMap>,
    metrics: Arc<WorkerMetrics>,
}

impl Encoded {
    pub(crate) fn new(source: Incoming, coding: Coding, metrics: &Arc<WorkerMetrics>) -> Self {
        metrics.compressed[coding as usize].add(1);
        let (writer, failed) = match Writer::new(coding) {
            Ok(writer) => (Some(writer), None),
            Err(error) => (None, Some(error)),
        };
        Self { source, writer, failed, unflushed: false, trailers: None, metrics: metrics.clone() }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let broke = |error: io::Error| Some(Err(BodyError::Internal(format!("compressing: {error}"))));
        if let Some(error) = self.failed.take() {
            return Poll::Ready(broke(error));
        }
        let mut taken = 0;
        let out = loop {
            let Some(writer) = &mut self.writer else {
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::Trailers(trailers))));
            };
            match self.source.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    self.metrics.compression_in.add(data.len() as u64);
                    self.unflushed |= !data.is_empty();
                    if let Err(error) = writer.write(&data) {
                        return Poll::Ready(broke(error));
                    }
                    taken += data.len();
                    if writer.out().len() >= PIECE {
                        break Ok(writer.take());
                    }
                    if taken >= SHARE {
                        self.unflushed = false;
                        break writer.flushed();
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(end) => {
                    if let Some(Ok(Frame::Trailers(trailers))) = end {
                        self.trailers = Some(trailers);
                    }
                    if let Some(writer) = self.writer.take() {
                        break writer.finish();
                    }
                }
                Poll::Pending if self.unflushed => {
                    // The sender is silent: what it sent may be all there is for a long time (event streams).
                    self.unflushed = false;
                    break writer.flushed();
                }
                Poll::Pending => return Poll::Pending,
            }
        };
        Poll::Ready(match out {
            Ok(out) => {
                self.metrics.compression_out.add(out.len() as u64);
                Some(Ok(Frame::Data(out)))
            }
            Err(error) => broke(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read;
    use std::task::Waker;

    use super::*;
    use crate::body::{Held, Length};

    fn decode(coding: Coding, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        // What is flushed only is decoded as far as it goes.
        let _ = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(data).read_to_end(&mut out),
            Coding::Brotli => brotli::Decompressor::new(data, 4096).read_to_end(&mut out),
            Coding::Zstd => zstd::stream::read::Decoder::new(data).expect("a decoder").read_to_end(&mut out),
        };
        out
    }

    fn held(frames: Vec<Bytes>) -> Incoming {
        let mut held = Held::new(Length::Unknown);
        held.frames = VecDeque::from(frames);
        held.trailers = Some(HeaderMap::new());
        Incoming::Held(Box::new(held))
    }

    #[test]
    fn what_is_encoded_decodes_to_what_was_sent() {
        let metrics = Arc::new(WorkerMetrics::default());
        let random: Vec<u8> = (0..700_000).map(|_| fastrand::u8(..)).collect();
        let zeros = vec![0; 700_000];
        for coding in Coding::ALL {
            for content in [&random[..], &zeros[..], b"", b"x"] {
                let frames = content.chunks(65_000).map(Bytes::copy_from_slice).collect();
                let mut encoded = Encoded::new(held(frames), coding, &metrics);
                let mut cx = Context::from_waker(Waker::noop());
                let (mut out, mut trailers) = (Vec::new(), false);
                while let Poll::Ready(Some(frame)) = encoded.poll_frame(&mut cx) {
                    match frame.expect("a frame") {
                        Frame::Data(data) => {
                            assert!(!trailers);
                            out.extend_from_slice(&data);
                        }
                        Frame::Trailers(_) => trailers = true,
                    }
                }
                assert!(trailers);
                assert!(decode(coding, &out) == content, "{coding:?}");
            }
        }
    }
}
