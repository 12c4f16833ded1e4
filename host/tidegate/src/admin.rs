//! The admin listener: metrics, health, readiness, status, shadows, reload. On the control thread, never on a worker.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;

use crate::boot::{Control, ReloadRefused};
use crate::metrics_page;

/// Serves until the program ends. A connection is cheap and rare here, so hyper does it all.
pub(crate) async fn serve(listener: TcpListener, control: Arc<Control>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin: cannot accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let control = control.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(control.clone(), request));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(std::time::Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "admin connection failed");
            }
        });
    }
}

async fn answer(control: Arc<Control>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let get = request.method() == Method::GET;
    if get && matches!(request.uri().path(), "/metrics" | "/status") && !control.steering.reports().is_empty() {
        let control = control.clone();
        // A panic in it is logged; the page then shows older counts.
        let _ = tokio::task::spawn_blocking(move || control.steering.count()).await;
    }
    Ok(match request.uri().path() {
        "/metrics" if get => {
            let mut page = String::with_capacity(16 * 1024);
            metrics_page::render(&control, &mut page);
            respond(StatusCode::OK, "text/plain; version=0.0.4", page)
        }
        "/healthz" if get => respond(StatusCode::OK, "text/plain", "ok\n"),
        "/readyz" if get && control.draining() => respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n"),
        "/readyz" if get => respond(StatusCode::OK, "text/plain", "ready\n"),
        "/status" if get => respond(StatusCode::OK, "application/json", format!("{:#}\n", control.status())),
        "/shadow" if get => respond(StatusCode::OK, "application/json", format!("{:#}\n", control.shadows())),
        "/reload" if request.method() == Method::POST => reload(control).await,
        "/metrics" | "/healthz" | "/readyz" | "/status" | "/shadow" | "/reload" => {
            respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "method not allowed\n")
        }
        _ => {
            let paths = "try /metrics, /healthz, /readyz, /status, /shadow, or POST /reload\n";
            respond(StatusCode::NOT_FOUND, "text/plain", paths)
        }
    })
}

/// Compiling takes a while and blocks: off the control runtime's thread.
async fn reload(control: Arc<Control>) -> Response<Full<Bytes>> {
    let outcome = tokio::task::spawn_blocking(move || control.reload()).await;
    match outcome {
        Ok(Ok(generation)) => {
            respond(StatusCode::OK, "application/json", format!("{}\n", json!({ "generation": generation })))
        }
        Ok(Err(refused)) => {
            let status = match refused {
                ReloadRefused::Configuration(_) => StatusCode::UNPROCESSABLE_ENTITY,
                ReloadRefused::Failed(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            respond(status, "application/json", format!("{}\n", json!({ "errors": refused.reasons() })))
        }
        Err(error) => {
            let errors = json!({ "errors": [error.to_string()] });
            respond(StatusCode::INTERNAL_SERVER_ERROR, "application/json", format!("{errors}\n"))
        }
    }
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
