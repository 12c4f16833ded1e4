//! `demo --check`: asks over every version of HTTP, and holds what came against what should have.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Version;
use rustls::pki_types::CertificateDer;

use super::client::Client;
use super::origin::Origins;
use super::{Seen, print};

/// An exchange's record comes right after its response.
const SOON: Duration = Duration::from_secs(10);
/// The balancer draws, and tries what it does not know: with so many requests the failing origin is met.
const MOST: usize = 60;
const NEXT: [(&str, &str); 2] = [("x-tenant", "blue"), ("x-canary", "always")];
/// Not shown, before those that are: the first decisions on a worker are slow, for the plugin's memory is then touched for
/// the first time.
const WARM: usize = 40;

pub(crate) async fn check(
    edge: SocketAddr,
    origins: &Origins,
    certificate: &CertificateDer<'static>,
    seen: &Receiver<Seen>,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(edge, certificate)?;
    let (mut wrong, mut retried) = (0, false);
    for version in [Version::HTTP_11, Version::HTTP_2, Version::HTTP_3] {
        println!("{version:?}");
        for _ in 0..WARM {
            client.get(version, "/next", &NEXT).await?;
            seen.recv_timeout(SOON).context("the exchange left no record")?;
        }
        let asks = [
            ("/stable", &[("x-tenant", "blue"), ("x-canary", "never")][..], "steady", "HTTP/1.1"),
            ("/next", &NEXT, "next", "HTTP/2.0"),
            ("/stranger", &[], "steady", "HTTP/1.1"),
        ];
        for (path, fields, origin, upstream) in asks {
            match ask(&client, version, path, fields, origin, upstream, seen).await {
                Ok(attempts) => retried |= attempts > 1,
                Err(error) => {
                    println!("  WRONG: {path}: {error:#}");
                    wrong += 1;
                }
            }
        }
    }
    if !retried {
        println!("until the failing origin is met");
    }
    for _ in 0..MOST {
        if retried {
            break;
        }
        let fields = [("x-tenant", "blue"), ("x-canary", "never")];
        let ended = ask(&client, Version::HTTP_2, "/again", &fields, "steady", "HTTP/1.1", seen).await;
        match ended {
            Ok(attempts) => retried |= attempts > 1,
            Err(error) => {
                println!("  WRONG: {error:#}");
                wrong += 1;
            }
        }
    }
    let failures = origins.failures.load(Ordering::Relaxed);
    if !retried || failures == 0 {
        println!("WRONG: no request met the failing origin and was tried again");
        wrong += 1;
    }
    println!("\nthe failing origin was asked {failures} times, and no client saw it");
    println!("{}", if wrong == 0 { "all is right" } else { "NOT all is right" });
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One request; returns how many tries it took.
async fn ask(
    client: &Client,
    version: Version,
    path: &str,
    fields: &[(&str, &str)],
    origin: &str,
    upstream: &str,
    seen: &Receiver<Seen>,
) -> anyhow::Result<u32> {
    let answer = client.get(version, path, fields).await?;
    let record = seen.recv_timeout(SOON).context("the exchange left no record")?;
    print(&record);
    ensure!(answer.status == 200, "the status is {}", answer.status);
    ensure!(record.status == 200, "the record says {}", record.status);
    let told: serde_json::Value = serde_json::from_slice(&answer.body).context("the body is not the origin's")?;
    ensure!(told["origin"] == origin, "it came from {}", told["origin"]);
    ensure!(told["protocol"] == upstream, "the origin was asked in {}", told["protocol"]);
    ensure!(told["path"] == path, "the origin was asked for {}", told["path"]);
    let forwarded = told["forwarded"].as_str().unwrap_or_default();
    ensure!(forwarded.starts_with("for=_"), "the origin was told {forwarded:?} of its client");
    ensure!(!answer.body.windows(9).any(|window| window == b"127.0.0.1"), "the origin learned the client's address");
    for question in ["route", "pick", "identify"] {
        ensure!(record.decisions.iter().any(|(asked, ..)| *asked == question), "no plugin was asked {question:?}");
    }
    if record.attempts > 1 {
        ensure!(record.decisions.iter().any(|(asked, ..)| *asked == "decide"), "it was retried without asking");
    }
    Ok(record.attempts)
}
