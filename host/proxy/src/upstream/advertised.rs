//! The PROXY header of a connection to an origin: it names one client, so the connection is that client's alone.

use std::rc::{Rc, Weak};

use bytes::Bytes;
use tidegate_policy::{ConnectionHead, tlv};

use crate::proxy_protocol::{Addresses, v1, v2};
use crate::snapshot::{ProxyFields, SendProxyHeader};

mod common_name;
#[cfg(fuzzing)]
pub(crate) mod fuzz;

use common_name::common_name;

/// Bits of the ssl field: the client speaks TLS; it has shown a certificate in this session.
const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERTIFICATE: u8 = 0x04;

/// Whom a connection is advertised for. Two requests may use one connection only if they are advertised the same, byte
/// for byte (section 2 of the specification).
#[derive(Clone)]
pub(super) struct Advertised {
    header: Bytes,
    /// The downstream connection that asked last: once it is closed, hardly anyone will ask for the same again.
    client: Weak<ConnectionHead>,
}

impl PartialEq for Advertised {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header
    }
}

impl Advertised {
    pub(super) fn new(version: SendProxyHeader, connection: &Rc<ConnectionHead>) -> Self {
        Self { header: header(version, connection).into(), client: Rc::downgrade(connection) }
    }

    /// What is written before anything else.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        self.header.clone()
    }

    pub(super) fn client_is_gone(&self) -> bool {
        self.client.strong_count() == 0
    }
}

fn header(version: SendProxyHeader, connection: &ConnectionHead) -> Vec<u8> {
    let addresses = Addresses { source: connection.client, destination: connection.local };
    match version {
        SendProxyHeader::V1 => v1::emit(&addresses),
        SendProxyHeader::V2(fields) => {
            let mut header = v2::Writer::new(&addresses);
            put_fields(&mut header, fields, connection);
            header.finish(fields.crc32c)
        }
    }
}

/// The header before each datagram of a client. Version 1 knows none (section 2.1).
pub(super) fn header_of_datagrams(version: SendProxyHeader, connection: &ConnectionHead) -> Option<Vec<u8>> {
    let SendProxyHeader::V2(fields) = version else { return None };
    let addresses = Addresses { source: connection.client, destination: connection.local };
    let mut header = v2::Writer::of_datagram(&addresses);
    put_fields(&mut header, fields, connection);
    Some(header.finish(fields.crc32c))
}

/// What this gateway's own handshake brought; without one, what a trusted peer's header said.
fn put_fields(header: &mut v2::Writer, fields: ProxyFields, connection: &ConnectionHead) {
    let received = |kind| if connection.tls { None } else { connection.proxy_tlvs.get(kind) };
    let alpn = connection.alpn.as_ref().map(|alpn| alpn.as_bytes().as_ref());
    if let Some(alpn) = alpn.or(received(tlv::ALPN)).filter(|_| fields.alpn) {
        header.field(tlv::ALPN, &[alpn]);
    }
    let name = connection.server_name.as_ref().map(|name| name.as_bytes().as_ref());
    if let Some(name) = name.or(received(tlv::AUTHORITY)).filter(|_| fields.authority) {
        header.field(tlv::AUTHORITY, &[name]);
    }
    if fields.unique_id {
        match connection.proxy_tlvs.get(tlv::UNIQUE_ID) {
            Some(id) => header.field(tlv::UNIQUE_ID, &[id]),
            None => header.field(tlv::UNIQUE_ID, &[format!("{:032x}", connection.id).as_bytes()]),
        }
    }
    if fields.ssl {
        if let Some(ssl) = received(tlv::SSL) {
            header.field(tlv::SSL, &[ssl]);
        } else if connection.tls {
            put_ssl(header, connection);
        }
    }
}

/// The handshake here: version, and the client's certificate, which was verified where there is one.
fn put_ssl(header: &mut v2::Writer, connection: &ConnectionHead) {
    let certificate = connection.client_certificate.as_deref();
    let client = CLIENT_SSL | if certificate.is_some() { CLIENT_CERTIFICATE } else { 0 };
    // "Zero if the client presented a certificate and it was successfully verified, and non-zero otherwise."
    let verified = u32::from(certificate.is_none()).to_be_bytes();
    let mut within = Vec::with_capacity(64);
    let names = [(tlv::SSL_VERSION, connection.tls_version), (tlv::SSL_CN, certificate.and_then(common_name))];
    for (kind, name) in names {
        if let Some(name) = name
            && let Ok(length) = u16::try_from(name.len())
        {
            within.push(kind);
            within.extend_from_slice(&length.to_be_bytes());
            within.extend_from_slice(name.as_bytes());
        }
    }
    header.field(tlv::SSL, &[&[client], &verified, &within]);
}

#[cfg(test)]
mod tests {
    use tidegate_policy::contract;

    use super::*;
    use crate::proxy_protocol::{Header, Parsed, parse};

    const ALL: SendProxyHeader =
        SendProxyHeader::V2(ProxyFields { alpn: true, authority: true, ssl: true, unique_id: true, crc32c: true });

    fn read(connection: ConnectionHead) -> Header {
        match parse(&header(ALL, &connection)) {
            Ok(Parsed::Header { header, .. }) => header,
            other => panic!("{other:?}"),
        }
    }

    fn plain() -> ConnectionHead {
        (*contract::connection()).clone()
    }

    #[test]
    fn fields_come_from_our_handshake_or_from_a_trusted_header() {
        let mut connection = plain();
        let said = read(connection.clone());
        assert_eq!(said.addresses.map(|addresses| addresses.source), Some(connection.client));
        assert_eq!((said.tlvs.get(tlv::ALPN), said.tlvs.get(tlv::SSL)), (None, None));
        assert_eq!(said.tlvs.get(tlv::UNIQUE_ID), Some(&b"00000000000000000000000000000007"[..]));

        let mut before = v2::Writer::new(&Addresses { source: connection.peer, destination: connection.local });
        before.field(tlv::ALPN, &[b"h2"]);
        before.field(tlv::AUTHORITY, &[b"before.example"]);
        before.field(tlv::SSL, &[&[1, 0, 0, 0, 0, tlv::SSL_VERSION, 0, 1, b'x']]);
        before.field(tlv::UNIQUE_ID, &[b"id"]);
        before.field(0xE0, &[b"private"]);
        let Ok(Parsed::Header { header: before, .. }) = parse(&before.finish(false)) else { panic!("it is one") };
        connection.proxy_tlvs = before.tlvs;
        let said = read(connection.clone());
        for (kind, value) in
            [(tlv::ALPN, "h2"), (tlv::AUTHORITY, "before.example"), (tlv::UNIQUE_ID, "id"), (0x21, "x")]
        {
            assert_eq!(said.tlvs.get(kind), Some(value.as_bytes()));
        }
        assert_eq!(said.tlvs.get(0xE0), None, "what is not asked for is not handed on");

        connection.tls = true;
        connection.tls_version = Some("TLSv1.3");
        connection.server_name = Some("ours.example".into());
        let said = read(connection.clone());
        assert_eq!(said.tlvs.get(tlv::AUTHORITY), Some(&b"ours.example"[..]));
        assert_eq!(said.tlvs.get(tlv::ALPN), None, "of our own handshake there was none");
        assert_eq!(said.tlvs.get(tlv::SSL), Some(&b"\x01\0\0\0\x01\x21\0\x07TLSv1.3"[..]));
        connection.client_certificate = Some(Bytes::from_static(b"der"));
        assert_eq!(read(connection).tlvs.get(tlv::SSL).map(|ssl| &ssl[..5]), Some(&b"\x05\0\0\0\0"[..]));
    }

    #[test]
    fn equal_headers_are_one_identity() {
        let (one, mut other) = (Rc::new(plain()), plain());
        let v1 = |connection: &Rc<ConnectionHead>| Advertised::new(SendProxyHeader::V1, connection);
        other.id = 8;
        assert!(v1(&one) == v1(&Rc::new(other.clone())), "the id is no part of a line");
        other.client.set_port(1);
        let other = Rc::new(other);
        assert!(v1(&one) != v1(&other));
        let advertised = v1(&one);
        assert!(!advertised.client_is_gone());
        drop(one);
        assert!(advertised.client_is_gone());
        assert!(Advertised::new(ALL, &other) == Advertised::new(ALL, &other), "the same at every time");
    }
}
