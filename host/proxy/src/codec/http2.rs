//! HTTP/2 on both sides, over the `h2` crate (RFC 9113).
use std::rc::Rc;
use std::task::{Context, Poll};

use tidegate_policy::{Fault, ResponseHead};

use crate::body::{Arrived, BodyError, Frame, Length, SinkGone};
use crate::codec::Served;
use crate::exchange::OutgoingHead;
use crate::stream::Stream;
use crate::timer::Timers;

pub(crate) struct BodyReader;
impl BodyReader {
    pub(crate) fn length(&self) -> Length { unreachable!() }
    pub(crate) fn poll_frame(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> { unreachable!() }
}
pub(crate) struct BodyWriter;
impl BodyWriter {
    pub(crate) async fn send(&mut self, _frame: Frame) -> Result<(), SinkGone> { unreachable!() }
    pub(crate) async fn finish(&mut self) -> Result<(), SinkGone> { unreachable!() }
    pub(crate) fn poll_closed(&mut self, _cx: &mut Context<'_>) -> Poll<SinkGone> { unreachable!() }
}
pub(crate) struct Reply;
impl Reply {
    pub(crate) async fn interim(&mut self, _head: ResponseHead) -> Result<(), SinkGone> { unreachable!() }
    pub(crate) async fn head(self, _head: ResponseHead, _length: Length) -> Result<crate::body::Outgoing, SinkGone> { unreachable!() }
    pub(crate) fn poll_closed(&mut self, _cx: &mut Context<'_>) -> Poll<SinkGone> { unreachable!() }
}
pub(crate) struct Awaiting;
impl Awaiting {
    pub(crate) fn poll_head(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Arrived, Fault>> { unreachable!() }
}
/// An upstream connection shared by many streams. Clones share it. Its driver task is spawned by `connect`.
#[derive(Clone)]
pub(crate) struct ClientConnection;
impl ClientConnection {
    /// Exchanges prefaces, spawns the driver (`spawn_local`).
    pub(crate) async fn connect(_stream: Stream, _max_head_bytes: usize) -> Result<Self, Fault> { unreachable!() }
    /// Waits for the peer's stream limit; `Cause::GoAway` (unprocessed) when the connection takes no more.
    pub(crate) async fn start(&self, _head: &OutgoingHead, _length: Length) -> Result<(crate::body::Outgoing, Awaiting), Fault> { unreachable!() }
    /// Takes new streams: open, no GOAWAY seen.
    pub(crate) fn open(&self) -> bool { unreachable!() }
    /// The peer's current SETTINGS_MAX_CONCURRENT_STREAMS as far as known.
    pub(crate) fn max_streams(&self) -> usize { unreachable!() }
    /// Closes it when the last stream ends (GOAWAY sent).
    pub(crate) fn retire(&self) { unreachable!() }
}
/// Serves one downstream connection until it ends. `stream` starts with the client preface.
pub(crate) async fn serve(_stream: Stream, _served: Rc<Served>, _timers: Timers) { unreachable!() }
