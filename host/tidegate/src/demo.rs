//! `tidegate demo`: three origins, a gateway and four plugins in one process, on loopback only.
//!
//! One origin speaks HTTP/1.1, one HTTP/2, and one fails on purpose. With `--check` the demo is its own client over the
//! three versions of HTTP, shows what every plugin decided and in how many nanoseconds, and tells whether all was right.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::Context;
use tidegate_proxy::observe::{Record, RecordSink, protocol};

use crate::boot::Control;
use crate::{cli, telemetry};

mod client;
mod drive;
mod origin;

/// The ports people like to type, taken if they are free.
const PORT: u16 = 8443;
const ADMIN_PORT: u16 = 9901;

/// What one exchange came to, for the commentary.
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) decisions: Vec<(&'static str, String, String, u128)>,
    pub(crate) attempts: u32,
    pub(crate) status: u16,
}

/// Sends what the gateway decided to whoever comments on it.
struct Commentary(Sender<Seen>);

impl RecordSink for Commentary {
    fn write(&self, record: &Record) {
        let request = &record.asked.request;
        let line = format!(
            "{} {} {} -> {}, {}{}",
            protocol(request.version),
            request.method,
            request.target.as_str(),
            record.status,
            record.cluster.as_deref().unwrap_or("no cluster"),
            if record.attempts > 1 { format!(", {} tries", record.attempts) } else { String::new() },
        );
        let decisions = record
            .decisions
            .iter()
            .map(|d| (d.question.name(), d.by.to_string(), d.decided.to_string(), d.took.as_nanos()))
            .collect();
        // A demo that is ending needs no commentary.
        let _ = self.0.send(Seen { line, decisions, attempts: record.attempts, status: record.status });
    }
}

pub(crate) fn print(seen: &Seen) {
    println!("  {}", seen.line);
    for (question, by, answer, ns) in &seen.decisions {
        println!("    {question:<8} {by:<18} {answer:<34} {ns:>9} ns");
    }
}

/// Runs the demo until it is interrupted, or checks itself and ends.
pub(crate) fn run(check: bool) -> anyhow::Result<ExitCode> {
    telemetry::install("warn");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let origins = runtime.block_on(origin::start())?;
    let folder = tempfile::tempdir().context("no folder for the certificate")?;
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let signed = rcgen::generate_simple_self_signed(names).context("no certificate could be made")?;
    std::fs::write(folder.path().join("edge.pem"), signed.cert.pem())?;
    std::fs::write(folder.path().join("edge.key"), signed.signing_key.serialize_pem())?;
    let (port, admin) = if check { (0, 0) } else { (free_or_any(PORT), free_or_any(ADMIN_PORT)) };
    let text = configuration(&origins, port, admin);
    let file = folder.path().join("demo.toml");
    std::fs::write(&file, &text)?;
    let config = tidegate_config::parse(&text, &file).map_err(cli::ConfigRefused)?;
    let (sender, seen) = channel();
    let control = Arc::new(Control::start(None, &config, vec![Arc::new(Commentary(sender))])?);
    let edge = address(&control).context("the listener did not start")?;
    let outcome = if check {
        runtime.block_on(drive::check(edge, &origins, signed.cert.der(), &seen))
    } else {
        introduce(&runtime, &control, edge, &seen)
    };
    control.drain();
    control.join_workers();
    outcome
}

fn address(control: &Control) -> Option<SocketAddr> {
    let addresses = control.running().gateway.addresses();
    addresses.into_iter().find(|(name, _)| &**name == "edge").map(|(_, address)| address)
}

fn free_or_any(port: u16) -> u16 {
    if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() { port } else { 0 }
}

/// Each plugin answers its question; everything else is a default.
fn configuration(origins: &origin::Origins, port: u16, admin: u16) -> String {
    let origin::Origins { steady, failing, next, .. } = origins;
    format!(
        r#"
[gateway]
workers = 2
admin = "127.0.0.1:{admin}"
drain_timeout = "2s"
plugin_cache = "off"

[[listener]]
name = "edge"
address = "127.0.0.1:{port}"
tls.certificates = [{{ certificate = "edge.pem", key = "edge.key" }}]

[[cluster]]                    # two origins that speak HTTP/1.1, of which one fails
name = "stable"
endpoints = ["{steady}", "{failing}"]
protocol = "http1"
balance = {{ plugin = "latency" }}

[[cluster]]                    # the next version speaks HTTP/2
name = "next"
endpoints = ["{next}"]
protocol = "http2"
balance = {{ plugin = "latency" }}

[[plugin]]
name = "tenants"
source = "builtin:tenant-canary"
memoise = true
[plugin.settings]
tenant_from = [{{ header = "x-tenant" }}, "subdomain"]
default = "stable"
[[plugin.settings.tenants]]
name = "blue"
cluster = "stable"
canary = {{ cluster = "next", percent = 30, sticky_by = {{ cookie = "sid" }}, force_header = "x-canary" }}

[[plugin]]
name = "latency"
source = "builtin:latency-aware"
# An origin that was never asked counts as fast, so that each is met.
settings = {{ assume_ms = 0.01 }}

[[plugin]]
name = "private"
source = "builtin:private-forwarding"
memoise = true
settings = {{ secret = "a demo has no secrets", period = "today" }}

[[plugin]]
name = "careful"
source = "builtin:careful-retry"

[[route]]
name = "everything"
router = "tenants"
cluster = "stable"
forwarding = {{ plugin = "private" }}
retry = {{ attempts = 3, plugin = "careful" }}
"#
    )
}

/// Serves until interrupted, and comments on what comes.
fn introduce(
    runtime: &tokio::runtime::Runtime,
    control: &Arc<Control>,
    edge: SocketAddr,
    seen: &Receiver<Seen>,
) -> anyhow::Result<ExitCode> {
    let admin = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, free_or_any(ADMIN_PORT))).await?;
        let address = listener.local_addr()?;
        tokio::spawn(crate::admin::serve(listener, control.clone()));
        anyhow::Ok(address)
    })?;
    let port = edge.port();
    println!(
        "tidegate demo: https://localhost:{port}/ over HTTP/1.1, HTTP/2 and HTTP/3; admin at http://{admin}/status\n\n\
         Three origins stand behind it: two are the cluster \"stable\", of which one fails on purpose; the third is \"next\".\n\
         Four WebAssembly components decide. Try, in another terminal:\n\n  \
         curl -sk https://localhost:{port}/hello                                      # to stable; the failing origin is retried\n  \
         curl -sk https://localhost:{port}/hello -H 'x-tenant: blue' -b sid=7         # 30 % of the sessions go to next\n  \
         curl -sk https://localhost:{port}/hello -H 'x-tenant: blue' -H 'x-canary: always'\n  \
         curl -sk --http1.1 https://localhost:{port}/hello                            # and --http2, or --http3 where curl has it\n  \
         curl -s http://{admin}/metrics | grep plugin\n\n\
         What they decided is shown here. Ctrl-C ends it.\n"
    );
    runtime.spawn({
        let control = control.clone();
        async move {
            // Without a signal handler the demo ends abruptly, which hurts nobody.
            if tokio::signal::ctrl_c().await.is_ok() {
                control.drain();
                std::process::exit(0);
            }
        }
    });
    while let Ok(seen) = seen.recv() {
        print(&seen);
    }
    Ok(ExitCode::SUCCESS)
}
