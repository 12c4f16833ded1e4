//! The demo's origins: one that works, one that fails, one of the next version. Each tells what it was told.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;

/// Where they are, and how often the failing one was asked.
pub(crate) struct Origins {
    pub(crate) steady: SocketAddr,
    pub(crate) failing: SocketAddr,
    pub(crate) next: SocketAddr,
    pub(crate) failures: Arc<AtomicU64>,
}

#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    http2: bool,
    fails: bool,
}

pub(crate) async fn start() -> std::io::Result<Origins> {
    let failures = Arc::new(AtomicU64::new(0));
    let one = |name, http2, fails| serve(Kind { name, http2, fails }, failures.clone());
    Ok(Origins {
        steady: one("steady", false, false).await?,
        failing: one("failing", false, true).await?,
        next: one("next", true, false).await?,
        failures,
    })
}

async fn serve(kind: Kind, failures: Arc<AtomicU64>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let failures = failures.clone();
            let service = service_fn(move |request| {
                let response = answer(kind, &request, &failures);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                // A connection that the gateway gives up is no concern of the demo's.
                if kind.http2 {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                }
            });
        }
    });
    Ok(address)
}

fn answer(kind: Kind, request: &Request<Incoming>, failures: &AtomicU64) -> Response<Full<Bytes>> {
    let mut response = if kind.fails {
        failures.fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(Full::new(Bytes::from_static(b"failing on purpose\n")));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    } else {
        let field = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let told = json!({
            "origin": kind.name,
            "protocol": format!("{:?}", request.version()),
            "path": request.uri().path(),
            "forwarded": field("forwarded"),
            "x-forwarded-for": field("x-forwarded-for"),
            "via": field("via"),
        });
        Response::new(Full::new(format!("{told}\n").into()))
    };
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
