//! tidegate. The rule is a route of its table, or what the plugin `tenant-canary` says; and all that a request may ask is
//! answered natively, or by the four plugins that come with the program.

use std::net::SocketAddr;
use std::path::Path;

use super::super::{Behind, By, Decided};
use super::{Config, Ports};

/// What `[gateway]` and the listeners are, where it differs.
pub(in crate::bench) struct Edge<'a> {
    pub(in crate::bench) ports: Ports,
    /// Where the certificate is.
    pub(in crate::bench) folder: &'a Path,
    /// Keeps compiled plugins.
    pub(in crate::bench) cache: &'a Path,
    pub(in crate::bench) workers: usize,
    pub(in crate::bench) instances: usize,
}

impl Edge<'_> {
    /// With two listeners, before `rest`, which has clusters and routes.
    pub(in crate::bench) fn config(&self, rest: &str) -> Config {
        let Self { ports: Ports { clear, tls, admin }, folder, cache, workers, instances } = self;
        let (folder, cache) = (folder.display(), cache.display());
        let text = format!(
            r#"[gateway]
workers = {workers}
admin = "{admin}"
plugin_cache = "{cache}"
max_plugin_instances = {instances}
[[listener]]
name = "clear"
address = "{clear}"
max_connections = 100000
max_requests_per_connection = 1000000000
[[listener]]
name = "tls"
address = "{tls}"
max_connections = 100000
max_requests_per_connection = 1000000000
tls.certificates = [{{ certificate = "{folder}/edge.pem", key = "{folder}/edge.key" }}]
{rest}"#
        );
        Config { name: "gateway.toml", text, arguments: vec!["run", "--config", "FILE"] }
    }
}

/// One whose connections are never given up for their age.
pub(in crate::bench) fn cluster(name: &str, endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    format!(
        "[[cluster]]\nname = \"{name}\"\nendpoints = [{}]\nmax_requests_per_connection = 1000000000\n{more}",
        endpoints.join(", ")
    )
}

pub(super) fn config(behind: &Behind, ports: Ports, decided: Decided) -> Config {
    let Behind { alpha, beta, http2, folder } = behind;
    let mut pool = vec![*beta];
    let mut more = String::new();
    if let Decided::Questions(by) = decided {
        // The same origin, by another address.
        pool.push(SocketAddr::from(([127, 0, 0, 2], beta.port())));
        more = format!(
            "balance = {{ {} }}\nretry_budget = {{ percent = \"100%\", min = 1000000 }}\n",
            match by {
                By::Rules => "by = \"least_request\"",
                By::Plugins | By::Memoised => "plugin = \"latency\"",
            }
        );
    }
    let two = format!(
        "protocol = \"http2\"\ntls = {{ ca = \"{}/ca.pem\", server_name = \"bench.test\" }}\n",
        folder.display()
    );
    let rest = [
        cluster("alpha", &[*alpha], ""),
        cluster("beta", &pool, &more),
        cluster("two", &[*http2], &two),
        rules(decided),
        "[[route]]\nname = \"two\"\npath = \"/h2/*\"\ncluster = \"two\"\n[[route]]\nname = \"all\"\ncluster = \"alpha\"\n".to_owned(),
    ];
    let cache = folder.join("plugins");
    Edge { ports, folder, cache: &cache, workers: 1, instances: 8 }.config(&rest.concat())
}

/// The way by a field's value.
const RULE: &str = r#"[[route]]
name = "api"
path = "/api/*"
headers = { x-tenant = "t42" }
cluster = "beta"
"#;

const BY_PLUGIN: &str = r#"[[route]]
name = "api"
path = "/api/*"
router = "tenants"
"#;

/// As every plugin has them that says nothing.
const LIMITS: &str = "limits = { time = \"5ms\" }";

/// The same configuration with time for callgrind, which makes all fifty times slower.
pub(in crate::bench::proxies) fn for_callgrind(config: &str) -> String {
    config.replace(LIMITS, "limits = { time = \"5s\" }")
}

/// The same by the plugin.
fn tenants(memoise: bool) -> String {
    format!(
        r#"[[plugin]]
name = "tenants"
source = "builtin:tenant-canary"
{LIMITS}
memoise = {memoise}
grants = {{ headers = ["x-tenant"] }}
[plugin.settings]
tenant_from = [{{ header = "x-tenant" }}]
default = "alpha"
[[plugin.settings.tenants]]
name = "t42"
cluster = "beta"
"#
    )
}

/// Those that answer the other three questions. Load and chance cannot be remembered. Pauses before another try are as short as the rules have them.
const OTHERS: &str = r#"[[plugin]]
name = "latency"
source = "builtin:latency-aware"
LIMITS
[[plugin]]
name = "private"
source = "builtin:private-forwarding"
LIMITS
memoise = MEMOISE
settings = { secret = "a benchmark has no secrets" }
[[plugin]]
name = "careful"
source = "builtin:careful-retry"
LIMITS
settings = { backoff_ms = 1 }
"#;

fn rules(decided: Decided) -> String {
    match decided {
        Decided::No | Decided::Script | Decided::Tunnel { .. } => String::new(),
        Decided::Native => RULE.to_owned(),
        Decided::Plugin => tenants(false) + BY_PLUGIN,
        Decided::Memoised => tenants(true) + BY_PLUGIN,
        Decided::Questions(By::Rules) => {
            RULE.to_owned()
                + "forwarding = { families = [\"forwarded\"] }\nretry = { on = [\"503\"], attempts = 2, backoff = \"1ms\" }\n"
        }
        Decided::Questions(by @ (By::Plugins | By::Memoised)) => {
            let memoise = by == By::Memoised;
            tenants(memoise)
                + &OTHERS.replace("MEMOISE", &memoise.to_string()).replace("LIMITS", LIMITS)
                + BY_PLUGIN
                + "forwarding = { plugin = \"private\" }\nretry = { plugin = \"careful\", attempts = 2 }\n"
        }
    }
}
