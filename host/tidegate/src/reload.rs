//! `tidegate reload`: the caller's side. What the gateway does is `Control::reload` in `boot`.

use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

use crate::cli;

/// Asks the gateway behind `admin` to reload, and passes on what it says. 0: the new configuration serves; 2: it is wrong;
/// 1: it could not be put into force, or nobody answers.
pub(crate) fn ask(admin: &str) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(admin)
            .await
            .with_context(|| format!("no admin listener answers at {admin}; name it with --admin"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request =
            Request::builder().method(Method::POST).uri("/reload").header("host", admin).body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        let answer: serde_json::Value = serde_json::from_slice(&body)
            .with_context(|| format!("the admin listener answered {status} with something that is not JSON"))?;
        if status == StatusCode::OK {
            cli::say(&format!("reloaded: generation {}\n", answer["generation"]))?;
            return Ok(ExitCode::SUCCESS);
        }
        for error in answer["errors"].as_array().into_iter().flatten() {
            eprintln!("tidegate: {}", error.as_str().unwrap_or_default());
        }
        eprintln!("tidegate: not reloaded: the old configuration goes on serving");
        let wrong = status == StatusCode::UNPROCESSABLE_ENTITY;
        Ok(if wrong { ExitCode::from(cli::EXIT_CONFIG) } else { ExitCode::FAILURE })
    })
}
