//! Whether a proxy decides as its row says: a faulty set-up would be fast, and wrong.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{By, Decided, Kind, Proxy};
use crate::bench::load::Front;
use crate::bench::message::NAME;

/// Only a request below `/api/` that has the field goes to the other origin, and plugins are asked where there are some.
pub(super) async fn decides(proxy: &Proxy, decided: Decided) -> Result<(), String> {
    if decided == Decided::No {
        return Ok(());
    }
    let address = proxy.address(Front::Http1);
    if matches!(decided, Decided::Tunnel { .. }) {
        return relays(address).await;
    }
    let other = ("x-tenant", "t42");
    for (path, fields, wanted) in [
        ("/api/mark", &[other][..], "beta"),
        ("/api/mark", &[("x-tenant", "t43")], "alpha"),
        ("/api/mark", &[], "alpha"),
        ("/api/mark", &[other, ("x-pool", "alpha")], "beta"),
        ("/api/mark", &[("x-pool", "beta")], "alpha"),
        ("/mark", &[other], "alpha"),
    ] {
        reaches(address, NAME, path, fields, wanted).await?;
    }
    if matches!(decided, Decided::Questions(_)) {
        // The origin answers it the second time it comes, and not before.
        reaches(address, NAME, "/api/flaky/mark", &[other, ("x-number", "check")], "beta").await?;
    }
    if matches!(decided, Decided::Questions(By::Plugins | By::Memoised)) && asked(proxy, "decide").await? != 1.0 {
        return Err("not a plugin's to decide whether to try again".to_owned());
    }
    // As many as went to the other origin.
    asks(proxy, decided, 4).await
}

/// Plugins were asked all that they are to answer for so many requests, and none failed.
pub(in crate::bench) async fn asks(proxy: &Proxy, decided: Decided, requests: u64) -> Result<(), String> {
    let questions = match decided {
        Decided::Plugin | Decided::Memoised if proxy.kind == Kind::Tidegate => &["route"][..],
        Decided::Questions(By::Plugins | By::Memoised) => &["route", "pick", "identify"],
        _ => return Ok(()),
    };
    for question in questions {
        if asked(proxy, question).await? < requests as f64 {
            return Err(format!("not every request was a plugin's to {question}"));
        }
    }
    faultless(proxy).await
}

/// How often plugins were asked this question.
async fn asked(proxy: &Proxy, question: &str) -> Result<f64, String> {
    let page = get(proxy.ports.admin, "localhost", "/metrics", &[]).await?;
    let label = format!("question=\"{question}\"");
    let of = |line: &str| line.starts_with("tidegate_plugin_decisions_total{") && line.contains(&label);
    Ok(page.lines().filter(|line| of(line)).filter_map(value).sum())
}

/// No plugin failed.
async fn faultless(proxy: &Proxy) -> Result<(), String> {
    match metric(proxy.ports.admin, "tidegate_plugin_faults_total").await? {
        0.0 => Ok(()),
        faults => Err(format!("{faults} answers of plugins were faults")),
    }
}

async fn metric(admin: SocketAddr, begins: &str) -> Result<f64, String> {
    let page = get(admin, "localhost", "/metrics", &[]).await?;
    Ok(page.lines().filter(|line| line.starts_with(begins)).filter_map(value).sum())
}

fn value(line: &str) -> Option<f64> {
    line.rsplit(' ').next()?.parse().ok()
}

/// A request is answered by the origin of this name.
pub(in crate::bench) async fn reaches(
    address: SocketAddr,
    host: &str,
    path: &str,
    fields: &[(&str, &str)],
    wanted: &str,
) -> Result<(), String> {
    match get(address, host, path, fields).await? {
        name if name == wanted => Ok(()),
        name => Err(format!("{host}{path} with {fields:?} was answered by {name:?}, not by {wanted}")),
    }
}

/// The origin's own answer comes back. It closes no connection that it is not told to, and nobody else reads what it is told.
async fn relays(address: SocketAddr) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET /mark HTTP/1.1\r\nhost: {NAME}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nalpha") {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    };
    let exchange = tokio::time::timeout(std::time::Duration::from_secs(10), exchange).await;
    match exchange.map_err(|_| "no answer".to_owned())? {
        Ok(()) => Ok(()),
        Err(error) => Err(std::io::Error::to_string(&error)),
    }
}

/// The content of a good answer, on a connection of its own.
async fn get(address: SocketAddr, host: &str, path: &str, fields: &[(&str, &str)]) -> Result<String, String> {
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in fields {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut answer = Vec::new();
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    exchange.await.map_err(|error| format!("{path}: {error}"))?;
    let text = String::from_utf8_lossy(&answer);
    match text.split_once("\r\n\r\n") {
        Some((head, content)) if head.starts_with("HTTP/1.1 200 ") => Ok(content.to_owned()),
        _ => Err(format!("{path} with {fields:?}: {text}")),
    }
}
