//! The client's side of HTTP/3: streams become exchanges, a task each, until the connection comes to its end.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use h3::error::Code;
use tidegate_policy::HttpVersion;

use super::control::Control;
use super::frame::Settings;
use super::link::{Course, Link, Role, varint as code};
use super::{datagrams, uni, varint};
use crate::codec::Served;
use crate::codec::streams::{Running, Streams};
use crate::timer::{Deadline, Timers};
use crate::worker::Drain;

mod request;

pub(crate) use request::Reply;

/// How long GOAWAY may wait for the client's credit before the connection is closed without it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves one QUIC connection until it ends. `retired` begins when its listener goes.
pub(crate) async fn serve(connection: quinn::Connection, served: Rc<Served>, timers: Timers, retired: Rc<Drain>) {
    let limits = &served.listener.limits;
    let link = Link::new(connection, Role::Server);
    tokio::task::spawn_local(uni::accept(link.clone()));
    tokio::task::spawn_local(datagrams::accept(link.clone(), served.worker.metrics.clone()));
    let settings = Settings {
        max_field_section_size: Some(limits.max_header_bytes as u64),
        // RFC 9220, section 3.
        connect_protocol: true,
        // Always: a connection outlives the routes of its beginning, and this is said once.
        datagrams: true,
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
    /// GOAWAY named the first request that is not taken. Stays a round trip to say so to those that come; no longer than
    /// the second time, when the client does not even take the GOAWAY.
    Named(Deadline, Deadline),
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
                    if matches!(self.closing, Closing::Named(..)) {
                        reject(send, recv);
                        if let Err(violation) = self.link.idle_frame() {
                            self.link.fail(violation);
                        }
                        continue;
                    }
                    self.next = id + 4;
                    self.proved(&recv);
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
                        let (soon, latest) = (self.round_trip(), FAREWELL);
                        let after = |time| Deadline::after(self.timers, Some(time));
                        self.closing = Closing::Named(after(soon), after(latest));
                    }
                    Closing::Named(..) => {
                        // Everything is answered, and acknowledged.
                        self.link.close(Code::H3_NO_ERROR, "");
                        return;
                    }
                },
            }
        }
    }

    async fn event(&mut self, idle: &mut Deadline, retired: &Drain) -> Event {
        let busy = self.streams.busy();
        let open = matches!(self.closing, Closing::Open);
        let (link, control, closing) = (self.link, &mut self.control, &mut self.closing);
        let unsent = control.unsent();
        let step = poll_fn(|cx| match closing {
            Closing::Announced(deadline) => deadline.poll_elapsed(cx),
            Closing::Named(soon, _) if !busy && !unsent => soon.poll_elapsed(cx),
            Closing::Named(_, latest) if !busy => latest.poll_elapsed(cx),
            _ => Poll::Pending,
        });
        tokio::select! {
            biased;
            accepted = link.connection.accept_bi() => match accepted {
                Ok((send, recv)) => Event::Stream(send, recv),
                Err(error) => Event::Lost(error),
            },
            () = control.flush(), if unsent => Event::Again,
            () = self.streams.ended(), if busy => Event::Again,
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

    /// A stream that is no early one tells that the handshake is complete, before whoever watches it is told. Not on a
    /// connection that is closed: there none counts as early.
    fn proved(&self, recv: &quinn::RecvStream) {
        let handshake = &self.served.handshake;
        if !handshake.is_complete() && !recv.is_0rtt() && self.link.connection.close_reason().is_none() {
            handshake.ended(true);
        }
    }

    fn begin(&self, send: quinn::SendStream, recv: quinn::RecvStream) {
        let running = Running::begin(&self.streams);
        let (served, course, timers) = (self.served.clone(), Course::new(self.link), self.timers.clone());
        tokio::task::spawn_local(async move {
            request::serve(&served, course, send, recv, &timers).await;
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
