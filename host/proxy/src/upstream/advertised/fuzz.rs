//! What a trusted peer's PROXY header said, said again to an origin.

use bytes::Bytes;
use tidegate_policy::{ConnectionHead, ProxyTlvs, tlv};

use super::{ProxyFields, SendProxyHeader, common_name, header};
use crate::proxy_protocol::{Header, Parsed, parse};

/// The header of a connection that brought these fields is one that we would take, and says the same; so is that of a client
/// with a certificate of any bytes.
pub(crate) fn said_again(tlvs: &ProxyTlvs, certificate: &[u8]) {
    let all = ProxyFields { alpn: true, authority: true, ssl: true, unique_id: true, crc32c: true };
    let read = |connection: &ConnectionHead| match parse(&header(SendProxyHeader::V2(all), connection)) {
        Ok(Parsed::Header { header, .. }) => header,
        other => panic!("{other:?}"),
    };
    let mut connection = tidegate_policy::fuzz::connection();
    connection.tls = false;
    connection.proxy_tlvs = tlvs.clone();
    let Header { addresses, tlvs: said } = read(&connection);
    assert_eq!(addresses.map(|both| (both.source, both.destination)), Some((connection.client, connection.local)));
    for kind in [tlv::ALPN, tlv::AUTHORITY, tlv::SSL] {
        // What does not fit is left out, never cut off.
        assert!(said.get(kind).is_none() || said.get(kind) == tlvs.get(kind), "{kind:#x}");
    }
    let name = common_name(certificate);
    connection.tls = true;
    connection.client_certificate = Some(Bytes::copy_from_slice(certificate));
    let said = read(&connection).tlvs;
    assert!(said.get(tlv::SSL_CN).is_none_or(|said| Some(said) == name.map(str::as_bytes)));
}
