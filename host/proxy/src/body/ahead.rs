//! A response that is read ahead of a client slower than its upstream, so that the upstream is free early.

use std::task::{Context, Poll};

use http::HeaderMap;

use super::{BodyError, Frame, Incoming};
use crate::buffer::{Claim, Frames, Spool};

/// First in first out between a body and its pump: memory, then disk while memory has no room. Nothing waits here that the
/// client would take: read-ahead delays no event stream.
pub(crate) struct ReadAhead {
    /// Gone once its end was read: that is what frees the upstream.
    source: Option<Incoming>,
    frames: Frames,
    memory: Claim,
    most: u64,
    spool: Option<Spool>,
    trailers: Option<HeaderMap>,
    broke: Option<BodyError>,
}

/// Where the next frame can go.
enum Room {
    Memory,
    Disk,
    /// A piece is on its way to the disk, and wakes when it is there.
    Soon,
    None,
}

impl ReadAhead {
    /// Of `source` at most `most` bytes in memory and what fits into `spool`.
    pub(crate) fn new(source: Incoming, most: u64, memory: Claim, spool: Option<Spool>) -> Self {
        let frames = Frames::default();
        Self { source: Some(source), frames, memory, most, spool, trailers: None, broke: None }
    }

    /// Whether the source was read to its end, or broke.
    pub(crate) fn complete(&self) -> bool {
        self.source.is_none()
    }

    /// Takes what the source has and there is room for. True if it stopped for want of room: then it is to be called again
    /// when a frame was taken.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let room = self.room(cx);
            let Some(source) = &mut self.source else { return false };
            if let Room::None | Room::Soon = room {
                return matches!(room, Room::None);
            }
            let Poll::Ready(frame) = source.poll_frame(cx) else { return false };
            match (frame, room) {
                (Some(Ok(Frame::Data(data))), Room::Disk) => {
                    if let Some(spool) = &mut self.spool {
                        spool.push(&data);
                    }
                }
                (Some(Ok(Frame::Data(data))), _) => {
                    self.memory.add(data.len() as u64);
                    self.frames.push(data);
                }
                (Some(Ok(Frame::Trailers(trailers))), _) => {
                    self.trailers = Some(trailers);
                    self.source = None;
                }
                (Some(Err(error)), _) => {
                    self.broke = Some(error);
                    self.source = None;
                }
                (None, _) => self.source = None,
            }
        }
    }

    /// Whether a frame that was taken made room.
    pub(crate) fn has_room(&self) -> bool {
        let on_disk = || self.spool.as_ref().is_some_and(|spool| spool.has_room(1));
        self.source.is_some() && (self.memory_takes() || on_disk())
    }

    fn memory_takes(&self) -> bool {
        let on_disk = self.spool.as_ref().is_some_and(|spool| !spool.is_empty());
        !on_disk && self.frames.bytes() < self.most && self.memory.has_room()
    }

    /// Memory comes first, but never ahead of what is on disk.
    fn room(&mut self, cx: &mut Context<'_>) -> Room {
        if self.memory_takes() {
            return Room::Memory;
        }
        let Some(spool) = self.spool.as_mut().filter(|spool| spool.has_room(1)) else { return Room::None };
        match spool.poll_ready(cx) {
            Poll::Ready(Ok(())) => Room::Disk,
            Poll::Ready(Err(error)) => {
                self.broke = Some(BodyError::Internal(format!("spool: {error}")));
                self.source = None;
                Room::None
            }
            Poll::Pending => Room::Soon,
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        if let Some(data) = self.frames.pop() {
            self.memory.release(data.len() as u64);
            return Poll::Ready(Some(Ok(Frame::Data(data))));
        }
        if let Some(spool) = self.spool.as_mut().filter(|spool| !spool.is_empty()) {
            match std::task::ready!(spool.poll_pop(cx)) {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(None) => {}
                Err(error) => {
                    self.source = None;
                    return Poll::Ready(Some(Err(BodyError::Internal(format!("spool: {error}")))));
                }
            }
        }
        if let Some(source) = &mut self.source {
            // Nothing is held: as without a buffer. That is how it streams when all room is taken by others.
            let frame = std::task::ready!(source.poll_frame(cx));
            if !matches!(frame, Some(Ok(Frame::Data(_)))) {
                self.source = None;
            }
            return Poll::Ready(frame);
        }
        if let Some(broke) = self.broke.take() {
            return Poll::Ready(Some(Err(broke)));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::Trailers(trailers))))
    }
}
