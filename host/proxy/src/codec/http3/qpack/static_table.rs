//! The static table (RFC 9204, appendix A).

use std::sync::LazyLock;

use http::{HeaderName, HeaderValue};

#[rustfmt::skip]
pub(super) const ENTRIES: [(&str, &str); 99] = [
    (":authority", ""),
    (":path", "/"),
    ("age", "0"),
    ("content-disposition", ""),
    ("content-length", "0"),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("referer", ""),
    ("set-cookie", ""),
    (":method", "CONNECT"),
    (":method", "DELETE"),
    (":method", "GET"),
    (":method", "HEAD"),
    (":method", "OPTIONS"),
    (":method", "POST"),
    (":method", "PUT"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "103"),
    (":status", "200"),
    (":status", "304"),
    (":status", "404"),
    (":status", "503"),
    ("accept", "*/*"),
    ("accept", "application/dns-message"),
    ("accept-encoding", "gzip, deflate, br"),
    ("accept-ranges", "bytes"),
    ("access-control-allow-headers", "cache-control"),
    ("access-control-allow-headers", "content-type"),
    ("access-control-allow-origin", "*"),
    ("cache-control", "max-age=0"),
    ("cache-control", "max-age=2592000"),
    ("cache-control", "max-age=604800"),
    ("cache-control", "no-cache"),
    ("cache-control", "no-store"),
    ("cache-control", "public, max-age=31536000"),
    ("content-encoding", "br"),
    ("content-encoding", "gzip"),
    ("content-type", "application/dns-message"),
    ("content-type", "application/javascript"),
    ("content-type", "application/json"),
    ("content-type", "application/x-www-form-urlencoded"),
    ("content-type", "image/gif"),
    ("content-type", "image/jpeg"),
    ("content-type", "image/png"),
    ("content-type", "text/css"),
    ("content-type", "text/html; charset=utf-8"),
    ("content-type", "text/plain"),
    ("content-type", "text/plain;charset=utf-8"),
    ("range", "bytes=0-"),
    ("strict-transport-security", "max-age=31536000"),
    ("strict-transport-security", "max-age=31536000; includesubdomains"),
    ("strict-transport-security", "max-age=31536000; includesubdomains; preload"),
    ("vary", "accept-encoding"),
    ("vary", "origin"),
    ("x-content-type-options", "nosniff"),
    ("x-xss-protection", "1; mode=block"),
    (":status", "100"),
    (":status", "204"),
    (":status", "206"),
    (":status", "302"),
    (":status", "400"),
    (":status", "403"),
    (":status", "421"),
    (":status", "425"),
    (":status", "500"),
    ("accept-language", ""),
    ("access-control-allow-credentials", "FALSE"),
    ("access-control-allow-credentials", "TRUE"),
    ("access-control-allow-headers", "*"),
    ("access-control-allow-methods", "get"),
    ("access-control-allow-methods", "get, post, options"),
    ("access-control-allow-methods", "options"),
    ("access-control-expose-headers", "content-length"),
    ("access-control-request-headers", "content-type"),
    ("access-control-request-method", "get"),
    ("access-control-request-method", "post"),
    ("alt-svc", "clear"),
    ("authorization", ""),
    ("content-security-policy", "script-src 'none'; object-src 'none'; base-uri 'none'"),
    ("early-data", "1"),
    ("expect-ct", ""),
    ("forwarded", ""),
    ("if-range", ""),
    ("origin", ""),
    ("purpose", "prefetch"),
    ("server", ""),
    ("timing-allow-origin", "*"),
    ("upgrade-insecure-requests", "1"),
    ("user-agent", ""),
    ("x-forwarded-for", ""),
    ("x-frame-options", "deny"),
    ("x-frame-options", "sameorigin"),
];

/// The entries that are no pseudo-header fields, ready for use.
static FIELDS: LazyLock<Vec<Option<(HeaderName, HeaderValue)>>> = LazyLock::new(|| {
    let field = |(name, value): &(&'static str, &'static str)| {
        (!name.starts_with(':')).then(|| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    };
    ENTRIES.iter().map(field).collect()
});

/// Indices of all entries, by name and then by number.
static BY_NAME: LazyLock<[u8; 99]> = LazyLock::new(|| {
    let mut indices = std::array::from_fn(|index| index as u8);
    indices.sort_by_key(|index| ENTRIES[usize::from(*index)].0);
    indices
});

/// A regular field of the table; `None` for the index of a pseudo-header field.
pub(super) fn field(index: usize) -> Option<&'static (HeaderName, HeaderValue)> {
    FIELDS.get(index)?.as_ref()
}

/// Where the table has a field, or at least its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found {
    Field(usize),
    Name(usize),
}

pub(super) fn find(name: &str, value: &[u8]) -> Option<Found> {
    let begin = BY_NAME.partition_point(|index| ENTRIES[usize::from(*index)].0 < name);
    let mut found = None;
    for index in BY_NAME[begin..].iter().map(|index| usize::from(*index)) {
        let entry = ENTRIES[index];
        if entry.0 != name {
            break;
        }
        if entry.1.as_bytes() == value {
            return Some(Found::Field(index));
        }
        found = found.or(Some(Found::Name(index)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_names_are_found() {
        assert_eq!(find(":method", b"GET"), Some(Found::Field(17)));
        assert_eq!(find(":status", b"418"), Some(Found::Name(24)));
        assert_eq!(find("x-frame-options", b"sameorigin"), Some(Found::Field(98)));
        assert_eq!(find("content-type", b"text/x"), Some(Found::Name(44)));
        assert_eq!(find("x-mine", b""), None);
        assert_eq!(find("zzz", b""), None);
        assert_eq!(field(17), None);
        assert_eq!(
            field(4).map(|(name, value)| (name.as_str(), value.as_bytes())),
            Some(("content-length", &b"0"[..]))
        );
        assert_eq!(field(99), None);
    }
}
