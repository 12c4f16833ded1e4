//! Other people's proxies, HAProxy, nginx and dnsdist, in front of the gateway or behind it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::gateway::free_address;

/// A running proxy on a port of loopback. Killed when dropped; its log is shown if the test fails.
pub struct Peer {
    child: Child,
    folder: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Peer {
    /// `sections` go after `global` and `defaults` (mode http) and get the port to listen on. `None` if HAProxy is not
    /// there: `tests/setup` fetches it.
    pub async fn haproxy(sections: impl Fn(u16) -> String) -> Option<Self> {
        let program = find("haproxy")?;
        let address = free_address();
        let config = format!(
            "global\n  maxconn 100\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n{}",
            sections(address.port())
        );
        Some(Self::start(&program, &["-db", "-f", "peer.conf"], &config, address).await)
    }

    /// `blocks` are `http { .. }` or `stream { .. }` and get the port to listen on. `None` if nginx is not there.
    pub async fn nginx(blocks: impl Fn(u16) -> String) -> Option<Self> {
        let program = find("nginx")?;
        let module = nginx_module("ngx_stream_module.so");
        let module = module.map(|module| format!("load_module {};\n", module.display())).unwrap_or_default();
        let address = free_address();
        // SAFETY: it takes nothing and cannot fail.
        let user = if unsafe { libc::geteuid() } == 0 { "user root;\n" } else { "" };
        let config = format!(
            "{module}{user}daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr info;\nevents {{ }}\n{}",
            blocks(address.port())
        );
        Some(Self::start(&program, &["-p", ".", "-e", "stderr", "-c", "peer.conf"], &config, address).await)
    }

    /// `lines` are Lua and get the port to listen on. `None` if dnsdist is not there.
    pub async fn dnsdist(lines: impl Fn(u16) -> String) -> Option<Self> {
        let program = find("dnsdist")?;
        let address = free_address();
        let config = format!("setLocal(\"{address}\")\nsetACL(\"127.0.0.0/8\")\n{}", lines(address.port()));
        Some(Self::start(&program, &["--supervised", "--config", "peer.conf"], &config, address).await)
    }

    async fn start(program: &Path, arguments: &[&str], config: &str, address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("peer.conf"), config).expect("written");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder.path())
            .env("LD_LIBRARY_PATH", libraries())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("the peer starts");
        let mut peer = Self { child, folder, address };
        crate::eventually("the peer listens", async || {
            let ended = peer.child.try_wait().expect("a child");
            assert!(ended.is_none(), "the peer ended at once:\n{}", peer.log());
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        peer
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the peer's log ---\n{}", self.log());
        }
    }
}

/// What `tests/setup` unpacked, else the system's.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let unpacked = crate::gateway::root().join("target/peers/usr");
    let mut folders = vec![unpacked.join("sbin"), unpacked.join("bin"), "/usr/local/sbin".into(), "/usr/sbin".into()];
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: no {name} here; tests/setup fetches it");
    }
    found
}

/// A module of nginx's that was unpacked, or is the system's.
pub(crate) fn nginx_module(file: &str) -> Option<PathBuf> {
    let folders = ["target/peers/usr/lib/nginx/modules", "/usr/lib/nginx/modules"];
    let mut found = folders.into_iter().map(|folder| crate::gateway::root().join(folder).join(file));
    found.find(|module| module.exists())
}

pub(crate) fn libraries() -> String {
    let folder = crate::gateway::root().join("target/peers/usr/lib");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders: Vec<String> = entries
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .map(|path| path.display().to_string())
        .collect();
    folders.join(":")
}
