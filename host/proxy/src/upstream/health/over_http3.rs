//! Checks over QUIC: a connection each, on the `h3` crate, which is enough for one request and runs on the control thread.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use h3::error::Code;
use http::Request;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, VarInt};

use super::check::{Answer, MAX_MESSAGE};

/// One request on a connection of its own. With a message its answer is read to the trailers.
pub(super) async fn over_http3(
    address: SocketAddr,
    name: &str,
    tls: Arc<QuicClientConfig>,
    request: Request<()>,
    message: Option<Bytes>,
) -> Result<Answer, String> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0)).map_err(|error| format!("socket: {error}"))?;
    let connecting = endpoint.connect_with(ClientConfig::new(tls), address, name);
    let connection = connecting.map_err(|error| format!("quic: {error}"))?.await.map_err(|e| format!("quic: {e}"))?;
    let answer = ask(connection.clone(), request, message).await;
    let code = VarInt::from_u64(Code::H3_NO_ERROR.value()).unwrap_or_default();
    connection.close(code, b"");
    answer
}

async fn ask(connection: quinn::Connection, request: Request<()>, message: Option<Bytes>) -> Result<Answer, String> {
    let broke = |error: &dyn std::fmt::Display| format!("http3: {error}");
    let connection = h3_quinn::Connection::new(connection);
    let (mut driver, mut sender) = h3::client::new(connection).await.map_err(|error| broke(&error))?;
    let exchange = async {
        let mut stream = sender.send_request(request).await.map_err(|error| broke(&error))?;
        let whole = message.is_some();
        if let Some(message) = message {
            stream.send_data(message).await.map_err(|error| broke(&error))?;
        }
        stream.finish().await.map_err(|error| broke(&error))?;
        let mut head = stream.recv_response().await.map_err(|error| broke(&error))?;
        while head.status().is_informational() {
            head = stream.recv_response().await.map_err(|error| broke(&error))?;
        }
        let mut answer = Answer { status: head.status(), grpc_status: None, body: Bytes::new() };
        if !whole {
            return Ok(answer);
        }
        let mut body = BytesMut::new();
        while let Some(mut data) = stream.recv_data().await.map_err(|error| broke(&error))? {
            if body.len() + data.remaining() > MAX_MESSAGE {
                return Err(format!("more than {MAX_MESSAGE} bytes"));
            }
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        let trailers = stream.recv_trailers().await.map_err(|error| broke(&error))?;
        let status = trailers.as_ref().unwrap_or(head.headers()).get("grpc-status");
        answer.grpc_status = status.map(|status| status.as_bytes().to_vec());
        answer.body = body.freeze();
        Ok(answer)
    };
    tokio::select! {
        biased;
        answer = exchange => answer,
        error = poll_fn(|cx| driver.poll_close(cx)) => Err(broke(&error)),
    }
}
