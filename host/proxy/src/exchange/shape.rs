//! The message as it goes on: what a gateway must take out, put in and leave alone (RFC 9110, section 7.6).
//!
//! Requests are never rebuilt into a new header map: [`OutgoingHead::for_each`] walks the received one and leaves out
//! what must not pass, and the codec writes as it walks. Responses are owned, so they are edited in place.

use std::rc::Rc;

use bytestring::ByteString;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use smallvec::SmallVec;
use tidegate_policy::native::{Nominated, is_hop_by_hop, is_identity_field};
use tidegate_policy::{Asked, HeaderEdit, HeaderEdits, RequestEdits, ResponseHead, Scheme, Target};

use crate::body::{Incoming, Length};
use crate::codec::date;
use crate::snapshot::Snapshot;

/// RFC 8470, section 5.1.
pub(super) const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

/// The request as an upstream gets it. One per exchange, the same for every attempt.
pub(crate) struct OutgoingHead {
    asked: Rc<Asked>,
    nominated: Nominated,
    edits: HeaderEdits,
    /// What the gateway says itself: identity, `Via`.
    added: Vec<(HeaderName, HeaderValue)>,
    /// The gateway itself told the client to go on (RFC 9110, section 10.1.1): nobody else need be asked.
    pub(crate) continued: bool,
    /// What is left of `Max-Forwards`, where this hop counts it down (RFC 9110, section 7.6.2).
    pub(crate) max_forwards: Option<HeaderValue>,
    /// The request came before its client's handshake was complete (RFC 8470, section 5.1).
    pub(crate) early: bool,
    /// WebSocket is asked for, with this key where the upstream speaks HTTP/1.1.
    pub(crate) upgrade: Option<HeaderValue>,
    pub(crate) method: Method,
    /// What the client used: origins build links from it.
    pub(crate) scheme: Scheme,
    /// For `Host` or `:authority`. May be empty only towards HTTP/1.
    pub(crate) authority: ByteString,
    /// Path and query, or `*`.
    pub(crate) target: ByteString,
}

impl OutgoingHead {
    pub(crate) fn new(
        asked: &Rc<Asked>,
        edits: &RequestEdits,
        identity: Vec<(HeaderName, HeaderValue)>,
        snapshot: &Snapshot,
    ) -> Self {
        let request = &asked.request;
        let mut added = identity;
        added.push((header::VIA, snapshot.via.value(request.version)));
        Self {
            asked: asked.clone(),
            nominated: Nominated::from(&request.headers),
            edits: edits.headers.clone(),
            added,
            continued: false,
            max_forwards: None,
            early: false,
            upgrade: None,
            method: request.method.clone(),
            scheme: request.scheme,
            authority: edits.authority.clone().unwrap_or_else(|| request.authority.clone()),
            target: target(&request.target, edits),
        }
    }

    /// Every field to send, in order: no `Host`, no framing, no hop-by-hop field. `te: trailers` may be among them
    /// (RFC 9110, section 10.1.4).
    pub(crate) fn for_each(&self, mut write: impl FnMut(&HeaderName, &HeaderValue)) {
        for (name, value) in &self.asked.request.headers {
            if name == header::TE {
                // The only coding that means something beyond this hop, in the one spelling that HTTP/2 takes.
                if value.as_bytes().eq_ignore_ascii_case(b"trailers") {
                    write(name, &HeaderValue::from_static("trailers"));
                }
            } else if self.passes(name) {
                write(name, value);
            }
        }
        for edit in self.edits.iter() {
            match edit {
                // Of several edits to one name the last `Set` counts, with what was appended after it.
                HeaderEdit::Set(name, value) if self.last_reset(name) == Some(edit) => write(name, value),
                HeaderEdit::Append(name, value) if self.appended_last(name, edit) => write(name, value),
                _ => {}
            }
        }
        for (name, value) in &self.added {
            write(name, value);
        }
        if let Some(left) = &self.max_forwards {
            write(&header::MAX_FORWARDS, left);
        }
        if self.early {
            write(&EARLY_DATA, &HeaderValue::from_static("1"));
        }
    }

    fn passes(&self, name: &HeaderName) -> bool {
        let answered = self.continued && name == header::EXPECT;
        let counted = self.max_forwards.is_some() && name == header::MAX_FORWARDS;
        let early = self.early && name == EARLY_DATA;
        let handshake = self.upgrade.is_some() && name == header::SEC_WEBSOCKET_KEY;
        name != header::HOST
            && name != header::CONTENT_LENGTH
            && !answered
            && !counted
            && !early
            && !handshake
            && !is_hop_by_hop(name)
            && !is_identity_field(name)
            && !self.nominated.contains(name)
            && (self.edits.is_empty() || self.last_reset(name).is_none())
    }

    /// The last edit that replaces or removes `name`.
    fn last_reset(&self, name: &HeaderName) -> Option<&HeaderEdit> {
        let resets = |edit: &&HeaderEdit| !matches!(edit, HeaderEdit::Append(..)) && edit.name() == name;
        self.edits.iter().filter(resets).last()
    }

    /// Whether nothing after `edit` replaces or removes what it appends.
    fn appended_last(&self, name: &HeaderName, edit: &HeaderEdit) -> bool {
        let after = self.edits.iter().skip_while(|other| !std::ptr::eq(*other, edit)).skip(1);
        !after.filter(|other| other.name() == name).any(|other| !matches!(other, HeaderEdit::Append(..)))
    }
}

fn target(received: &Target, edits: &RequestEdits) -> ByteString {
    if edits.path.is_none() && edits.query.is_none() {
        return received.as_str().into();
    }
    let path = edits.path.as_deref().unwrap_or(received.path());
    let query = match &edits.query {
        Some(query) => query.as_deref(),
        None => received.query(),
    };
    Target::from_parts(path, query).as_str().into()
}

/// Makes an upstream's response the gateway's own: hop-by-hop fields out, `Via`, `Date` and edits in.
pub(crate) fn response(
    head: &mut ResponseHead,
    edits: &HeaderEdits,
    alt_svc: Option<&HeaderValue>,
    snapshot: &Snapshot,
) {
    strip_hop_by_hop(&mut head.headers);
    head.headers.append(header::VIA, snapshot.via.value(head.version));
    complete(&mut head.headers, alt_svc);
    edits.apply(&mut head.headers);
}

/// What every final response of the gateway carries, its own ones too.
pub(crate) fn complete(headers: &mut HeaderMap, alt_svc: Option<&HeaderValue>) {
    // RFC 9110, section 6.6.1: a recipient with a clock adds Date where the origin sent none.
    headers.entry(header::DATE).or_insert_with(date::value);
    if let Some(alt_svc) = alt_svc {
        headers.insert(header::ALT_SVC, alt_svc.clone());
    }
}

/// Takes out the fields that speak of one connection only (RFC 9110, section 7.6.1), named ones included.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let nominated = Nominated::from(headers);
    let leaving: SmallVec<[HeaderName; 4]> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name) || *name == header::TE || nominated.contains(name))
        .cloned()
        .collect();
    for name in leaving {
        headers.remove(name);
    }
}

/// How the response's body is framed towards the client. `HEAD`, 204 and 304 have none whatever their fields say
/// (RFC 9112, section 6.3).
pub(crate) fn response_length(method: &Method, status: StatusCode, headers: &mut HeaderMap, body: &Incoming) -> Length {
    if method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return Length::None;
    }
    if status == StatusCode::NO_CONTENT {
        // RFC 9110, section 8.6: a 204 must not carry the field.
        headers.remove(header::CONTENT_LENGTH);
        return Length::None;
    }
    headers.remove(header::CONTENT_LENGTH);
    match body.length() {
        Length::None => Length::Known(0),
        length => length,
    }
}
