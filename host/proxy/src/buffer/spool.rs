//! A body's part on disk: written at its end, read at its beginning or from its beginning, never on a worker's thread.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Buffers, Claim};

/// Bytes of one write or read.
const PIECE: usize = 64 * 1024;

/// The file, or why the piece is not in it, and the piece.
type Written = Result<Arc<File>, (io::Error, BytesMut)>;

/// A spool file being written. It is made with its first piece.
pub(crate) struct Spool {
    buffers: Arc<Buffers>,
    most: u64,
    claim: Claim,
    file: Option<Arc<File>>,
    /// Bytes of the file that are written.
    written: u64,
    /// The next piece.
    pending: BytesMut,
    writing: Option<(u64, JoinHandle<Written>)>,
    /// The disk takes no more: what it did not take stays in `pending`.
    failed: bool,
    /// A first in first out store is read from here.
    read: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Spool {
    /// At most `most` bytes.
    pub(crate) fn new(buffers: &Arc<Buffers>, most: u64) -> Self {
        let claim = Claim::on([buffers.disk.clone()]);
        Self {
            buffers: buffers.clone(),
            most,
            claim,
            file: None,
            written: 0,
            pending: BytesMut::new(),
            writing: None,
            failed: false,
            read: 0,
            reading: None,
        }
    }

    /// Bytes that went in since the file was last empty.
    pub(crate) fn length(&self) -> u64 {
        let writing = self.writing.as_ref().map_or(0, |(length, _)| *length);
        self.written + writing + self.pending.len() as u64
    }

    /// Whether everything that went in came out.
    pub(crate) fn is_empty(&self) -> bool {
        self.read == self.length()
    }

    /// Whether there is room for so many bytes.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        !self.failed && self.length() + bytes <= self.most && self.claim.has_room()
    }

    /// Ready when [`push`](Self::push) may be called: at most one piece is on its way and another one gathers.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pending.len() >= PIECE {
            ready!(self.poll_written(cx))?;
            self.write();
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn push(&mut self, data: &[u8]) {
        self.claim.add(data.len() as u64);
        self.buffers.spooled.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.pending.extend_from_slice(data);
        if self.pending.len() >= PIECE && self.writing.is_none() {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.failed {
            return;
        }
        let (piece, at) = (std::mem::take(&mut self.pending), self.written);
        let (file, buffers) = (self.file.clone(), self.buffers.clone());
        let length = piece.len() as u64;
        let write = move |piece: &[u8]| {
            let file = match file {
                Some(file) => file,
                None => Arc::new(tempfile::tempfile_in(&buffers.directory)?),
            };
            file.write_all_at(piece, at)?;
            Ok(file)
        };
        self.writing = Some((length, spawn_blocking(move || write(&piece).map_err(|error| (error, piece)))));
    }

    /// Waits for the piece that is on its way. An error only where it is lost: the process is ending.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some((length, writing)) = &mut self.writing else { return Poll::Ready(Ok(())) };
        let written = ready!(Pin::new(writing).poll(cx));
        let length = *length;
        self.writing = None;
        match written.map_err(io::Error::other)? {
            Ok(file) => {
                self.file = Some(file);
                self.written += length;
            }
            Err((error, mut piece)) => {
                tracing::warn!(%error, directory = %self.buffers.directory.display(), "cannot spool");
                piece.extend_from_slice(&self.pending);
                self.pending = piece;
                self.failed = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next bytes, first in first out; `None` while there are none.
    pub(crate) fn poll_pop(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if self.reading.is_none() {
            if self.read == self.written && self.writing.is_some() {
                ready!(self.poll_written(cx))?;
            }
            if self.read == self.written {
                // What has not gone to disk need not go there. Then the file begins anew: it grows no further.
                let data = std::mem::take(&mut self.pending).freeze();
                (self.written, self.read) = (0, 0);
                self.claim.release(u64::MAX);
                return Poll::Ready(Ok((!data.is_empty()).then_some(data)));
            }
            let Some(file) = &self.file else { return Poll::Ready(Ok(None)) };
            self.reading = Some(read(file.clone(), self.read, self.written));
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(Ok(None)) };
        let data = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let data = data.map_err(io::Error::other)??;
        self.read += data.len() as u64;
        Poll::Ready(Ok(Some(data)))
    }

    /// Writes what is left, and gives a reader of the whole.
    pub(crate) async fn finish(mut self) -> io::Result<SpoolReader> {
        poll_fn(|cx| self.poll_written(cx)).await?;
        if !self.pending.is_empty() {
            self.write();
            poll_fn(|cx| self.poll_written(cx)).await?;
        }
        let Self { file, written, claim, pending, .. } = self;
        let whole = Whole { file, length: written, tail: pending.freeze(), _claim: claim };
        Ok(SpoolReader { whole: Arc::new(whole), at: 0, reading: None })
    }
}

fn read(file: Arc<File>, at: u64, end: u64) -> JoinHandle<io::Result<Bytes>> {
    let size = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
    spawn_blocking(move || {
        let mut piece = BytesMut::zeroed(size);
        file.read_exact_at(&mut piece, at)?;
        Ok(piece.freeze())
    })
}

struct Whole {
    file: Option<Arc<File>>,
    length: u64,
    /// What the disk did not take.
    tail: Bytes,
    _claim: Claim,
}

/// A complete spool file, read from its beginning. Each clone reads for itself.
pub(crate) struct SpoolReader {
    whole: Arc<Whole>,
    at: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

impl Clone for SpoolReader {
    fn clone(&self) -> Self {
        Self { whole: self.whole.clone(), at: 0, reading: None }
    }
}

impl SpoolReader {
    /// The next bytes; `None` at the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Whole { file, length, tail, .. } = &*self.whole;
        let Some(file) = file.as_ref().filter(|_| self.at < *length) else {
            let left = tail.slice(usize::try_from(self.at - length).unwrap_or(0).min(tail.len())..);
            self.at += left.len() as u64;
            return Poll::Ready((!left.is_empty()).then_some(Ok(left)));
        };
        let reading = self.reading.get_or_insert_with(|| read(file.clone(), self.at, *length));
        let data = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let data = data.map_err(io::Error::other).and_then(|data| data);
        if let Ok(data) = &data {
            self.at += data.len() as u64;
        }
        Poll::Ready(Some(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(disk: u64) -> Arc<Buffers> {
        Buffers::new(0, disk, std::env::temp_dir())
    }

    fn pattern(from: usize, length: usize) -> Vec<u8> {
        (from..from + length).map(|at| (at * 31 / 7) as u8).collect()
    }

    async fn pop(spool: &mut Spool) -> Option<Bytes> {
        poll_fn(|cx| spool.poll_pop(cx)).await.expect("a disk")
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_in_order_while_more_goes_in() {
        let buffers = buffers(1 << 30);
        let mut spool = Spool::new(&buffers, 1 << 30);
        let (mut pushed, mut popped) = (0, 0);
        for round in 0..60_usize {
            for _ in 0..round % 7 {
                let length = 1 + round * 997 % 30_000;
                poll_fn(|cx| spool.poll_ready(cx)).await.expect("a disk");
                spool.push(&pattern(pushed, length));
                pushed += length;
            }
            for _ in 0..round % 5 {
                if let Some(data) = pop(&mut spool).await {
                    assert_eq!(data, pattern(popped, data.len()));
                    popped += data.len();
                }
            }
        }
        while let Some(data) = pop(&mut spool).await {
            assert_eq!(data, pattern(popped, data.len()));
            popped += data.len();
        }
        assert_eq!(popped, pushed);
        assert!(spool.is_empty() && spool.length() == 0);
        assert_eq!(buffers.disk.used(), 0);
    }

    #[tokio::test]
    async fn a_finished_file_is_read_by_everyone_from_its_beginning_and_given_back() {
        let buffers = buffers(1 << 30);
        let mut spool = Spool::new(&buffers, 300_000);
        let whole = pattern(0, 300_000);
        for piece in whole.chunks(1000) {
            assert!(spool.has_room(1000));
            poll_fn(|cx| spool.poll_ready(cx)).await.expect("a disk");
            spool.push(piece);
        }
        assert!(!spool.has_room(1));
        let reader = spool.finish().await.expect("a disk");
        for _ in 0..2 {
            let mut reader = reader.clone();
            let mut read = Vec::new();
            while let Some(data) = poll_fn(|cx| reader.poll_next(cx)).await {
                read.extend_from_slice(&data.expect("a disk"));
            }
            assert!(read == whole);
        }
        assert_eq!(buffers.disk.used(), 300_000);
        drop(reader);
        assert_eq!(buffers.disk.used(), 0);
    }

    #[tokio::test]
    async fn what_a_failing_disk_does_not_take_is_not_lost() {
        let buffers = Buffers::new(0, 1 << 30, "/nowhere/at/all".into());
        let whole = pattern(0, 3 * PIECE);
        let filled = async || {
            let mut spool = Spool::new(&buffers, 1 << 30);
            let mut pushed = 0;
            for piece in whole.chunks(PIECE / 2) {
                if spool.has_room(1) {
                    poll_fn(|cx| spool.poll_ready(cx)).await.expect("a runtime");
                    spool.push(piece);
                    pushed += piece.len();
                }
            }
            poll_fn(|cx| spool.poll_ready(cx)).await.expect("a runtime");
            assert!(!spool.has_room(1));
            (spool, pushed)
        };
        let (mut spool, pushed) = filled().await;
        let mut popped = Vec::new();
        while let Some(data) = pop(&mut spool).await {
            popped.extend_from_slice(&data);
        }
        assert!(popped == whole[..pushed]);

        let (spool, pushed) = filled().await;
        let mut reader = spool.finish().await.expect("a runtime");
        let mut read = Vec::new();
        while let Some(data) = poll_fn(|cx| reader.poll_next(cx)).await {
            read.extend_from_slice(&data.expect("memory"));
        }
        assert!(read == whole[..pushed]);
    }
}
