//! Fields that speak of one connection only (RFC 9110, section 7.6.1).

use http::header::{self, HeaderMap, HeaderName};
use smallvec::SmallVec;

/// Whether a field is hop-by-hop by definition, named in `Connection` or not. `TE` is not among them: its one value
/// that matters beyond the hop, `trailers`, is judged where it is forwarded.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings" | "proxy-authentication-info")
}

/// The fields a message's `Connection` names: they end here too.
#[derive(Clone, Debug, Default)]
pub struct Nominated(SmallVec<[HeaderName; 2]>);

impl Nominated {
    /// Reads every `Connection` field. Names that are not fields are passed over.
    pub fn from(headers: &HeaderMap) -> Self {
        let mut names = SmallVec::new();
        for value in headers.get_all(header::CONNECTION) {
            for token in value.as_bytes().split(|b| *b == b',') {
                let token = token.trim_ascii();
                // The usual ones name no field.
                if token.is_empty() || token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive")
                {
                    continue;
                }
                if let Ok(name) = HeaderName::from_bytes(token)
                    && !is_end_to_end(&name)
                {
                    names.push(name);
                }
            }
        }
        Self(names)
    }

    pub fn contains(&self, name: &HeaderName) -> bool {
        self.0.contains(name)
    }
}

/// Fields that a sender must not name in `Connection` (RFC 9110, section 7.6.1), for those who would use the list to
/// have a gateway drop what its upstream relies on.
fn is_end_to_end(name: &HeaderName) -> bool {
    const KEPT: [HeaderName; 11] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CACHE_CONTROL,
        header::AUTHORIZATION,
        header::COOKIE,
        header::SET_COOKIE,
        header::DATE,
        header::VIA,
        header::FORWARDED,
    ];
    KEPT.contains(name)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn named_fields_end_here_but_a_client_cannot_drop_what_matters() {
        let mut headers = HeaderMap::new();
        headers.append("connection", HeaderValue::from_static("close, X-Secret ,, authorization"));
        headers.append("connection", HeaderValue::from_static("Host,x-more"));
        let nominated = Nominated::from(&headers);
        assert!(nominated.contains(&HeaderName::from_static("x-secret")));
        assert!(nominated.contains(&HeaderName::from_static("x-more")));
        for kept in ["authorization", "host", "close"] {
            assert!(!nominated.contains(&HeaderName::from_static(kept)), "{kept}");
        }
    }
}
