//! Where a message ends (RFC 9112, section 6.3). Whatever could be read in two ways is refused.

use http::header::{self, HeaderMap};
use http::{Method, StatusCode};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
    /// No message any more, but bytes both ways: an end is half a close.
    Tunnel,
}

/// Why a message's end cannot be told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ambiguous {
    Invalid(&'static str),
    /// A coding that this gateway does not know (RFC 9112, section 6.1: 501).
    Unsupported,
}

/// The framing of a request. Leaves one `content-length` at most and no `transfer-encoding` in `headers`.
pub(super) fn of_request(headers: &mut HeaderMap, http10: bool) -> Result<Framing, Ambiguous> {
    let length = content_length(headers)?;
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if http10 {
            return Err(Ambiguous::Invalid("transfer-encoding in an HTTP/1.0 message"));
        }
        if length.is_some() {
            return Err(Ambiguous::Invalid("both transfer-encoding and content-length"));
        }
        only_chunked(headers)?;
        headers.remove(header::TRANSFER_ENCODING);
        return Ok(Framing::Chunked);
    }
    Ok(match length {
        None | Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
    })
}

/// The framing of a final response to a `method` request.
pub(super) fn of_response(
    headers: &mut HeaderMap,
    http10: bool,
    method: &Method,
    status: StatusCode,
) -> Result<Framing, Ambiguous> {
    let length = content_length(headers)?;
    let coded = headers.contains_key(header::TRANSFER_ENCODING);
    if coded {
        if http10 || length.is_some() {
            return Err(Ambiguous::Invalid("transfer-encoding beside content-length or in HTTP/1.0"));
        }
        only_chunked(headers)?;
        headers.remove(header::TRANSFER_ENCODING);
    }
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED || method == Method::HEAD;
    Ok(match length {
        _ if bodiless => Framing::None,
        _ if coded => Framing::Chunked,
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    })
}

fn only_chunked(headers: &HeaderMap) -> Result<(), Ambiguous> {
    let mut values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Ambiguous::Invalid("more than one transfer-encoding"));
    };
    if value.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
    let known = |coding: &[u8]| [&b"gzip"[..], b"deflate", b"compress", b"br"].contains(&coding);
    let last = codings.next_back().unwrap_or_default();
    // A coding under `chunked` has a known end, only its content is strange to us; anything else has none.
    let (mut any, mut all) = (false, true);
    for coding in codings {
        any = true;
        all &= known(&coding.to_ascii_lowercase());
    }
    if last.eq_ignore_ascii_case(b"chunked") && any && all {
        Err(Ambiguous::Unsupported)
    } else {
        Err(Ambiguous::Invalid("transfer-encoding does not end in one chunked"))
    }
}

/// Digits only; several fields must agree to the letter and become one.
fn content_length(headers: &mut HeaderMap) -> Result<Option<u64>, Ambiguous> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let mut many = false;
    for other in values {
        many = true;
        if other != first {
            return Err(Ambiguous::Invalid("content-length fields that differ"));
        }
    }
    let text = first.as_bytes();
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return Err(Ambiguous::Invalid("content-length is not a number"));
    }
    let length = text.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    if many {
        let first = first.clone();
        headers.insert(header::CONTENT_LENGTH, first);
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        map
    }

    /// Conduct, section 3, first two lines of the corpus.
    #[test]
    fn ambiguous_requests_are_refused() {
        let te = "transfer-encoding";
        let cl = "content-length";
        for fields in [
            &[(te, "chunked"), (cl, "5")][..],
            &[(cl, "5"), (te, "chunked")],
            &[(te, "chunked"), (te, "chunked")],
            &[(te, "chunked, chunked")],
            &[(te, "chunked, gzip")],
            &[(te, "identity")],
            &[(te, "xchunked")],
            &[(te, "chunked\t")],
            &[(te, "")],
            &[(cl, "5"), (cl, "6")],
            &[(cl, "+5")],
            &[(cl, "5,5")],
            &[(cl, "5, 5")],
            &[(cl, "0x5")],
            &[(cl, "")],
            &[(cl, "5 ")],
            &[(cl, "99999999999999999999")],
            &[(cl, "-1")],
        ] {
            assert!(matches!(of_request(&mut headers(fields), false), Err(Ambiguous::Invalid(_))), "{fields:?}");
        }
        assert!(of_request(&mut headers(&[(te, "chunked")]), true).is_err(), "HTTP/1.0 has no transfer-encoding");
        assert_eq!(of_request(&mut headers(&[(te, "gzip, chunked")]), false), Err(Ambiguous::Unsupported));
    }

    #[test]
    fn clear_requests_are_framed() {
        let mut same = headers(&[("content-length", "5"), ("content-length", "5")]);
        assert_eq!(of_request(&mut same, false), Ok(Framing::Length(5)));
        assert_eq!(same.get_all("content-length").iter().count(), 1);
        assert_eq!(of_request(&mut headers(&[("transfer-encoding", "Chunked")]), false), Ok(Framing::Chunked));
        assert_eq!(of_request(&mut headers(&[]), false), Ok(Framing::None));
    }

    /// RFC 9112, section 6.3, items 1 to 8.
    #[test]
    fn responses_end_where_the_rfc_says() {
        let framing = |fields: &[(&str, &str)], method: Method, status: u16| {
            of_response(&mut headers(fields), false, &method, StatusCode::from_u16(status).expect("a status"))
        };
        let cl = [("content-length", "5")];
        assert_eq!(framing(&cl, Method::HEAD, 200), Ok(Framing::None));
        assert_eq!(framing(&cl, Method::GET, 304), Ok(Framing::None));
        assert_eq!(framing(&cl, Method::GET, 200), Ok(Framing::Length(5)));
        assert_eq!(framing(&[], Method::GET, 200), Ok(Framing::UntilClose));
        assert_eq!(framing(&[("transfer-encoding", "chunked")], Method::GET, 200), Ok(Framing::Chunked));
        assert!(framing(&[("transfer-encoding", "chunked"), ("content-length", "5")], Method::GET, 200).is_err());
        assert!(framing(&[("content-length", "5"), ("content-length", "6")], Method::GET, 200).is_err());
    }
}
