//! The proxies, each set up to do the same: forward to one HTTP/1.1 origin, or to an HTTP/2 one below `/h2/`, add
//! X-Forwarded-For, keep connections on both sides, log no accesses, and run one worker on one core.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cpu;
use super::load::Front;
use crate::gateway::{free_address, program, root};
use crate::peer;

pub(super) mod check;
pub(super) mod configs;

use configs::{Config, Ports};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Tidegate,
    Nginx,
    Haproxy,
    Envoy,
    Caddy,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Tidegate, Self::Nginx, Self::Haproxy, Self::Envoy, Self::Caddy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Caddy => "caddy",
        }
    }

    /// Whether the packaged build speaks it to clients.
    pub fn speaks(self, front: Front) -> bool {
        front != Front::Http3 || !matches!(self, Self::Nginx | Self::Haproxy)
    }

    /// Whether it speaks HTTP/2 to origins.
    pub fn speaks_http2_upstream(self) -> bool {
        self != Self::Nginx
    }

    /// Whether it has this way to decide.
    pub fn decides(self, decided: Decided) -> bool {
        match decided {
            Decided::No | Decided::Native | Decided::Plugin => true,
            Decided::Memoised | Decided::Questions(_) => self == Self::Tidegate,
            Decided::Script => self == Self::Envoy,
            Decided::Tunnel { splice } => {
                self != Self::Caddy && (!splice || matches!(self, Self::Tidegate | Self::Haproxy))
            }
        }
    }

    /// The program, where it is there.
    fn program(self) -> Option<PathBuf> {
        let python = root().join("target/bench-peers");
        let found = match self {
            Self::Tidegate => return Some(program().to_owned()),
            Self::Nginx | Self::Haproxy => peer::find(self.name())?,
            Self::Envoy => {
                let folders = std::fs::read_dir(python.join("lib")).ok()?.flatten();
                folders.map(|folder| folder.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.exists())?
            }
            Self::Caddy => python.join("bin/caddy"),
        };
        found.exists().then_some(found)
    }
}

/// Where the origins are, and what the proxies show to clients.
pub struct Behind {
    /// Where all goes by default.
    pub alpha: SocketAddr,
    /// Where it is decided that a request goes.
    pub beta: SocketAddr,
    pub http2: SocketAddr,
    /// Has `edge.pem`, `edge.key`, both in `edge.both`, and the roots in `ca.pem`.
    pub folder: PathBuf,
}

/// Who decides where a request goes, where that is measured.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Decided {
    /// Nobody: all goes to one place.
    #[default]
    No,
    /// A rule of the proxy's own, on the path and a field.
    Native,
    /// The same rule by what extends the proxy: a component, njs, Lua, Wasm, CEL.
    Plugin,
    /// The same, and answers may be remembered.
    Memoised,
    /// By a script, where plugins are something else.
    Script,
    /// All that can be asked: where to, to which of two endpoints, with what about the client, and whether to try again.
    Questions(By),
    /// Nothing is read: TCP is relayed. Those that have to be told to splice are, where set.
    Tunnel { splice: bool },
}

/// Who answers all questions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    Rules,
    Plugins,
    /// The same, and what they may remember is remembered.
    Memoised,
}

/// A proxy that runs. Killed when dropped.
pub struct Proxy {
    pub kind: Kind,
    child: Child,
    ports: Ports,
    /// Its configuration and its log.
    folder: tempfile::TempDir,
}

/// How one is started.
pub(super) struct Launch<'a> {
    pub(super) cores: &'a [usize],
    /// Under callgrind, which writes here when the proxy ends.
    pub(super) counts: Option<&'a Path>,
}

impl Launch<'_> {
    /// Alone on a core.
    pub(super) const USUAL: Self = Self { cores: &[0], counts: None };
}

impl Ports {
    pub(super) fn free() -> Self {
        Self { clear: free_address(), tls: free_address(), admin: free_address() }
    }
}

impl Proxy {
    /// Starts it on core 0, waits until it takes connections, and sees that it decides as it is to. `None` if it is not
    /// installed, or knows no such thing.
    pub async fn start(kind: Kind, behind: &Behind, decided: Decided) -> Result<Option<Self>, String> {
        Self::start_as(kind, behind, decided, Launch::USUAL).await
    }

    /// The same under callgrind, which writes into `counts` when the proxy ends.
    pub async fn start_counted(
        kind: Kind,
        behind: &Behind,
        decided: Decided,
        counts: &Path,
    ) -> Result<Option<Self>, String> {
        Self::start_as(kind, behind, decided, Launch { counts: Some(counts), ..Launch::USUAL }).await
    }

    async fn start_as(
        kind: Kind,
        behind: &Behind,
        decided: Decided,
        launch: Launch<'_>,
    ) -> Result<Option<Self>, String> {
        let Some(program) = kind.program() else { return Ok(None) };
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let ports = Ports::free();
        let Some(mut config) = configs::config(kind, behind, ports, decided, folder.path()) else { return Ok(None) };
        if launch.counts.is_some() {
            config.text = configs::tidegate::for_callgrind(&config.text);
        }
        let proxy = Self::launch(kind, &program, &config, ports, folder, launch).await?;
        check::decides(&proxy, decided)
            .await
            .map_err(|error| format!("{} is not set up right: {error}", kind.name()))?;
        Ok(Some(proxy))
    }

    /// Starts tidegate with a configuration of its own.
    pub(super) async fn tidegate(config: &Config, ports: Ports, launch: Launch<'_>) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        Self::launch(Kind::Tidegate, program(), config, ports, folder, launch).await
    }

    async fn launch(
        kind: Kind,
        program: &Path,
        config: &Config,
        ports: Ports,
        folder: tempfile::TempDir,
        launch: Launch<'_>,
    ) -> Result<Self, String> {
        let file = folder.path().join(config.name);
        std::fs::write(&file, &config.text).map_err(|error| error.to_string())?;
        let log = std::fs::File::create(folder.path().join("log")).map_err(|error| error.to_string())?;
        let said = log.try_clone().map_err(|error| error.to_string())?;
        let mut command = match launch.counts {
            None => Command::new(program),
            Some(counts) => {
                let mut command = Command::new("valgrind");
                // Compiled plugins are code that was data.
                command.args(["--tool=callgrind", "--smc-check=all-non-file"]);
                command.arg(format!("--callgrind-out-file={}", counts.display())).arg(program);
                command
            }
        };
        command.args(config.arguments.iter().map(|argument| argument.replace("FILE", &file.to_string_lossy())));
        command.env("GOMAXPROCS", "1").env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path());
        if matches!(kind, Kind::Nginx | Kind::Haproxy) {
            command.env("LD_LIBRARY_PATH", peer::libraries());
        }
        command.stdin(Stdio::null()).stdout(said).stderr(log).current_dir(folder.path());
        // The new process inherits the cores of the thread that starts it.
        cpu::pin(launch.cores).map_err(|error| format!("cannot pin to cores {:?}: {error}", launch.cores))?;
        let child = command.spawn();
        cpu::pin(&[1]).map_err(|error| format!("cannot pin to core 1: {error}"))?;
        let child = child.map_err(|error| format!("{}: {error}", kind.name()))?;
        let mut proxy = Self { kind, child, ports, folder };
        proxy.ready().await?;
        Ok(proxy)
    }

    /// Waits until it takes connections.
    async fn ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        for address in [self.ports.clear, self.ports.tls] {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                let ended = self.child.try_wait().ok().flatten();
                if ended.is_some() || begun.elapsed() > Duration::from_secs(300) {
                    let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                    return Err(format!("{} does not get ready ({ended:?}):\n{log}", self.kind.name()));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn address(&self, front: Front) -> SocketAddr {
        if front == Front::Http1 { self.ports.clear } else { self.ports.tls }
    }
}

impl Proxy {
    /// Ends it in an orderly way, and waits for that.
    pub fn end(mut self) {
        self.terminate();
        let _ = self.child.wait();
    }

    fn terminate(&self) {
        // Those with a master process pass it on.
        // SAFETY: a plain system call on a child that was not waited for yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.terminate();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
