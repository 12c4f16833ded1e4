//! Somebody else's registry: the one of the distribution project, as Debian packages it, on a port of loopback.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::peer::find;

/// A running registry. Killed when dropped; its log is shown if the test fails.
pub struct Registry {
    child: Option<Child>,
    program: PathBuf,
    folder: tempfile::TempDir,
    pub address: SocketAddr,
}

impl Registry {
    /// `http` goes below `http:` of its configuration, `more` beside it; files that they name are in `files`. `None` if it is
    /// not there: `tests/setup` fetches it.
    pub async fn start(http: &str, more: &str, files: &[(&str, &str)]) -> Option<Self> {
        let program = find("docker-registry")?;
        let folder = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).expect("written");
        }
        let address = crate::gateway::free_address();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: data}}\n  delete: {{enabled: true}}\nhttp:\n  addr: {address}\n{http}{more}"
        );
        std::fs::write(folder.path().join("config.yml"), config).expect("written");
        let mut registry = Self { child: None, program, folder, address };
        registry.up().await;
        Some(registry)
    }

    /// An open one, without TLS.
    pub async fn open() -> Option<Self> {
        Self::start("", "", &[]).await
    }

    /// Starts it again, with what it had.
    pub async fn up(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"));
        let log = log.expect("a log");
        let child = Command::new(&self.program)
            .args(["serve", "config.yml"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("the registry starts");
        self.child = Some(child);
        crate::eventually("the registry listens", async || {
            let ended = self.child.as_mut().expect("a child").try_wait().expect("a child");
            assert!(ended.is_none(), "the registry ended at once:\n{}", self.log());
            tokio::net::TcpStream::connect(self.address).await.ok()
        })
        .await;
    }

    /// Nobody answers any more.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A reference in it.
    pub fn reference(&self, rest: &str) -> String {
        format!("oci://{}/{rest}", self.address)
    }

    /// Where it keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.folder.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.down();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("--- the registry's log, its end first ---\n{}", tail.join("\n"));
        }
    }
}
