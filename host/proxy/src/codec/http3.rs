//! HTTP/3 for clients, over quinn and the `h3` crate (RFC 9114).
use std::rc::Rc;
use std::task::{Context, Poll};

use tidegate_policy::ResponseHead;

use crate::body::{BodyError, Frame, Length, SinkGone};
use crate::codec::Served;
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
/// Serves one QUIC connection until it ends.
pub(crate) async fn serve(_connection: quinn::Connection, _served: Rc<Served>, _timers: Timers) { unreachable!() }
