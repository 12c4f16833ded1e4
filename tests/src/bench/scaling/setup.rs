//! Configurations that differ in how many there are of something, and requests that make use of all of them.

use std::fmt::Write;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::bench::message::{Ask, KIB, NAME, head};
use crate::bench::proxies::Behind;
use crate::bench::proxies::configs::tidegate::cluster;

/// So many of something, and a load that meets each.
pub(super) struct Setup {
    /// Clusters, plugins and routes.
    pub(super) rest: String,
    pub(super) targets: Vec<Target>,
    pub(super) connections: usize,
    pub(super) workers: usize,
    pub(super) cores: &'static [usize],
    /// Plugins that are asked, by one request each.
    pub(super) plugins: usize,
    /// Requests before it counts: connections are open then, instances are there.
    pub(super) warm: u64,
}

/// What a request names, and the origin that answers it.
pub(super) struct Target {
    pub(super) host: String,
    /// Before the last part.
    pub(super) path: String,
    pub(super) field: Option<(&'static str, String)>,
    pub(super) origin: &'static str,
}

impl Target {
    fn usual(origin: &'static str) -> Self {
        Self { host: NAME.to_owned(), path: String::new(), field: None, origin }
    }

    pub(super) fn fields(&self) -> Vec<(&str, &str)> {
        self.field.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// What each of the load's requests asks for.
pub(super) const ASK: Ask = Ask { path: "/1k", upload: 0, answer: KIB };

impl Setup {
    fn of(rest: String, targets: Vec<Target>) -> Self {
        let warm = 3 * targets.len() as u64;
        Self { rest, targets, connections: 64, workers: 1, cores: &[0], plugins: 0, warm }
    }

    /// A request for each target.
    pub(super) fn requests(&self) -> Rc<[Vec<u8>]> {
        let of = |target: &Target| {
            let path = format!("{}{}", target.path, ASK.path);
            head(&ASK, &target.host, &path, &target.fields())
        };
        self.targets.iter().map(of).collect()
    }
}

fn clusters(behind: &Behind) -> String {
    cluster("alpha", &[behind.alpha], "") + &cluster("beta", &[behind.beta], "")
}

/// By turns, so that the wrong route is found out.
fn turn(index: usize) -> &'static str {
    if index.is_multiple_of(2) { "alpha" } else { "beta" }
}

/// What tells a table's routes apart.
#[derive(Clone, Copy)]
pub(super) enum By {
    Host,
    Prefix,
    Field,
}

pub(super) fn routes(behind: &Behind, by: By, count: usize) -> Setup {
    let mut rest = clusters(behind);
    let mut targets = Vec::with_capacity(count);
    for index in 0..count {
        let mut target = Target::usual(turn(index));
        let matches = match by {
            By::Host => {
                target.host = format!("t{index:05}.{NAME}");
                format!("host = \"{}\"", target.host)
            }
            By::Prefix => {
                target.path = format!("/p{index:05}");
                format!("path = \"{}/*\"", target.path)
            }
            By::Field => {
                let value = format!("s{index:05}");
                let matches = format!("headers = {{ x-shard = \"{value}\" }}");
                target.field = Some(("x-shard", value));
                matches
            }
        };
        let _ = write!(rest, "[[route]]\n{matches}\ncluster = \"{}\"\n", target.origin);
        targets.push(target);
    }
    Setup::of(rest, targets)
}

/// The same origin by so many addresses of loopback.
pub(super) fn endpoints(behind: &Behind, by: &str, count: usize) -> Setup {
    let port = behind.alpha.port();
    let address = |index: usize| {
        let [second, third, fourth] = [1 + index / 62_500, index / 250 % 250, 1 + index % 250].map(|part| part as u8);
        SocketAddr::from(([127, second, third, fourth], port))
    };
    let addresses: Vec<SocketAddr> = (0..count).map(address).collect();
    // As many connections in all as there are endpoints, where these are many: the processes may have 20,000 files.
    let most = if count > 1000 { 1 } else { 64 };
    let more = format!("balance = {{ by = \"{by}\" }}\nmax_connections = {most}\nidle_timeout = \"1h\"\n");
    let rest = cluster("alpha", &addresses, &more) + "[[route]]\ncluster = \"alpha\"\n";
    let setup = Setup::of(rest, vec![Target::usual("alpha")]);
    // A draw leaves one of e^10 out.
    Setup { connections: 16, warm: 10 * count as u64, ..setup }
}

/// One component, with other settings each time, and a route for each.
pub(super) fn plugins(behind: &Behind, count: usize) -> Setup {
    let mut rest = clusters(behind);
    let mut targets = Vec::with_capacity(count);
    for index in 0..count {
        let _ = write!(
            rest,
            r#"[[plugin]]
name = "p{index:05}"
source = "builtin:tenant-canary"
grants = {{ headers = ["x-tenant"] }}
[plugin.settings]
tenant_from = [{{ header = "x-tenant" }}]
default = "alpha"
tenants = [{{ name = "t42", cluster = "beta" }}, {{ name = "own-{index:05}", cluster = "alpha" }}]
[[route]]
path = "/p{index:05}/*"
router = "p{index:05}"
"#
        );
        targets.push(Target { path: format!("/p{index:05}"), ..Target::usual("beta") });
    }
    Setup { plugins: count, ..Setup::of(rest, targets) }
}

/// Nothing but more threads, on a core each.
pub(super) fn workers(behind: &Behind, count: usize) -> Setup {
    Setup { cores: &[0, 1][..count.min(2)], ..crowded(behind, count) }
}

/// The same on one core, which no load shares.
pub(super) fn crowded(behind: &Behind, count: usize) -> Setup {
    let setup = Setup::of(clusters(behind) + "[[route]]\ncluster = \"alpha\"\n", vec![Target::usual("alpha")]);
    Setup { workers: count, ..setup }
}
