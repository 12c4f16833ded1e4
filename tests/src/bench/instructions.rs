//! User instructions of a request, counted by callgrind: they do not flicker, so a change for the worse shows in review.
//! Two runs that differ by a number of requests; what is there once cancels out.

use std::path::Path;

use super::load::{Front, Load, Running};
use super::message::{Ask, KIB};
use super::proxies::{Behind, By, Decided, Kind, Proxy};
use super::scenarios::{FLAKY, numbered};
use crate::certs::Authority;

/// Requests of the shorter run, and how many more the longer one has.
const WARM: u64 = 500;
const MORE: u64 = 2000;

/// A path of a request, by name.
pub struct Counted {
    pub name: &'static str,
    front: Front,
    path: &'static str,
    decided: Decided,
}

/// What is counted.
pub const PATHS: [Counted; 10] = [
    Counted { name: "http1", front: Front::Http1, path: "/1k", decided: Decided::No },
    Counted { name: "http1-tls", front: Front::Http1Tls, path: "/1k", decided: Decided::No },
    Counted { name: "http2", front: Front::Http2, path: "/1k", decided: Decided::No },
    Counted { name: "http1-native-rule", front: Front::Http1, path: "/api/1k", decided: Decided::Native },
    Counted { name: "http1-plugin", front: Front::Http1, path: "/api/1k", decided: Decided::Plugin },
    Counted { name: "http1-plugin-memoised", front: Front::Http1, path: "/api/1k", decided: Decided::Memoised },
    Counted { name: "questions-native", front: Front::Http1, path: "/api/1k", decided: Decided::Questions(By::Rules) },
    Counted {
        name: "questions-plugins",
        front: Front::Http1,
        path: "/api/1k",
        decided: Decided::Questions(By::Plugins),
    },
    Counted { name: "again-native", front: Front::Http1, path: FLAKY, decided: Decided::Questions(By::Rules) },
    Counted { name: "again-plugins", front: Front::Http1, path: FLAKY, decided: Decided::Questions(By::Plugins) },
];

/// Instructions of one request.
pub async fn count(path: &Counted, behind: &Behind, authority: &Authority) -> Result<u64, String> {
    if matches!(path.decided, Decided::Plugin | Decided::Memoised | Decided::Questions(By::Plugins)) {
        // The first start compiles the plugins, and keeps that.
        total(path, 1, behind, authority).await?;
    }
    let short = total(path, WARM, behind, authority).await?;
    let long = total(path, WARM + MORE, behind, authority).await?;
    Ok(long.checked_sub(short).ok_or("the longer run took less than the shorter one")? / MORE)
}

async fn total(path: &Counted, requests: u64, behind: &Behind, authority: &Authority) -> Result<u64, String> {
    let counts = behind.folder.join("callgrind.out");
    let proxy = Proxy::start_counted(Kind::Tidegate, behind, path.decided, &counts).await?;
    let proxy = proxy.ok_or("tidegate is not there")?;
    let alpn: &[u8] = if path.front == Front::Http2 { b"h2" } else { b"http/1.1" };
    let ask = Ask::get(path.path, KIB);
    let numbers = (path.path == FLAKY).then(|| numbered(&ask));
    let load = Load { count: Some(requests), requests: numbers, ..Load::of(path.front, 1, 1, ask) };
    Running::start(load, proxy.address(path.front), authority.client(&[alpn], None)).end().await?;
    // Writes its counts as it ends.
    proxy.end();
    read(&counts)
}

/// The sum in a file of callgrind's.
fn read(file: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let sum = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    sum.and_then(|sum| sum.trim().parse().ok()).ok_or_else(|| format!("{}: no sum in it", file.display()))
}
