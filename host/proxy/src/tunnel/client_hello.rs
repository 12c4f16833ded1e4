//! The ClientHello, as far as it says where a connection goes: read and never changed.
//!
//! Pure: bytes in, names out. A hello may come in many TCP segments and many TLS records (RFC 8446, section 5.1), and over
//! QUIC without records; what was sent is kept by whoever relays it. With Encrypted Client Hello the name is the outer
//! one (RFC 9849, section 4): the inner cannot be known here, and a hello with ECH, real or GREASE, is a hello like any.

use bytes::Bytes;
use bytestring::ByteString;

/// Most bytes, records' heads included, of what may be a ClientHello.
pub(crate) const MOST: usize = 64 * 1024;

/// What a ClientHello says of where it wants to go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ClientHello {
    /// Lower case, without a final dot.
    pub(crate) server_name: Option<ByteString>,
    /// The protocols that are offered, the client's favourite first (RFC 7301, section 3.1): the extension's list as it is.
    alpn: Bytes,
}

impl ClientHello {
    pub(crate) fn offered(&self) -> impl Iterator<Item = &[u8]> + Clone {
        prefixed(&self.alpn)
    }
}

/// Names with a byte of length each; the list was checked when it was read.
fn prefixed(mut list: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    std::iter::from_fn(move || {
        let (name, rest) = list.split_first().and_then(|(length, rest)| rest.split_at_checked((*length).into()))?;
        list = rest;
        Some(name)
    })
}

/// Why bytes are no ClientHello.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NoHello {
    #[error("not TLS")]
    NotTls,
    #[error("a TLS record that no handshake begins with")]
    Record,
    #[error("a handshake that begins with another message than ClientHello")]
    Message,
    #[error("a ClientHello of more than {MOST} bytes")]
    TooLong,
    #[error("a malformed ClientHello")]
    Malformed,
}

/// Takes the records of a handshake apart while they come.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Of the record under way, what its head said and has not come.
    left: usize,
    head: [u8; 5],
    head_length: usize,
    /// The handshake messages without the records around them.
    message: Vec<u8>,
    seen: usize,
}

impl Records {
    /// The next bytes of the connection. `None` until the hello is whole.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<Option<ClientHello>, NoHello> {
        self.seen += bytes.len();
        while !bytes.is_empty() {
            if self.left == 0 {
                self.head[self.head_length] = bytes[0];
                self.head_length += 1;
                bytes = &bytes[1..];
                self.record_head()?;
                continue;
            }
            let (payload, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.message.extend_from_slice(payload);
            self.left -= payload.len();
            bytes = rest;
            if let Some(hello) = whole(&self.message)? {
                return Ok(Some(hello));
            }
        }
        if self.seen > MOST { Err(NoHello::TooLong) } else { Ok(None) }
    }

    /// What is no record of a handshake is known by the first byte that differs.
    fn record_head(&mut self) -> Result<(), NoHello> {
        const HANDSHAKE: u8 = 22;
        // RFC 8446, section 5.1: an endpoint must not send handshake fragments of no length, nor of more than 2^14 bytes.
        const MOST_IN_RECORD: usize = 1 << 14;
        let first = self.seen_no_record();
        match self.head_length {
            1 if self.head[0] != HANDSHAKE => Err(if first { NoHello::NotTls } else { NoHello::Record }),
            2 if self.head[1] != 3 => Err(if first { NoHello::NotTls } else { NoHello::Record }),
            5 => {
                let length = usize::from(u16::from_be_bytes([self.head[3], self.head[4]]));
                if length == 0 || length > MOST_IN_RECORD {
                    return Err(NoHello::Record);
                }
                self.left = length;
                self.head_length = 0;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn seen_no_record(&self) -> bool {
        self.message.is_empty()
    }
}

/// The hello at the start of a handshake's bytes, once it is whole.
pub(crate) fn whole(message: &[u8]) -> Result<Option<ClientHello>, NoHello> {
    const CLIENT_HELLO: u8 = 1;
    match message.first() {
        None => return Ok(None),
        Some(&CLIENT_HELLO) => {}
        Some(_) => return Err(NoHello::Message),
    }
    let Some(length) = message.get(1..4) else { return Ok(None) };
    let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    if length > MOST {
        return Err(NoHello::TooLong);
    }
    match message.get(4..4 + length) {
        None => Ok(None),
        Some(body) => read(body).ok_or(NoHello::Malformed).map(Some),
    }
}

/// RFC 8446, section 4.1.2.
fn read(body: &[u8]) -> Option<ClientHello> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    let mut body = Reader(body);
    body.take(2 + 32)?;
    let session_id = body.short_list()?;
    let suites = body.list()?;
    let compressions = body.short_list()?;
    if session_id.len() > 32 || suites.is_empty() || suites.len() % 2 == 1 || compressions.is_empty() {
        return None;
    }
    let mut hello = ClientHello::default();
    // One of TLS 1.2 may end here.
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(body.list()?);
    if !body.0.is_empty() {
        return None;
    }
    let (mut named, mut offered) = (false, false);
    while !extensions.0.is_empty() {
        let (kind, content) = (extensions.number()?, extensions.list()?);
        match kind {
            // Section 4.2: there is one of a kind at most. Two would be read in two ways.
            SERVER_NAME if named => return None,
            SERVER_NAME => {
                named = true;
                hello.server_name = server_name(content)?;
            }
            ALPN if offered => return None,
            ALPN => {
                offered = true;
                hello.alpn = alpn(content)?;
            }
            _ => {}
        }
    }
    Some(hello)
}

/// RFC 6066, section 3. `Some(None)`: names of other kinds only.
fn server_name(content: &[u8]) -> Option<Option<ByteString>> {
    const HOST_NAME: u8 = 0;
    let mut content = Reader(content);
    let mut names = Reader(content.list()?);
    if !content.0.is_empty() || names.0.is_empty() {
        return None;
    }
    let mut host = None;
    while !names.0.is_empty() {
        let (kind, name) = (names.take(1)?[0], names.list()?);
        if kind == HOST_NAME {
            if host.is_some() {
                return None;
            }
            host = Some(host_name(name)?);
        }
    }
    Some(host)
}

/// ASCII without what could mean something else to whoever reads it later: a log, a header, a guest.
fn host_name(name: &[u8]) -> Option<ByteString> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:".contains(byte);
    if name.is_empty() || name.len() > 253 || !name.iter().all(fine) {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok().map(ByteString::from)
}

/// RFC 7301, section 3.1: names of at least a byte, at least one of them.
fn alpn(content: &[u8]) -> Option<Bytes> {
    let mut content = Reader(content);
    let list = content.list()?;
    let mut names = Reader(list);
    while !names.0.is_empty() {
        if names.short_list()?.is_empty() {
            return None;
        }
    }
    (content.0.is_empty() && !list.is_empty()).then(|| Bytes::copy_from_slice(list))
}

/// What is left to read. `None` past its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// With two bytes of length before it.
    fn list(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    /// With one.
    fn short_list(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests;
