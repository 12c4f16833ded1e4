//! Our own control stream (RFC 9114, section 6.2.1): SETTINGS at once, GOAWAY when the time has come. QPACK's two streams
//! are not opened, since there is no dynamic table to speak of (RFC 9204, section 4.2).

use std::pin::Pin;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use h3::error::Code;
use quinn::WriteError;

use super::frame::{self, Settings, Violation};
use super::link::Link;
use super::varint as number;

pub(super) struct Control {
    link: Rc<Link>,
    send: quinn::SendStream,
    unsent: BytesMut,
}

impl Control {
    /// Opens the stream and sends SETTINGS. Waits for as long as the peer gives no room: the caller has a time for it.
    pub(super) async fn open(link: &Rc<Link>, settings: Settings) -> Result<Self, quinn::ConnectionError> {
        let send = link.connection.open_uni().await?;
        // What it says must not wait behind bodies. Fails on a stream that is over.
        let _ = send.set_priority(i32::MAX);
        tokio::task::spawn_local(watch(link.clone(), send.stopped()));
        let mut unsent = BytesMut::new();
        // The type of the stream.
        number::write(&mut unsent, 0);
        settings.write(&mut unsent);
        let mut control = Self { link: link.clone(), send, unsent };
        control.flush().await;
        Ok(control)
    }

    /// Has GOAWAY sent by the next `flush`.
    pub(super) fn goaway(&mut self, id: u64) {
        frame::write_goaway(&mut self.unsent, id);
    }

    pub(super) fn unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what there is. May be dropped and called again.
    pub(super) async fn flush(&mut self) {
        while !self.unsent.is_empty() {
            let written = std::future::poll_fn(|cx| Pin::new(&mut self.send).poll_write(cx, &self.unsent)).await;
            match written {
                Ok(count) => self.unsent.advance(count),
                Err(error) => {
                    self.unsent.clear();
                    if let WriteError::Stopped(_) = error {
                        self.link.fail(STOPPED);
                    }
                }
            }
        }
    }
}

/// Section 6.2.1: neither side may close it, nor ask for that.
const STOPPED: Violation = Violation::new(Code::H3_CLOSED_CRITICAL_STREAM, "the control stream was stopped");

async fn watch(link: Rc<Link>, stopped: impl Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>>) {
    if let Ok(Some(_)) = stopped.await {
        link.fail(STOPPED);
    }
}
