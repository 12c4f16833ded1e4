//! Properties of the HTTP/3 parsers that must hold for any input.

use bytes::{Bytes, BytesMut};
use tidegate_policy::HttpVersion;

use super::fields::{self, Bounds};
use super::frame::{self, Settings};
use super::link::Role;
use super::message::{Message, Piece, Refused, Step};
use super::qpack::{self, Field, Fields};
use crate::codec::http1::fuzz::becomes_one_request;
use crate::codec::pseudo;

const MAX_SECTION: usize = 2048;

/// The pieces of a message, data joined, and how it ended.
fn pieces(data: &[u8], role: Role, piece: usize) -> (Vec<(bool, Vec<u8>)>, Option<Refused>, bool) {
    let mut message = Message::new(role, MAX_SECTION);
    let mut got: Vec<(bool, Vec<u8>)> = Vec::new();
    for part in data.chunks(piece.max(1)) {
        let mut input = Bytes::copy_from_slice(part);
        loop {
            match message.next(&mut input) {
                Ok(Step::More) => break,
                Ok(Step::Idle) => {}
                Ok(Step::Piece(Piece::Section(section))) => {
                    assert!(section.len() <= MAX_SECTION);
                    got.push((true, section.to_vec()));
                }
                Ok(Step::Piece(Piece::Data(data))) => {
                    assert!(!data.is_empty());
                    match got.last_mut() {
                        Some((false, last)) => last.extend_from_slice(&data),
                        _ => got.push((false, data.to_vec())),
                    }
                }
                Err(refused) => return (got, Some(refused), false),
            }
        }
    }
    let whole = message.end().is_ok();
    (got, None, whole)
}

/// The frames of a request stream: the same message however it arrives, and never more content than came.
pub fn http3_message(data: &[u8]) {
    let [setup, data @ ..] = data else { return };
    let role = if setup & 1 == 0 { Role::Server } else { Role::Client };
    let whole = pieces(data, role, data.len());
    assert_eq!(whole, pieces(data, role, usize::from(setup >> 1)));
    assert!(whole.0.iter().map(|(_, data)| data.len()).sum::<usize>() <= data.len());
}

fn section(section: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>, bool)>, qpack::Error> {
    let mut fields = Fields::new(Bytes::copy_from_slice(section), limit)?;
    let mut got = Vec::new();
    while let Some(field) = fields.next()? {
        got.push(match field {
            Field::Static(name, value) => (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec(), false),
            Field::Named(name, value, sensitive) => (name.as_str().as_bytes().to_vec(), value.to_vec(), sensitive),
            Field::Literal(name, value, sensitive) => (name.to_vec(), value.to_vec(), sensitive),
        });
    }
    Ok(got)
}

/// QPACK: a section stays within its bound once decoded, and what was decoded survives our own encoder.
pub fn qpack_section(data: &[u8]) {
    let Ok(got) = section(data, MAX_SECTION) else { return };
    let size = |fields: &[(Vec<u8>, Vec<u8>, bool)]| {
        fields.iter().map(|(name, value, _)| name.len() + value.len() + 32).sum::<usize>()
    };
    assert!(size(&got) <= MAX_SECTION);
    if got.iter().any(|(name, ..)| std::str::from_utf8(name).is_err()) {
        return;
    }
    let mut out = BytesMut::new();
    qpack::begin(&mut out);
    for (name, value, sensitive) in &got {
        qpack::encode(&mut out, std::str::from_utf8(name).expect("checked"), value, *sensitive);
    }
    assert_eq!(section(&out, MAX_SECTION).expect("our own encoding"), got);
}

/// A decoded head: what is taken for a request is one HTTP/1.1 request upstream, and no message has a field that could be two.
pub fn http3_head(data: &[u8]) {
    let [kind, data @ ..] = data else { return };
    let bounds = Bounds { size: MAX_SECTION, fields: 40 };
    let section = Bytes::copy_from_slice(data);
    let plain = |headers: &http::HeaderMap| {
        for (name, value) in headers {
            assert!(!value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{name}: {value:?}");
            assert!(!pseudo::is_connection_specific(name), "{name}");
        }
    };
    match kind % 3 {
        0 => {
            let Ok(parts) = fields::request(section, bounds) else { return };
            let tls = kind & 0x80 != 0;
            if let Ok(head) = pseudo::request_head(parts, HttpVersion::Http3, tls, 40) {
                plain(&head.headers);
                becomes_one_request(&head);
            }
        }
        1 => {
            if let Ok((_, headers)) = fields::response(section, bounds) {
                plain(&headers);
            }
        }
        _ => {
            if let Ok(headers) = fields::trailers(section, bounds) {
                plain(&headers);
            }
        }
    }
}

/// Frames of the control stream: SETTINGS that are taken read the same when they are written, numbers have one form.
pub fn http3_control(data: &[u8]) {
    if let Ok(settings) = Settings::read(data) {
        let mut out = BytesMut::new();
        settings.write(&mut out);
        let (_, length, used) = frame::header(&out).expect("a header");
        assert_eq!(usize::try_from(length).expect("small"), out.len() - used);
        assert_eq!(Settings::read(&out[used..]).expect("our own"), settings);
    }
    let _ = frame::number(data);
    if let Some((_, _, used)) = frame::header(data) {
        assert!(used <= frame::LONGEST_HEADER && used <= data.len());
        // No part of it is enough.
        assert!(frame::header(&data[..used - 1]).is_none());
    }
}
