//! HTTP/1.1 and 1.0 on both sides (RFC 9112).
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
    pub(crate) async fn flush(&mut self) -> Result<(), SinkGone> { unreachable!() }
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
/// An upstream connection: one request in flight. Clones share it.
#[derive(Clone)]
pub(crate) struct ClientConnection;
impl ClientConnection {
    pub(crate) fn new(_stream: Stream, _max_head_bytes: usize) -> Self { unreachable!() }
    /// Writes the head into the buffer (flushed by the BodyWriter, or here when there is no body).
    pub(crate) async fn start(&self, _head: &OutgoingHead, _length: Length) -> Result<(crate::body::Outgoing, Awaiting), Fault> { unreachable!() }
    /// Request and response both complete, keep-alive agreed, nothing unsolicited read: fit for another request.
    pub(crate) fn reusable(&self) -> bool { unreachable!() }
    /// Still open and silent: checked at checkout, and while idle. Ready = must be discarded.
    pub(crate) fn poll_stale(&self, _cx: &mut Context<'_>) -> Poll<()> { unreachable!() }
    /// Whether any byte of the current request has left the process.
    pub(crate) fn written(&self) -> bool { unreachable!() }
}
/// Serves one downstream connection until it ends.
pub(crate) async fn serve(_stream: Stream, _served: Rc<Served>, _timers: Timers) { unreachable!() }
