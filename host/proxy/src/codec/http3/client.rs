//! The upstream's side of HTTP/3: requests as streams of a shared connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use h3::error::Code;
use http::{Method, StatusCode};
use quinn::ConnectionError;
use tidegate_policy::{Cause, Fault, HttpVersion, ResponseHead};

use super::body::{BodyReader, BodyWriter};
use super::control::Control;
use super::fields::{self, Bounds, Wrong};
use super::frame::Settings;
use super::link::{Course, Link, Role};
use super::message::Piece;
use super::stream::{Broken, Reader, Writer};
use super::uni;
use crate::body::{Arrived, Incoming, Length, Outgoing};
use crate::codec::pseudo::stated_length;
use crate::exchange::OutgoingHead;
use crate::timer::Timers;

/// Most interim responses before the final one.
const MAX_INTERIM: usize = 16;
/// How long an origin may give no credit for a request. The attempt's own times are mostly shorter.
const PATIENCE: Duration = Duration::from_secs(60);

/// No id of a stream is as large: with this, those that have none yet are told of GOAWAY too.
const WAITS_FOR_A_STREAM: u64 = 1 << 63;

/// An upstream connection shared by many streams. Clones share it; it ends when the last is gone, or when either side
/// closes it.
#[derive(Clone)]
pub(crate) struct ClientConnection {
    shared: Rc<Shared>,
}

struct Shared {
    link: Open,
    timers: Timers,
    max_head: usize,
    open: Cell<bool>,
    /// Streams under way, and how many the peer was seen to allow.
    streams: Cell<usize>,
    allowed: Cell<usize>,
    /// Requests that wait for a stream, and those that ever did.
    waiting: Cell<usize>,
    waited: Cell<u64>,
    /// Held open for as long as the connection is.
    _control: Control,
}

impl Shared {
    /// Requests that have a stream.
    fn under_way(&self) -> usize {
        self.streams.get().saturating_sub(self.waiting.get())
    }
}

/// The connection, which its other tasks would hold open without us.
struct Open(Rc<Link>);

impl Deref for Open {
    type Target = Rc<Link>;

    fn deref(&self) -> &Rc<Link> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close(Code::H3_NO_ERROR, "");
    }
}

impl ClientConnection {
    /// Exchanges settings over a connection whose handshake is done. Waits for as long as the origin gives no room for a
    /// control stream: the caller has a time for it.
    pub(crate) async fn connect(
        connection: quinn::Connection,
        max_head: usize,
        timers: &Timers,
    ) -> Result<Self, Fault> {
        let link = Open(Link::new(connection, Role::Client));
        tokio::task::spawn_local(uni::accept(link.clone()));
        let settings =
            Settings { max_field_section_size: Some(max_head as u64), connect_protocol: false, datagrams: false };
        let control = Control::open(&link, settings)
            .await
            .map_err(|error| Fault::new(Cause::ConnectFailed, format!("no HTTP/3 settings: {error}")))?;
        let shared = Shared {
            link,
            timers: timers.clone(),
            max_head,
            open: Cell::new(true),
            streams: Cell::new(0),
            allowed: Cell::new(usize::MAX),
            waiting: Cell::new(0),
            waited: Cell::new(0),
            _control: control,
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Whether the origin takes extended CONNECT (RFC 9220, section 3), once its SETTINGS have come.
    pub(crate) async fn takes_tunnels(&self) -> bool {
        self.shared.link.settled().await.connect_protocol
    }

    /// Sends the head. The peer's stream limit is waited for.
    pub(crate) async fn start(&self, head: &OutgoingHead, length: Length) -> Result<(Outgoing, Awaiting), Fault> {
        let shared = &self.shared;
        let place = Place::take(shared);
        let opening = shared.link.connection.open_bi();
        let mut opening = std::pin::pin!(opening);
        let opened = match opening.as_mut().now_or_never() {
            Some(opened) => opened,
            None => {
                let waits = Waits::begin(shared);
                // QUIC tells the limit on streams only by granting none.
                shared.allowed.set(shared.under_way().max(1));
                let opened = poll_fn(|cx| {
                    if shared.link.goaway().is_some() {
                        return Poll::Ready(None);
                    }
                    shared.link.watch_goaway(waits.key, cx);
                    opening.as_mut().poll(cx).map(Some)
                });
                let Some(opened) = opened.await else { return Err(self.gone()) };
                drop(waits);
                shared.allowed.set(shared.allowed.get().max(shared.under_way()));
                opened
            }
        };
        let (send, recv) = opened.map_err(|error| {
            shared.open.set(false);
            self.lost(&error).nothing_written()
        })?;
        let id = u64::from(send.id());
        let course = Course::new(&shared.link);
        let mut writer = Writer::new(send, course.clone(), &shared.timers, Some(PATIENCE), Code::H3_REQUEST_CANCELLED);
        // RFC 9114, section 5.2: after GOAWAY no request may be begun.
        if shared.link.goaway().is_some() {
            return Err(self.gone());
        }
        let wanted = shared.link.peer().max_field_section_size;
        let Some(frame) = fields::request_frame(head, length, wanted) else {
            let fault = Fault::new(Cause::Reset, "the head is larger than the origin wants");
            return Err(fault.nothing_written());
        };
        let reader = Reader::new(recv, course, shared.max_head);
        let method = head.method.clone();
        let mut awaiting = Awaiting { reader: Some(reader), tunnel: None, id, method, interim: 0, place };
        // An origin that stops reading may have answered already (section 4.1): what comes tells.
        let sent = writer.section(frame).await;
        let out = match (sent, length) {
            // Nothing is sent into a tunnel that is not open yet.
            (Ok(()), _) if head.upgrade.is_some() => {
                awaiting.tunnel = Some(Box::new(BodyWriter::new(writer)));
                Outgoing::Ended
            }
            (Ok(()), Length::None) => {
                // Fails on a stream that is over, which the response tells.
                let _ = writer.finish();
                Outgoing::Ended
            }
            (Ok(()), _) => Outgoing::Http3(BodyWriter::new(writer)),
            (Err(gone), _) => {
                if let Some(error) = shared.link.connection.close_reason() {
                    return Err(self.lost(&error));
                }
                tracing::debug!(%gone, "an origin did not take a request head");
                Outgoing::Http3(BodyWriter::new(writer))
            }
        };
        Ok((out, awaiting))
    }

    /// Takes new streams: open, no GOAWAY seen.
    pub(crate) fn open(&self) -> bool {
        let link = &self.shared.link;
        self.shared.open.get() && link.goaway().is_none() && link.connection.close_reason().is_none()
    }

    /// The peer's limit on concurrent streams, as far as known.
    pub(crate) fn max_streams(&self) -> usize {
        self.shared.allowed.get()
    }

    /// Takes no more streams from now on. The connection is closed when the last handle and stream are gone.
    pub(crate) fn retire(&self) {
        self.shared.open.set(false);
    }

    fn gone(&self) -> Fault {
        self.shared.open.set(false);
        Fault::new(Cause::GoAway, "the origin sent GOAWAY").nothing_written()
    }

    fn lost(&self, error: &ConnectionError) -> Fault {
        lost(&self.shared.link, error)
    }
}

/// Counts a stream until it ends.
struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self(shared.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

/// A request that waits for a stream.
struct Waits {
    shared: Rc<Shared>,
    /// No stream's id.
    key: u64,
}

impl Waits {
    fn begin(shared: &Rc<Shared>) -> Self {
        shared.waiting.set(shared.waiting.get() + 1);
        let count = shared.waited.replace(shared.waited.get() + 1);
        Self { shared: shared.clone(), key: WAITS_FOR_A_STREAM | count }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.shared.waiting.set(self.shared.waiting.get() - 1);
        self.shared.link.unwatch_goaway(self.key);
    }
}

/// The connection ended below a request.
fn lost(link: &Link, error: &ConnectionError) -> Fault {
    match link.violation() {
        Some(violation) => Fault::new(Cause::ResponseInvalid, format!("{}: {}", violation.code, violation.reason)),
        None => Fault::new(Cause::Reset, error),
    }
}

/// A response that has not come yet.
pub(crate) struct Awaiting {
    reader: Option<Reader>,
    /// Our half of the tunnel that was asked for.
    tunnel: Option<Box<BodyWriter>>,
    id: u64,
    method: Method,
    interim: usize,
    place: Place,
}

impl Awaiting {
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, Fault>> {
        let Some(reader) = &mut self.reader else {
            return Poll::Ready(Err(Fault::new(Cause::Internal, "the response came already")));
        };
        let (link, max_head) = (self.place.0.link.clone(), self.place.0.max_head);
        let piece = match reader.poll_piece(cx) {
            Poll::Ready(piece) => piece,
            Poll::Pending if link.goaway().is_some_and(|id| self.id >= id) => {
                // Section 5.2: it was not and will not be processed.
                return Poll::Ready(Err(Fault::new(Cause::GoAway, "GOAWAY names this request")));
            }
            Poll::Pending => {
                link.watch_goaway(self.id, cx);
                return Poll::Pending;
            }
        };
        let section = match piece {
            Ok(Some(Piece::Section(section))) => section,
            Ok(_) => {
                return Poll::Ready(Err(Fault::new(Cause::ResponseInvalid, "the stream ended without a response")));
            }
            Err(broken) => return Poll::Ready(Err(self.fault(&link, &broken))),
        };
        let bounds = Bounds { size: max_head, fields: usize::MAX };
        let (status, headers) = match fields::response(section, bounds) {
            Ok(head) => head,
            Err(Wrong::Violation(violation)) => {
                link.fail(violation);
                return Poll::Ready(Err(Fault::new(Cause::ResponseInvalid, violation.reason)));
            }
            Err(Wrong::Malformed(reason)) => return Poll::Ready(Err(self.malformed(Cause::ResponseInvalid, reason))),
            Err(Wrong::TooLarge) => {
                return Poll::Ready(Err(self.malformed(Cause::ResponseHeadTooLarge, "the head is too large")));
            }
        };
        let head = ResponseHead { version: HttpVersion::Http3, status, headers };
        if status.is_informational() {
            self.interim += 1;
            // Section 4.5: there is no 101 in HTTP/3.
            if self.interim > MAX_INTERIM || status == StatusCode::SWITCHING_PROTOCOLS {
                let reason = "101, or interim responses without an end";
                return Poll::Ready(Err(self.malformed(Cause::ResponseInvalid, reason)));
            }
            reader.was_interim();
            return Poll::Ready(Ok(Arrived::Interim(head)));
        }
        if let Some(mut writer) = self.tunnel.take() {
            if status.is_success() {
                let Some(reader) = self.reader.take() else { return Poll::Pending };
                let incoming = Incoming::Http3(Box::new(BodyReader::new(reader, Length::Unknown, bounds)));
                return Poll::Ready(Ok(Arrived::Tunnel(head, incoming, Outgoing::Http3(*writer))));
            }
            // Refused: a request without content like any other. The response tells what else is wrong.
            let _ = writer.end();
        }
        let Ok(length) = stated_length(&head.headers, false) else {
            return Poll::Ready(Err(self.malformed(Cause::ResponseInvalid, "content-length is not one number")));
        };
        let bodiless =
            self.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        // Section 4.1.2: such a response may state a length that it does not have.
        let length = if bodiless { Length::None } else { length };
        let Some(reader) = self.reader.take() else { return Poll::Pending };
        let mut body = BodyReader::new(reader, length, bounds);
        body.look();
        if body.is_malformed() {
            return Poll::Ready(Err(Fault::new(Cause::ResponseInvalid, "the content differs from content-length")));
        }
        // One without content is read to its end all the same: to stop it would look like a request that is given up.
        let body = if body.ended() && body.length() == Length::None {
            Incoming::Empty
        } else {
            Incoming::Http3(Box::new(body))
        };
        Poll::Ready(Ok(Arrived::Final(head, body)))
    }

    /// What an end proves about the request (section 4.1.1, section 5.2).
    fn fault(&mut self, link: &Link, broken: &Broken) -> Fault {
        match broken {
            Broken::Reset(code) if *code == Code::H3_REQUEST_REJECTED.value() => {
                Fault::new(Cause::RefusedStream, broken)
            }
            _ if link.goaway().is_some_and(|id| self.id >= id) => Fault::new(Cause::GoAway, broken),
            Broken::Reset(_) => Fault::new(Cause::StreamReset, broken),
            Broken::Lost(error) => lost(link, error),
            Broken::Violation(_) => Fault::new(Cause::ResponseInvalid, broken),
            Broken::TooLarge => self.malformed(Cause::ResponseHeadTooLarge, "the head is too large"),
        }
    }

    fn malformed(&mut self, cause: Cause, reason: &'static str) -> Fault {
        if let Some(reader) = &mut self.reader {
            reader.stop(Code::H3_MESSAGE_ERROR);
        }
        Fault::new(cause, reason)
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.place.0.link.unwatch_goaway(self.id);
    }
}
