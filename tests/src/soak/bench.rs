//! The gateway of a soak: its configuration, which changes from round to round, and the wish to reload it.

use crate::certs::Authority;
use crate::gateway::Gateway;

use super::ask::NAME;
use super::origins::Origins;

pub(super) struct Bench {
    pub(super) gateway: Gateway,
    pub(super) origins: Origins,
    pub(super) authority: Authority,
    rounds: usize,
}

impl Bench {
    pub(super) async fn start() -> Self {
        let authority = Authority::new();
        let origins = Origins::start(&authority).await;
        let folder = tempfile::tempdir().expect("a folder");
        authority.issue(&[NAME]).write(folder.path(), "edge");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
        let gateway = Gateway::start_in(folder, &config(&origins, 0)).await;
        Self { gateway, origins, authority, rounds: 0 }
    }

    pub(super) fn reloads(&self) -> usize {
        self.rounds
    }

    /// Other endpoints, other settings of a plugin, and another certificate now and then; SIGHUP, and the wait for it.
    pub(super) async fn reload(&mut self) {
        self.rounds += 1;
        if self.rounds.is_multiple_of(2) {
            self.authority.issue(&[NAME]).write(self.gateway.folder.path(), "edge");
        }
        self.gateway.rewrite(&config(&self.origins, self.rounds));
        self.gateway.signal(libc::SIGHUP);
        let generation = self.rounds as f64 + 1.0;
        crate::eventually("the new generation serves", async || {
            (self.gateway.metric("tidegate_config_generation").await >= generation).then_some(())
        })
        .await;
    }
}

/// Rounds differ in who is there: each good cluster has both endpoints, the first or the second.
fn config(origins: &Origins, round: usize) -> String {
    let some = |both: [std::net::SocketAddr; 2], offset: usize| match (round + offset) % 3 {
        0 => format!("\"{}\", \"{}\"", both[0], both[1]),
        1 => format!("\"{}\"", both[0]),
        _ => format!("\"{}\"", both[1]),
    };
    let addresses = |origins: &[crate::Origin; 2]| [origins[0].address, origins[1].address];
    let mut out = String::new();
    for (name, tls) in
        [("edge", "tls.certificates = [{ certificate = \"edge.pem\", key = \"edge.key\" }]\n"), ("plain", "")]
    {
        out += &format!(
            "[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\nheader_timeout = \"8s\"\nidle_timeout = \"20s\"\n\
             body_idle_timeout = \"10s\"\nhandshake_timeout = \"8s\"\n{tls}"
        );
    }
    let outlier = 3 + round % 3;
    out += &format!(
        r#"
[[plugin]]
name = "latency"
source = "builtin:latency-aware"
limits = {{ time = "50ms" }}
settings = {{ outlier = {outlier}.0 }}
[[plugin]]
name = "private"
source = "builtin:private-forwarding"
limits = {{ time = "50ms" }}
settings = {{ secret = "0123456789abcdef" }}
[[plugin]]
name = "tenants"
source = "builtin:tenant-canary"
memoise = true
limits = {{ time = "50ms" }}
settings = {{ tenant_from = [{{ header = "x-tenant" }}], default = "h1", tenants = [{{ name = "other", cluster = "h2" }}] }}
"#
    );
    let quic = "protocol = \"http3\"\ntls = { ca = \"ca.pem\", server_name = \"origin.example\" }\n";
    let flap = "health = { path = \"/health\", interval = \"500ms\", unhealthy_threshold = 1, healthy_threshold = 1 }\n\
                panic_threshold = \"0%\"\n";
    let own = |address: std::net::SocketAddr| format!("\"{address}\"");
    let mut cluster = |name: &str, endpoints: String, more: &str| {
        out += &format!(
            "[[cluster]]\nname = \"{name}\"\nendpoints = [{endpoints}]\nidle_timeout = \"2s\"\n\
             retry_budget = {{ percent = \"100%\", min = 1000 }}\n{more}"
        );
    };
    cluster("h1", some(addresses(&origins.http1), 0), "balance = { plugin = \"latency\" }\n");
    cluster("h2", some(addresses(&origins.http2), 1), "protocol = \"http2\"\n");
    cluster("h3", some(addresses(&origins.http3), 2), quic);
    cluster("flap", addresses(&origins.flapping).map(own).join(", "), flap);
    cluster("f1", own(origins.bad1.address), "");
    cluster("closing", own(origins.closing1.address), "");
    cluster("f2", own(origins.bad2), "protocol = \"http2\"\n");
    cluster("f2close", own(origins.closing2), "protocol = \"http2\"\n");
    cluster("f3reject", own(origins.rejecting3.address), quic);
    cluster("f3cut", own(origins.cutting3.address), quic);
    cluster("ws", own(origins.websocket.address), "");
    cluster("echo", own(origins.echo.address), "");
    for (path, more) in [
        ("h1", "cluster = \"h1\"\n"),
        ("h2", "cluster = \"h2\"\n"),
        ("h3", "cluster = \"h3\"\n"),
        ("flap", "cluster = \"flap\"\n"),
        ("private", "cluster = \"h1\"\nforwarding = { plugin = \"private\" }\n"),
        ("tenant", "router = \"tenants\"\n"),
        ("f1", "cluster = \"f1\"\ntimeout = \"1s\"\nidle_timeout = \"1s\"\nbuffer = { request = \"64KiB\" }\n"),
        ("closing", "cluster = \"closing\"\nretry = { attempts = 5, backoff = \"1ms\" }\n"),
        ("f2", "cluster = \"f2\"\nbuffer = { request = \"64KiB\" }\nretry = { attempts = 4, backoff = \"1ms\" }\n"),
        ("f2close", "cluster = \"f2close\"\nbuffer = { request = \"64KiB\" }\n"),
        ("f3reject", "cluster = \"f3reject\"\n"),
        ("f3cut", "cluster = \"f3cut\"\n"),
        ("ws", "cluster = \"ws\"\n"),
    ] {
        out += &format!("[[route]]\nname = \"{path}\"\npath = \"/{path}/*\"\n{more}");
    }
    out + "[[route]]\nname = \"echo\"\ncluster = \"echo\"\nconnect = [\"echo.example:7\"]\n"
}
