//! QUIC's handshake where names differ in what they ask of clients: quinn wants a session before the first byte, rustls a
//! configuration before the session, and the name is in the ClientHello. So a session waits for the whole of it, looks
//! for the name, and only then becomes one of rustls'.

use std::any::Any;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn::{ConnectionId, Side};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{TransportError, TransportErrorCode};
use rustls::AlertDescription;
use rustls::server::Acceptor;

use super::names::Names;

/// Of a ClientHello, in bytes with its head: as much as rustls takes.
const LONGEST_HELLO: usize = 0xffff + HELLO_HEAD;
/// Kind and length (RFC 8446, section 4).
const HELLO_HEAD: usize = 4;
/// Most that a TLS record carries (RFC 8446, section 5.1).
const RECORD: usize = 1 << 14;

/// A configuration for each policy.
pub(super) struct QuicByName {
    pub(super) names: Arc<Names>,
    /// As the policies are numbered; never empty.
    pub(super) configs: Vec<Arc<QuicServerConfig>>,
}

impl ServerConfig for QuicByName {
    // Neither depends on a name (RFC 9001, sections 5.2 and 5.8).
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.configs[0].initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.configs[0].retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        // Has read nothing, and never will where another name is asked for.
        let session = self.configs[0].clone().start_session(version, params);
        let waiting = Waiting { hello: Vec::new(), version, params: *params, by_name: self };
        Box::new(NamedSession { session, waiting: Some(waiting) })
    }
}

struct NamedSession {
    session: Box<dyn Session>,
    /// Until the ClientHello is whole.
    waiting: Option<Waiting>,
}

struct Waiting {
    hello: Vec<u8>,
    version: u32,
    params: TransportParameters,
    by_name: Arc<QuicByName>,
}

impl Waiting {
    /// The session for the name, once the ClientHello is whole.
    fn choose(&self) -> Result<Option<Box<dyn Session>>, TransportError> {
        let [_, high, middle, low, ..] = self.hello[..] else { return Ok(None) };
        let whole = HELLO_HEAD + u32::from_be_bytes([0, high, middle, low]) as usize;
        if whole > LONGEST_HELLO {
            return Err(refused(AlertDescription::DecodeError, "a ClientHello that is too long"));
        }
        let Some(hello) = self.hello.get(..whole) else { return Ok(None) };
        // What cannot be read is refused here: under the default's rules it might be read otherwise.
        let name =
            server_name(hello).ok_or_else(|| refused(AlertDescription::DecodeError, "no ClientHello to be read"))?;
        let policy = self.by_name.names.serving(name.as_deref()).policy;
        let config = self.by_name.configs[policy].clone();
        Ok(Some(config.start_session(self.version, &self.params)))
    }
}

fn refused(alert: AlertDescription, reason: &str) -> TransportError {
    TransportError { code: TransportErrorCode::crypto(alert.into()), frame: None, reason: reason.to_owned() }
}

/// The name in a whole ClientHello; `None` if it is none. Read by rustls, as TLS over TCP would bring it, so that there is
/// no second opinion of what it says.
fn server_name(hello: &[u8]) -> Option<Option<String>> {
    let mut records = Vec::with_capacity(hello.len() + 5 * hello.len().div_ceil(RECORD));
    for part in hello.chunks(RECORD) {
        records.extend_from_slice(&[22, 3, 1]);
        records.extend_from_slice(&(part.len() as u16).to_be_bytes());
        records.extend_from_slice(part);
    }
    let mut acceptor = Acceptor::default();
    let mut rest = &records[..];
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok().filter(|read| *read > 0)?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    None
}

impl Session for NamedSession {
    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let Some(waiting) = &mut self.waiting else { return self.session.read_handshake(buf) };
        waiting.hello.extend_from_slice(buf);
        let Some(session) = waiting.choose()? else { return Ok(false) };
        self.session = session;
        let hello = self.waiting.take().map(|waiting| waiting.hello).unwrap_or_default();
        self.session.read_handshake(&hello)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        if self.waiting.is_some() { None } else { self.session.write_handshake(buf) }
    }

    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.session.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.session.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.session.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.session.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.session.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.session.transport_parameters()
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.session.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.session.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.session.export_keying_material(output, label, context)
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;
    use crate::listener::tls::provider;

    /// The ClientHello of a client, out of its records.
    fn hello(name: &str, alpn: usize) -> Vec<u8> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let roots = RootCertStore::empty();
        let mut config = builder.expect("versions").with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = (0..alpn).map(|n| vec![n as u8; 250]).collect();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut records = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut records).expect("written");
        }
        let mut hello = Vec::new();
        let mut rest = &records[..];
        while let [_, _, _, high, low, after @ ..] = rest {
            let (part, next) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            hello.extend_from_slice(part);
            rest = next;
        }
        hello
    }

    /// RFC 6066, section 3.
    #[test]
    fn the_name_is_found_in_hellos_of_any_length_and_in_nothing_else() {
        for alpn in [1, 100] {
            let hello = hello("a.example", alpn);
            assert_eq!(server_name(&hello), Some(Some("a.example".to_owned())), "{}", hello.len());
            assert_eq!(server_name(&hello[..hello.len() - 1]), None);
        }
        assert_eq!(server_name(&hello("127.0.0.1", 1)), Some(None));
        for junk in [&b""[..], b"\x01\0\0\0", b"\x01\0\0\x02\x03\x03", b"\x02\0\0\x01a", b"GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(server_name(junk), None, "{junk:?}");
        }
    }
}
