//! What is asked and answered: bodies that both ends know, so that every byte is checked.

use std::sync::OnceLock;

use bytes::Bytes;

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;
/// The server name that all ask for.
pub const NAME: &str = "bench.test";
const LONGEST: usize = 10 * MIB;

/// The first `length` bytes of what every body is made of.
pub fn pattern(length: usize) -> Bytes {
    static ALL: OnceLock<Bytes> = OnceLock::new();
    ALL.get_or_init(|| (0..LONGEST).map(|at| (at % 251) as u8).collect()).slice(..length)
}

/// A request of a load.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub path: &'static str,
    /// Bytes of content to send; a POST if there are any.
    pub upload: usize,
    /// Bytes that must come.
    pub answer: usize,
}

impl Ask {
    pub fn get(path: &'static str, answer: usize) -> Self {
        Self { path, upload: 0, answer }
    }

    pub fn method(&self) -> &'static str {
        if self.upload > 0 { "POST" } else { "GET" }
    }
}

/// What clients send with each request: as much as a program's client does.
pub const FIELDS: [(&str, &str); 4] = [
    ("user-agent", "bench/1.0"),
    ("accept", "*/*"),
    ("x-tenant", "t42"),
    ("cookie", "session=2f8a1c9e4b7d6035; theme=dark"),
];

/// An HTTP/1.1 request, whole but for its content: with the usual fields and some more.
pub fn head(ask: &Ask, host: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{} {path} HTTP/1.1\r\nhost: {host}\r\n", ask.method());
    for (name, value) in FIELDS.iter().chain(more) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if ask.upload > 0 {
        head.push_str(&format!("content-length: {}\r\n", ask.upload));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Checks a body as it comes.
pub struct Check {
    seen: usize,
    wanted: usize,
}

impl Check {
    pub fn new(wanted: usize) -> Self {
        Self { seen: 0, wanted }
    }

    /// False if these are not the bytes that follow.
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        let end = self.seen + bytes.len();
        let right = end <= self.wanted && pattern(end)[self.seen..] == *bytes;
        self.seen = end;
        right
    }

    pub fn is_complete(&self) -> bool {
        self.seen == self.wanted
    }
}
