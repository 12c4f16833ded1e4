//! The caller's side of the admin listener, for the commands that ask a running gateway.

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

/// Sends a request without content to the gateway behind `admin`, and takes its answer, which is JSON.
pub(crate) fn ask(admin: &str, method: Method, path: &str) -> anyhow::Result<(StatusCode, serde_json::Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(admin)
            .await
            .with_context(|| format!("no admin listener answers at {admin}; name it with --admin"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", admin).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        let answer = serde_json::from_slice(&body)
            .with_context(|| format!("the admin listener answered {status} with something that is not JSON"))?;
        Ok((status, answer))
    })
}
