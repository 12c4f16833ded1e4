//! The client's side of HTTP/3: streams become exchanges, a task each.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h3::error::Code;
use http::{HeaderMap, Method, StatusCode};
use tidegate_policy::{HttpVersion, ResponseHead};
use tokio::sync::Notify;

use super::body::{BodyReader, BodyWriter};
use super::control::Control;
use super::fields::{self, Bounds};
use super::frame::Settings;
use super::link::{Course, Link, Role, varint as code};
use super::stream::{Broken, Piece, Reader, Writer, stopped_with};
use super::{uni, varint};
use crate::body::{Incoming, Length, Outgoing, SinkGone};
use crate::codec::pseudo::{Refused, request_head, stated_length};
use crate::codec::{Served, date};
use crate::timer::{Deadline, Timers};
use crate::worker::Drain;

/// How long a response that was sent whole may stay unacknowledged before its stream no longer holds the connection.
const DELIVERY: Duration = Duration::from_secs(5);

/// Serves one QUIC connection until it ends. `retired` begins when its listener goes.
pub(crate) async fn serve(connection: quinn::Connection, served: Rc<Served>, timers: Timers, retired: Rc<Drain>) {
    let limits = &served.listener.limits;
    let link = Link::new(connection, Role::Server);
    tokio::task::spawn_local(uni::accept(link.clone()));
    let settings = Settings {
        max_field_section_size: Some(limits.max_header_bytes as u64),
        // The exchange has no tunnels yet: such requests are refused with 501.
        connect_protocol: false,
    };
    let mut deadline = Deadline::after(&timers, Some(limits.handshake_timeout));
    let control = tokio::select! {
        control = Control::open(&link, settings) => control.map_err(|error| error.to_string()),
        // RFC 9114, section 6.2: a client must allow at least three such streams.
        () = deadline.elapsed() => Err("no room for a control stream".to_owned()),
    };
    match control {
        Ok(control) => Connection::new(&served, &link, control, &timers).serve(&retired).await,
        Err(reason) => {
            served.refused(HttpVersion::Http3, 0, &format!("no HTTP/3 settings: {reason}"));
            link.close(Code::H3_GENERAL_PROTOCOL_ERROR, "no room for a control stream");
        }
    }
    if let Some(violation) = link.violation() {
        served.refused(HttpVersion::Http3, 0, &format!("{}: {}", violation.code, violation.reason));
    }
}

/// Where the connection is on the way to its end (section 5.2).
enum Closing {
    Open,
    /// GOAWAY said that an end is near; a round trip later no request is under way that knows nothing of it.
    Announced(Deadline),
    /// GOAWAY named the first request that is not taken. Stays a round trip to say so to those that come.
    Named(Deadline),
}

struct Connection<'a> {
    served: &'a Rc<Served>,
    link: &'a Rc<Link>,
    control: Control,
    timers: &'a Timers,
    streams: Rc<Streams>,
    closing: Closing,
    /// The id after that of the last request.
    next: u64,
}

enum Event {
    Stream(quinn::SendStream, quinn::RecvStream),
    Lost(quinn::ConnectionError),
    /// It is time to go.
    Leave,
    /// The round trip of this step is over.
    Step,
    /// A stream ended, or GOAWAY went out.
    Again,
}

impl<'a> Connection<'a> {
    fn new(served: &'a Rc<Served>, link: &'a Rc<Link>, control: Control, timers: &'a Timers) -> Self {
        Self { served, link, control, timers, streams: Rc::default(), closing: Closing::Open, next: 0 }
    }

    async fn serve(mut self, retired: &Drain) {
        let limits = &self.served.listener.limits;
        let mut count = 0;
        let mut idle = Deadline::after(self.timers, Some(limits.idle_timeout));
        loop {
            match self.event(&mut idle, retired).await {
                Event::Stream(send, recv) => {
                    let id = u64::from(send.id());
                    if matches!(self.closing, Closing::Named(_)) {
                        reject(send, recv);
                        continue;
                    }
                    self.next = id + 4;
                    self.link.request();
                    self.begin(send, recv);
                    count += 1;
                    if count >= limits.max_requests_per_connection {
                        self.leave();
                    }
                }
                Event::Lost(error) => {
                    tracing::debug!(%error, "an HTTP/3 connection ended");
                    return;
                }
                Event::Leave => self.leave(),
                Event::Again => idle.restart(),
                Event::Step => match self.closing {
                    Closing::Open => {}
                    Closing::Announced(_) => {
                        self.control.goaway(self.next);
                        self.closing = Closing::Named(Deadline::after(self.timers, Some(self.round_trip())));
                    }
                    Closing::Named(_) => {
                        // Everything is answered, and acknowledged.
                        self.link.close(Code::H3_NO_ERROR, "");
                        return;
                    }
                },
            }
        }
    }

    async fn event(&mut self, idle: &mut Deadline, retired: &Drain) -> Event {
        let busy = self.streams.active.get() > 0;
        let open = matches!(self.closing, Closing::Open);
        let (link, control, closing) = (self.link, &mut self.control, &mut self.closing);
        let unsent = control.unsent();
        let step = poll_fn(|cx| match closing {
            Closing::Announced(deadline) => deadline.poll_elapsed(cx),
            Closing::Named(deadline) if !busy && !unsent => deadline.poll_elapsed(cx),
            _ => Poll::Pending,
        });
        tokio::select! {
            biased;
            accepted = link.connection.accept_bi() => match accepted {
                Ok((send, recv)) => Event::Stream(send, recv),
                Err(error) => Event::Lost(error),
            },
            () = control.flush(), if unsent => Event::Again,
            () = self.streams.ended.notified(), if busy => Event::Again,
            () = step => Event::Step,
            () = self.served.drained(), if open => Event::Leave,
            () = retired.begun(), if open => Event::Leave,
            () = idle.elapsed(), if open && !busy => Event::Leave,
        }
    }

    /// Section 5.2: first that an end is near, with the largest id there is.
    fn leave(&mut self) {
        if matches!(self.closing, Closing::Open) {
            self.control.goaway(varint::MAX - 3);
            self.closing = Closing::Announced(Deadline::after(self.timers, Some(self.round_trip())));
        }
    }

    fn round_trip(&self) -> Duration {
        self.link.connection.rtt().clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    fn begin(&self, send: quinn::SendStream, recv: quinn::RecvStream) {
        let running = Running::begin(&self.streams);
        let (served, course, timers) = (self.served.clone(), Course::new(self.link), self.timers.clone());
        tokio::task::spawn_local(async move {
            stream(&served, course, send, recv, &timers).await;
            drop(running);
        });
    }
}

/// Sections 4.1.1 and 5.2: nothing was done for it, so it may be sent again elsewhere.
fn reject(mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
    // Both fail on a stream that is over.
    let _ = recv.stop(code(Code::H3_REQUEST_REJECTED));
    let _ = send.reset(code(Code::H3_REQUEST_REJECTED));
}

#[derive(Default)]
struct Streams {
    active: Cell<usize>,
    ended: Notify,
}

struct Running(Rc<Streams>);

impl Running {
    fn begin(streams: &Rc<Streams>) -> Self {
        streams.active.set(streams.active.get() + 1);
        Self(streams.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.ended.notify_one();
    }
}

/// One request, and its response until the client has all of it: closing the connection before would lose the rest.
async fn stream(
    served: &Rc<Served>,
    course: Rc<Course>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    timers: &Timers,
) {
    let limits = &served.listener.limits;
    let mut stopped = pin!(send.stopped());
    let mut over = false;
    let reader = Reader::new(recv, course.clone(), limits.max_header_bytes);
    let writer = Writer::new(send, course.clone(), timers, Some(limits.body_idle_timeout), Code::H3_INTERNAL_ERROR);
    {
        let mut work = pin!(resolve(served, reader, writer, timers));
        poll_fn(|cx| {
            if !over && let Poll::Ready(end) = stopped.as_mut().poll(cx) {
                over = true;
                *course.stopped.borrow_mut() = match end {
                    Ok(Some(code)) => {
                        course.cancelled();
                        Some(stopped_with(code.into_inner()))
                    }
                    // All acknowledged: nobody left.
                    Ok(None) => None,
                    Err(error) => Some(error.to_string()),
                };
            }
            work.as_mut().poll(cx)
        })
        .await;
    }
    if course.finished.get() && !over {
        let mut deadline = Deadline::after(timers, Some(DELIVERY));
        tokio::select! {
            _ = stopped => {}
            () = deadline.elapsed() => {}
        }
    }
}

/// Reads the head, within the header time, and runs the exchange.
async fn resolve(served: &Rc<Served>, mut reader: Reader, mut writer: Writer, timers: &Timers) {
    let limits = &served.listener.limits;
    let mut deadline = Deadline::after(timers, Some(limits.header_timeout));
    let piece = tokio::select! {
        piece = poll_fn(|cx| reader.poll_piece(cx)) => piece,
        () = deadline.elapsed() => {
            let late = Refused::Status(StatusCode::REQUEST_TIMEOUT, "the head did not come in time");
            return refuse(served, reader, writer, late).await;
        }
    };
    let section = match piece {
        Ok(Some(Piece::Section(section))) => section,
        Ok(_) => {
            // Section 4.1.
            served.refused(HttpVersion::Http3, 400, "the stream ends before its head");
            return writer.reset(Code::H3_REQUEST_INCOMPLETE);
        }
        Err(Broken::TooLarge) => {
            let large = Refused::Status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too large");
            return refuse(served, reader, writer, large).await;
        }
        Err(broken @ Broken::Reset(_)) => {
            served.refused(HttpVersion::Http3, 0, &broken.to_string());
            return writer.reset(Code::H3_REQUEST_CANCELLED);
        }
        // The connection is gone, and tells why.
        Err(Broken::Lost(_) | Broken::Violation(_)) => return,
    };
    let bounds = Bounds { size: limits.max_header_bytes, fields: limits.max_headers };
    let parts = match fields::request(section, bounds) {
        Ok(parts) => parts,
        Err(fields::Wrong::Violation(violation)) => return writer.course().link.fail(violation),
        Err(wrong) => match fields::refused(&wrong) {
            Some(refused) => return refuse(served, reader, writer, refused).await,
            None => return,
        },
    };
    let head = request_head(parts, HttpVersion::Http3, served.connection.tls, limits.max_headers);
    let checked = head.and_then(|head| Ok((stated_length(&head.headers, false)?, head)));
    match checked {
        Ok((length, head)) => {
            let mut body = BodyReader::new(reader, length, bounds);
            settle(&mut body, &head.method).await;
            if body.is_malformed() {
                served.refused(HttpVersion::Http3, 400, "the content differs from content-length");
                return writer.reset(Code::H3_MESSAGE_ERROR);
            }
            let body = if body.length() == Length::None { Incoming::Empty } else { Incoming::Http3(body) };
            let reply = Reply { writer: Some(writer) };
            served.exchange(head, body, crate::body::Reply::Http3(reply)).await;
        }
        Err(refused) => refuse(served, reader, writer, refused).await,
    }
}

/// Only the stream's end tells that a request without content-length has no content, and it may come in a packet of its
/// own. For methods that hardly ever have content the packets that are there already are taken in first: a turn for the
/// runtime to see the socket, one for the endpoint, one for the connection. No time is waited for; the attempt looks
/// again when it has a connection.
async fn settle(body: &mut BodyReader, method: &Method) {
    body.look();
    let waits = match body.length() {
        Length::None => true,
        Length::Known(_) => false,
        Length::Unknown => [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS, Method::TRACE].contains(method),
    };
    for _ in 0..3 {
        if !waits || body.begun() || body.ended() {
            return;
        }
        tokio::task::yield_now().await;
        body.look();
    }
}

async fn refuse(served: &Served, mut reader: Reader, mut writer: Writer, refused: Refused) {
    match refused {
        Refused::Malformed(reason) => {
            // Section 4.1.2.
            served.refused(HttpVersion::Http3, 400, reason);
            reader.stop(Code::H3_MESSAGE_ERROR);
            writer.reset(Code::H3_MESSAGE_ERROR);
        }
        Refused::Status(status, reason) => {
            served.refused(HttpVersion::Http3, status.as_u16(), reason);
            reader.stop(Code::H3_NO_ERROR);
            let mut headers = HeaderMap::new();
            headers.insert(http::header::DATE, date::value());
            if let Some(frame) = fields::response_frame(status, &headers, None)
                && writer.section(frame).await.is_ok()
            {
                // A client that is gone needs no end.
                let _ = writer.finish();
            }
        }
    }
}

/// Where the response to one stream's request goes. Dropped unanswered, the stream is reset.
pub(crate) struct Reply {
    writer: Option<Writer>,
}

impl Reply {
    pub(crate) async fn interim(&mut self, head: ResponseHead) -> Result<(), SinkGone> {
        match &mut self.writer {
            Some(writer) => {
                let frame = frame(writer, head)?;
                writer.section(frame).await
            }
            None => Ok(()),
        }
    }

    pub(crate) async fn head(mut self, mut head: ResponseHead, length: Length) -> Result<Outgoing, SinkGone> {
        let Some(mut writer) = self.writer.take() else {
            return Err(SinkGone("the response was sent already".to_owned()));
        };
        if let Length::Known(length) = length {
            head.headers.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let frame = frame(&writer, head)?;
        writer.section(frame).await?;
        if matches!(length, Length::None | Length::Known(0)) {
            writer.finish()?;
            return Ok(Outgoing::Ended);
        }
        Ok(Outgoing::Http3(BodyWriter::new(writer)))
    }

    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<SinkGone> {
        match &mut self.writer {
            Some(writer) => writer.poll_closed(cx),
            None => Poll::Pending,
        }
    }
}

fn frame(writer: &Writer, head: ResponseHead) -> Result<Bytes, SinkGone> {
    // Section 4.5: there is no 101 in HTTP/3.
    let status = if head.status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::BAD_GATEWAY } else { head.status };
    let wanted = writer.course().link.peer().max_field_section_size;
    fields::response_frame(status, &head.headers, wanted)
        .ok_or_else(|| SinkGone("the head is larger than the client wants".to_owned()))
}
