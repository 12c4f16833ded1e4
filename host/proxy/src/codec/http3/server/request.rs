//! One request stream of a client: its head, within the header time, then the exchange, and the way back.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h3::error::Code;
use http::{HeaderMap, Method, StatusCode};
use tidegate_policy::{HttpVersion, RequestHead, ResponseHead, Tunnel};

use crate::body::{Incoming, Length, Outgoing, SinkGone};
use crate::codec::http3::body::{BodyReader, BodyWriter};
use crate::codec::http3::datagrams::Datagrams;
use crate::codec::http3::fields::{self, Bounds};
use crate::codec::http3::link::Course;
use crate::codec::http3::message::Piece;
use crate::codec::http3::stream::{Broken, Reader, Writer, stopped_with};
use crate::codec::pseudo::{Refused, request_head, stated_length};
use crate::codec::{Served, date};
use crate::timer::{Deadline, Timers};

/// How long a response that was sent whole may stay unacknowledged before its stream no longer holds the connection.
const DELIVERY: Duration = Duration::from_secs(5);

/// One request, and its response until the client has all of it: closing the connection before would lose the rest.
pub(super) async fn serve(
    served: &Rc<Served>,
    course: Rc<Course>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    timers: &Timers,
) {
    let limits = &served.listener.limits;
    let id = u64::from(send.id());
    let mut stopped = pin!(send.stopped());
    let mut over = false;
    let reader = Reader::new(recv, course.clone(), limits.max_header_bytes);
    let writer = Writer::new(send, course.clone(), timers, Some(limits.body_idle_timeout), Code::H3_INTERNAL_ERROR);
    {
        let mut work = pin!(resolve(served, id, reader, writer, timers));
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
    let whole = course.finished.get() && course.stopped.borrow().is_none();
    if whole {
        course.link.completed();
    }
    if whole && !over {
        let mut deadline = Deadline::after(timers, Some(DELIVERY));
        tokio::select! {
            _ = stopped => {}
            () = deadline.elapsed() => {}
        }
    }
}

/// Reads the head, within the header time, and runs the exchange.
async fn resolve(served: &Rc<Served>, id: u64, mut reader: Reader, mut writer: Writer, timers: &Timers) {
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
            let link = writer.course().link.clone();
            let datagrams = (head.tunnel == Some(Tunnel::ConnectUdp)).then(|| Datagrams::open(&link, id));
            if datagrams.is_none() && link.flows.came_early(id) {
                // RFC 9297, section 2: for a request that knows none.
                served.refused(HttpVersion::Http3, 400, "datagrams with a request that has no use for them");
                link.cancelled();
                reader.stop(Code::H3_DATAGRAM_ERROR);
                return writer.reset(Code::H3_DATAGRAM_ERROR);
            }
            let mut body = BodyReader::new(reader, length, bounds);
            settle(&mut body, &head, &mut deadline).await;
            if body.is_malformed() {
                served.refused(HttpVersion::Http3, 400, "the content differs from content-length");
                writer.course().link.cancelled();
                return writer.reset(Code::H3_MESSAGE_ERROR);
            }
            if !served.handshake.is_complete() && !may_go_on(served, &head, body.length()).await {
                return;
            }
            let body = if body.length() == Length::None { Incoming::Empty } else { Incoming::Http3(Box::new(body)) };
            let reply = Reply { writer: Some(writer), datagrams: datagrams.map(Box::new) };
            served.exchange(head, body, crate::body::Reply::Http3(reply)).await;
        }
        Err(refused) => refuse(served, reader, writer, refused).await,
    }
}

/// Only the stream's end tells that a request without content-length has no content, and it may come in a packet of its
/// own. For methods whose content has no meaning (RFC 9110, section 9.3) the head is taken for complete only when
/// something follows it: content, or the end, which a client must send without waiting for us (section 4.1). Else each
/// such GET would go upstream as a stream, and could not be sent again. One that says nothing for the header's time is
/// a stream.
async fn settle(body: &mut BodyReader, head: &RequestHead, deadline: &mut Deadline) {
    const WITHOUT_CONTENT: [Method; 5] = [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS, Method::TRACE];
    body.look();
    // A client that expects 100 (Continue), or asks for a tunnel, waits for us.
    let waits = head.headers.contains_key(http::header::EXPECT) || head.tunnel.is_some();
    let told = waits || !WITHOUT_CONTENT.contains(&head.method);
    if body.length() == Length::Unknown && !told {
        tokio::select! {
            biased;
            () = poll_fn(|cx| body.poll_look(cx)) => {}
            () = deadline.elapsed() => {}
        }
    }
}

/// For a request in early data: one that is safe goes on at once, any other when the handshake has shown that it is no
/// replay (RFC 8470, sections 3 and 4). False if that never came.
async fn may_go_on(served: &Served, head: &RequestHead, content: Length) -> bool {
    let early = &served.worker.metrics.early;
    if head.method.is_safe() && head.tunnel.is_none() && content == Length::None {
        early.served.add(1);
        return true;
    }
    early.held.add(1);
    served.handshake.wait().await
}

async fn refuse(served: &Served, mut reader: Reader, mut writer: Writer, refused: Refused) {
    match refused {
        Refused::Malformed(reason) => {
            // Section 4.1.2.
            served.refused(HttpVersion::Http3, 400, reason);
            // What makes us reset is as cheap for the client as a reset of its own (CVE-2025-8671).
            writer.course().link.cancelled();
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
    datagrams: Option<Box<Datagrams>>,
}

impl Reply {
    pub(crate) fn datagrams(&mut self) -> Option<Datagrams> {
        self.datagrams.take().map(|datagrams| *datagrams)
    }

    pub(crate) async fn interim(&mut self, head: ResponseHead) -> Result<(), SinkGone> {
        match &mut self.writer {
            Some(writer) => {
                let frame = frame(writer, head)?;
                writer.section(frame).await
            }
            None => Ok(()),
        }
    }

    /// The head goes out with what follows it.
    pub(crate) fn head(mut self, mut head: ResponseHead, length: Length) -> Result<Outgoing, SinkGone> {
        let Some(mut writer) = self.writer.take() else {
            return Err(SinkGone("the response was sent already".to_owned()));
        };
        if let Length::Known(length) = length {
            head.headers.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let frame = frame(&writer, head)?;
        writer.hold(frame);
        let bodiless = matches!(length, Length::None | Length::Known(0));
        Ok(Outgoing::Http3(if bodiless { BodyWriter::bodiless(writer) } else { BodyWriter::new(writer) }))
    }

    /// Accepts a tunnel: DATA frames are its bytes from now on. Cut off, it is cancelled, as TCP is reset (RFC 9220,
    /// section 3); for `CONNECT`, and what is like it, there is a code of its own (RFC 9114, section 4.4).
    pub(crate) async fn open(mut self, head: ResponseHead, tunnel: Tunnel) -> Result<BodyWriter, SinkGone> {
        let Some(mut writer) = self.writer.take() else {
            return Err(SinkGone("the response was sent already".to_owned()));
        };
        writer.cut_off(match tunnel {
            Tunnel::WebSocket => Code::H3_REQUEST_CANCELLED,
            Tunnel::Connect | Tunnel::ConnectUdp => Code::H3_CONNECT_ERROR,
        });
        let frame = frame(&writer, head)?;
        writer.section(frame).await?;
        Ok(BodyWriter::new(writer))
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
