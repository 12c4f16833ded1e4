//! Bodies that wait in the gateway, so that a slow client need not hold an upstream: in memory, then on disk.
//!
//! Everything here is for routes that ask for it. What one message may hold is its route's; what all of them may hold
//! together is an [`Allowance`] of the listener's and one of the gateway's. Who finds no room falls back to streaming: back-pressure is
//! what there was before, and never an error of its own.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

mod spool;

pub(crate) use spool::{Spool, SpoolReader};

/// Bytes that many bodies may hold together. Clones share the count.
#[derive(Clone, Debug)]
pub struct Allowance {
    most: u64,
    used: Arc<AtomicU64>,
}

impl Allowance {
    /// What is held under `previous` counts on.
    pub fn new(most: u64, previous: Option<&Self>) -> Self {
        Self { most, used: previous.map(|previous| previous.used.clone()).unwrap_or_default() }
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        self.used() < self.most
    }
}

/// What all buffered bodies of the process share.
#[derive(Debug)]
pub struct Buffers {
    pub memory: Allowance,
    pub disk: Allowance,
    /// Where spool files are made. They have no name there and are gone when nobody reads them, after a crash too.
    pub directory: PathBuf,
    /// Bytes that were written to disk so far.
    pub spooled: AtomicU64,
}

impl Buffers {
    /// `memory` and `disk` in bytes.
    pub fn new(memory: u64, disk: u64, directory: PathBuf) -> Arc<Self> {
        let (memory, disk) = (Allowance::new(memory, None), Allowance::new(disk, None));
        Arc::new(Self { memory, disk, directory, spooled: AtomicU64::new(0) })
    }
}

/// What one body holds of some allowances; given back when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    from: SmallVec<[Allowance; 2]>,
    bytes: u64,
}

impl Claim {
    pub(crate) fn on(from: impl IntoIterator<Item = Allowance>) -> Self {
        Self { from: from.into_iter().collect(), bytes: 0 }
    }

    /// Whether another frame may be held. It is asked before one is read, whose size is known only then: a worker can
    /// go beyond the bound by the one frame that it is about to read.
    pub(crate) fn has_room(&self) -> bool {
        self.from.iter().all(Allowance::has_room)
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        for allowance in &self.from {
            allowance.used.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(crate) fn release(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        for allowance in &self.from {
            allowance.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

/// Frames in memory, first in first out.
#[derive(Default)]
pub(crate) struct Frames {
    queue: VecDeque<Bytes>,
    /// Small frames are copied together: each is a slice of some codec's buffer, and a byte of a slow client would keep
    /// all of that alive.
    tail: BytesMut,
    bytes: u64,
}

/// Frames below this many bytes are copied together, into pieces of this size.
const SMALL: usize = 4096;

impl Frames {
    pub(crate) fn push(&mut self, data: Bytes) {
        self.bytes += data.len() as u64;
        if data.len() >= SMALL {
            self.close_tail();
            self.queue.push_back(data);
            return;
        }
        if self.tail.len() + data.len() > SMALL {
            self.close_tail();
        }
        self.tail.extend_from_slice(&data);
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if self.queue.is_empty() {
            self.close_tail();
        }
        let data = self.queue.pop_front()?;
        self.bytes -= data.len() as u64;
        Some(data)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn into_queue(mut self) -> VecDeque<Bytes> {
        self.close_tail();
        self.queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_are_kept_together_and_in_order() {
        let mut frames = Frames::default();
        let mut sent = Vec::new();
        for size in [1, 1, 5000, 3, 4095, 2, 0, 4096, 7] {
            let data = vec![size as u8; size];
            sent.extend_from_slice(&data);
            frames.push(data.into());
        }
        assert_eq!(frames.bytes(), sent.len() as u64);
        let mut got = frames.pop().expect("a frame").to_vec();
        assert_eq!(got, [1, 1]);
        while let Some(data) = frames.pop() {
            got.extend_from_slice(&data);
        }
        assert_eq!(got, sent);
        assert_eq!(frames.bytes(), 0);

        for _ in 0..10_000 {
            frames.push(Bytes::from_static(b"x"));
        }
        assert!(frames.into_queue().len() < 4, "a frame of a byte is no allocation of its own");
    }

    #[test]
    fn claims_count_against_all_their_allowances_and_are_given_back() {
        let all = Allowance::new(100, None);
        let listener = Allowance::new(10, None);
        let mut one = Claim::on([all.clone(), listener.clone()]);
        let mut other = Claim::on([all.clone()]);
        one.add(10);
        assert!(!one.has_room() && other.has_room(), "the listener is full, the gateway is not");
        other.add(90);
        assert!(!other.has_room());
        one.release(4);
        assert_eq!((all.used(), listener.used()), (96, 6));
        drop((one, other));
        assert_eq!((all.used(), listener.used()), (0, 0));
        // A reload changes the bound, and what is held counts on.
        let mut claim = Claim::on([all.clone()]);
        claim.add(7);
        assert_eq!(Allowance::new(7, Some(&all)).used(), 7);
    }
}
