//! What a router may change of the request that is forwarded, and of the response that comes back.

use std::time::Duration;

use bytestring::ByteString;
use http::{HeaderName, HeaderValue, header};
use thiserror::Error;

use crate::native;

/// How bodies pass: see the route's `buffer` in the configuration.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Buffering {
    #[default]
    Stream,
    Request,
    Both,
}

/// Why an edit was refused.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum EditError {
    #[error("not a valid name")]
    InvalidName,
    #[error("not a valid value")]
    InvalidValue,
    #[error("not granted")]
    NotGranted,
    #[error("{0}")]
    Other(String),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HeaderEdit {
    Set(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl HeaderEdit {
    pub fn name(&self) -> &HeaderName {
        match self {
            Self::Set(name, _) | Self::Append(name, _) | Self::Remove(name) => name,
        }
    }
}

/// Edits to a header section, applied in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderEdits(Vec<HeaderEdit>);

/// Most edits one answer may carry: a bound on what a plugin can make the core hold.
const MAX_EDITS: usize = 64;

impl HeaderEdits {
    pub fn set(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        let edit = HeaderEdit::Set(editable_name(name)?, checked_value(value)?);
        self.push(edit)
    }

    pub fn append(&mut self, name: &str, value: &[u8]) -> Result<(), EditError> {
        let edit = HeaderEdit::Append(editable_name(name)?, checked_value(value)?);
        self.push(edit)
    }

    pub fn remove(&mut self, name: &str) -> Result<(), EditError> {
        let edit = HeaderEdit::Remove(editable_name(name)?);
        self.push(edit)
    }

    fn push(&mut self, edit: HeaderEdit) -> Result<(), EditError> {
        if self.0.len() >= MAX_EDITS {
            return Err(EditError::Other(format!("more than {MAX_EDITS} edits")));
        }
        self.0.push(edit);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &HeaderEdit> {
        self.0.iter()
    }

    /// Applies them to a map that is owned.
    pub fn apply(&self, headers: &mut http::HeaderMap) {
        for edit in &self.0 {
            match edit {
                HeaderEdit::Set(name, value) => {
                    headers.insert(name.clone(), value.clone());
                }
                HeaderEdit::Append(name, value) => {
                    headers.append(name.clone(), value.clone());
                }
                HeaderEdit::Remove(name) => {
                    headers.remove(name);
                }
            }
        }
    }
}

/// Everything a router asked to change. Applied by the core after the answer was accepted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RequestEdits {
    pub path: Option<ByteString>,
    /// `Some(None)` removes the query.
    pub query: Option<Option<ByteString>>,
    pub authority: Option<ByteString>,
    pub headers: HeaderEdits,
    pub response_headers: HeaderEdits,
    pub timeout: Option<Duration>,
    pub attempt_timeout: Option<Duration>,
    pub buffering: Option<Buffering>,
    pub notes: Vec<(String, String)>,
}

impl RequestEdits {
    /// Nothing is changed.
    pub fn is_empty(&self) -> bool {
        let Self { path, query, authority, headers, response_headers, timeout, attempt_timeout, buffering, notes } =
            self;
        path.is_none()
            && query.is_none()
            && authority.is_none()
            && headers.is_empty()
            && response_headers.is_empty()
            && timeout.is_none()
            && attempt_timeout.is_none()
            && buffering.is_none()
            && notes.is_empty()
    }

    /// An origin-form path: starts with `/`, visible ASCII, neither `?` nor `#`.
    pub fn set_path(&mut self, path: &str) -> Result<(), EditError> {
        let fine =
            path.starts_with('/') && path.len() <= MAX_TARGET && path.bytes().all(|b| is_target_byte(b) && b != b'?');
        if !fine {
            return Err(EditError::InvalidValue);
        }
        self.path = Some(path.into());
        Ok(())
    }

    pub fn set_query(&mut self, query: Option<&str>) -> Result<(), EditError> {
        if query.is_some_and(|query| query.len() > MAX_TARGET || !query.bytes().all(is_target_byte)) {
            return Err(EditError::InvalidValue);
        }
        self.query = Some(query.map(Into::into));
        Ok(())
    }

    /// Host and optional port, as strict as what a client may send: a registered name or an IP literal, no userinfo.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), EditError> {
        if !is_authority(authority) {
            return Err(EditError::InvalidValue);
        }
        self.authority = Some(authority.to_ascii_lowercase().into());
        Ok(())
    }

    /// Drops what would not fit the target it is applied to: `*` has no query (RFC 9110, section 7.1).
    pub fn fit(&mut self, target: &crate::Target) {
        if target.path() == "*" && self.path.is_none() {
            self.query = None;
        }
    }

    pub fn set_note(&mut self, name: String, value: String) -> Result<(), EditError> {
        if self.notes.len() >= MAX_EDITS || name.len() + value.len() > MAX_TARGET {
            return Err(EditError::Other("too many or too long notes".into()));
        }
        self.notes.push((name, value));
        Ok(())
    }
}

/// Longest path, query or note, in bytes.
const MAX_TARGET: usize = 16 * 1024;

pub(crate) fn is_target_byte(b: u8) -> bool {
    (0x21..=0x7e).contains(&b) && b != b'#'
}

/// Longest authority: a name of 253 characters (RFC 1035, section 2.3.4) and a port, with room.
const MAX_AUTHORITY: usize = 300;

fn is_authority(text: &str) -> bool {
    if text.is_empty() || text.len() > MAX_AUTHORITY {
        return false;
    }
    let port_fits =
        |port: &str| port.is_empty() || port.len() <= 5 && port.parse::<u16>().is_ok() && !port.contains('+');
    if let Some(inner) = text.strip_prefix('[') {
        let Some((literal, port)) = inner.split_once(']') else { return false };
        let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
        return literal.parse::<std::net::Ipv6Addr>().is_ok() && port.is_some_and(port_fits);
    }
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)) && port_fits(port)
}

/// A name that a policy may touch.
fn editable_name(name: &str) -> Result<HeaderName, EditError> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(EditError::InvalidName);
    }
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| EditError::InvalidName)?;
    if is_core_field(&name) { Err(EditError::NotGranted) } else { Ok(name) }
}

/// Fields only the core writes: framing, hop-by-hop, routing and identity. A policy that sets them could smuggle a
/// message or forge a client (RFC 9110, section 7.6.1; RFC 7239, section 8.1). Look-alikes count: a name with underscores
/// reads as one with hyphens to CGI and its heirs.
pub fn is_core_field(name: &HeaderName) -> bool {
    const FIELDS: [HeaderName; 8] = [
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::EXPECT,
        header::VIA,
        header::DATE,
        header::MAX_FORWARDS,
    ];
    const NAMES: [&str; 5] = ["proxy-status", "early-data", "alt-svc", "sec-websocket-key", "sec-websocket-accept"];
    if name.as_str().contains('_') {
        // The same question of the name that it reads as. A hyphenated token is always a name.
        return HeaderName::try_from(name.as_str().replace('_', "-")).map_or(true, |name| is_core_field(&name));
    }
    FIELDS.contains(name)
        || NAMES.contains(&name.as_str())
        || native::is_hop_by_hop(name)
        || native::is_identity_field(name)
}

fn checked_value(value: &[u8]) -> Result<HeaderValue, EditError> {
    if value.first().is_some_and(|b| b.is_ascii_whitespace()) || value.last().is_some_and(|b| b.is_ascii_whitespace()) {
        return Err(EditError::InvalidValue);
    }
    HeaderValue::from_bytes(value).map_err(|_| EditError::InvalidValue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_cannot_touch_what_the_core_owns() {
        let mut edits = HeaderEdits::default();
        for name in "content-length transfer-encoding connection host forwarded x-forwarded-for upgrade te keep-alive \
             proxy-authenticate proxy-authorization x_forwarded_for x-forwarded_for true-client-ip x-client-ip \
             cf-connecting-ip content_length transfer_encoding wl-proxy-client-ip http_client_ip via"
            .split_whitespace()
        {
            assert_eq!(edits.set(name, b"x"), Err(EditError::NotGranted), "{name}");
            assert_eq!(edits.remove(name), Err(EditError::NotGranted), "{name}");
        }
        assert!(edits.is_empty());
    }

    #[test]
    fn names_and_values_follow_rfc_9110_section_5() {
        let mut edits = HeaderEdits::default();
        for name in ["", "X-Upper", "a b", "a:b", "a\r\nb", "\u{e9}"] {
            assert_eq!(edits.set(name, b"x"), Err(EditError::InvalidName), "{name:?}");
        }
        for value in [&b"a\r\nb"[..], b"a\0b", b" a", b"a\t"] {
            assert_eq!(edits.set("x-a", value), Err(EditError::InvalidValue), "{value:?}");
        }
        assert_eq!(edits.set("x-a", b"caf\xe9"), Ok(()));
    }

    #[test]
    fn a_path_cannot_carry_a_query_or_a_request_line() {
        let mut edits = RequestEdits::default();
        for path in ["", "a", "/a?b", "/a b", "/a\r\n", "/a#b", "/\u{e9}"] {
            assert_eq!(edits.set_path(path), Err(EditError::InvalidValue), "{path:?}");
        }
        assert_eq!(edits.set_authority("user@host"), Err(EditError::InvalidValue));
        assert_eq!(edits.set_authority("Host.example:8080"), Ok(()));
        assert_eq!(edits.authority.as_deref(), Some("host.example:8080"));
        for authority in
            ["", ":80", "a:99999", "a:8x", "a:+8", "a/b", "[::1", "[x]", "a b", "a%20b", "a,b", &"a".repeat(400)]
        {
            assert_eq!(edits.set_authority(authority), Err(EditError::InvalidValue), "{authority:?}");
        }
        assert_eq!(edits.set_authority("[2001:DB8::1]:443"), Ok(()));
    }

    /// RFC 9112, section 3.2.4: the asterisk-form is the asterisk alone.
    #[test]
    fn the_lone_asterisk_takes_no_query() {
        let mut edits = RequestEdits::default();
        assert_eq!(edits.set_query(Some("x")), Ok(()));
        let mut rewritten = edits.clone();
        assert_eq!(rewritten.set_path("/a"), Ok(()));
        rewritten.fit(&crate::Target::new("*".into()));
        assert!(rewritten.query.is_some());
        edits.fit(&crate::Target::new("*".into()));
        assert_eq!(edits, RequestEdits::default());
    }
}
