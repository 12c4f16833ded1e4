//! What one exchange is about: the facts every question of it may read.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;

use crate::{ConnectionHead, Element, RequestHead};

/// The facts of one exchange. Shared by `Rc` between the exchange and the policies it asks, all on one worker.
#[derive(Debug)]
pub struct Asked {
    pub connection: Rc<ConnectionHead>,
    pub request: RequestHead,
    /// The client after trusted forwarding fields.
    pub client: IpAddr,
    /// What a trusted peer said of the hops before it, nearest hop last. Empty for an untrusted peer.
    pub received: Vec<Element>,
    /// What routers left for later questions.
    pub notes: RefCell<Vec<(String, String)>>,
    /// Drawn for this exchange: what is left to chance and must be the same for all its questions goes by it.
    pub draw: u64,
}

impl Asked {
    pub fn note(&self, name: &str) -> Option<String> {
        self.notes.borrow().iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// The value of the first cookie of this name, over all `Cookie` fields (RFC 6265, section 4.2).
    pub fn cookie(&self, name: &str) -> Option<Bytes> {
        self.cookie_bytes(name).map(Bytes::copy_from_slice)
    }

    /// The same, where it lies.
    pub fn cookie_bytes(&self, name: &str) -> Option<&[u8]> {
        for field in self.request.headers.get_all(http::header::COOKIE) {
            for pair in field.as_bytes().split(|b| *b == b';') {
                let pair = pair.trim_ascii();
                let Some(at) = pair.iter().position(|b| *b == b'=') else { continue };
                if &pair[..at] == name.as_bytes() {
                    return Some(&pair[at + 1..]);
                }
            }
        }
        None
    }
}
