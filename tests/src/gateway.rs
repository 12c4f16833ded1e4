//! The program under test, in a folder of its own, on free ports.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Names the program, before its first use.
pub fn set_program(path: PathBuf) {
    PROGRAM.set(path).expect("not in use yet");
}

/// The program: `TIDEGATE_BIN`, else built once from this workspace.
pub fn program() -> &'static Path {
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("TIDEGATE_BIN") {
            return path.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let built = Command::new(env!("CARGO")).args(["build", "-p", "tidegate"]).current_dir(&root).status();
        assert!(built.is_ok_and(|status| status.success()), "the program does not build");
        root.join("target/debug/tidegate")
    })
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// An address that was free for both TCP and UDP a moment ago, below the ports that the system gives out itself, and that
/// nobody else in this process was given: who wants one where nobody listens may rely on it.
pub fn free_address() -> SocketAddr {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0) % 22_000));
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 22_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if std::net::TcpListener::bind(address).is_ok() && std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().expect("the program runs")
}

/// A running gateway. Killed when dropped; its log is shown if the test fails.
pub struct Gateway {
    child: Child,
    pub folder: tempfile::TempDir,
    addresses: HashMap<String, SocketAddr>,
}

impl Gateway {
    /// Starts with `[gateway]`'s usual test settings before `config`.
    pub async fn start(config: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), config).await
    }

    /// Starts in a folder that has files already.
    pub async fn start_in(folder: tempfile::TempDir, config: &str) -> Self {
        Self::start_under(&[], folder, config).await
    }

    /// Starts as the last argument of another program, which becomes it, as `ip netns exec NAME` does.
    pub async fn start_under(before: &[&str], folder: tempfile::TempDir, config: &str) -> Self {
        let file = folder.path().join("gateway.toml");
        std::fs::write(&file, whole(config)).expect("written");
        let addresses = folder.path().join("addresses.json");
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let mut words = before.iter().map(std::ffi::OsStr::new).chain([program().as_os_str()]);
        let mut child = Command::new(words.next().expect("the program"))
            .args(words)
            .args(["run", "--config"])
            .arg(&file)
            .arg("--addresses")
            .arg(&addresses)
            .env(
                "TIDEGATE_LOG",
                "debug,h2=info,hyper=info,quinn=info,quinn_proto=info,rustls=info,wasmtime=info,cranelift=info",
            )
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let begun = Instant::now();
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&addresses) {
                break text;
            }
            let ended = child.try_wait().expect("a child");
            let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "the gateway ended at once:\n{}", log());
            assert!(begun.elapsed() < Duration::from_secs(60), "the gateway does not get ready:\n{}", log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let addresses = serde_json::from_str::<HashMap<String, SocketAddr>>(&text).expect("addresses");
        Self { child, folder, addresses }
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        *self.addresses.get(listener).unwrap_or_else(|| panic!("no listener {listener:?}"))
    }

    /// The listener that most tests have.
    pub fn edge(&self) -> SocketAddr {
        self.address("edge")
    }

    pub fn admin(&self) -> SocketAddr {
        self.address("admin")
    }

    /// Writes another configuration and asks for a reload; what the program said, and whether it took it.
    pub fn reload(&self, config: &str) -> (bool, String) {
        self.rewrite(config);
        let output = run(&["reload", "--admin", &self.admin().to_string()]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Writes another configuration, for the next reload.
    pub fn rewrite(&self, config: &str) {
        std::fs::write(self.folder.path().join("gateway.toml"), whole(config)).expect("written");
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: `kill` takes no memory; the process is our child and not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        crate::eventually("the gateway ends", async || child.try_wait().expect("a child")).await
    }

    /// A page of the admin listener.
    pub async fn admin_get(&self, path: &str) -> crate::Answer {
        crate::Client::http1(self.admin()).get(path).await.expect("admin answers")
    }

    /// A metric's value; 0 where it does not appear.
    pub async fn metric(&self, sample: &str) -> f64 {
        let page = self.admin_get("/metrics").await.text();
        let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until its log has this: what is counted is counted a moment before it is told.
    pub async fn says(&self, text: &str) {
        crate::eventually(&format!("its log says {text:?}"), async || self.log().contains(text).then_some(())).await;
    }

    /// The lines of its access log so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        // The last may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// How often its threads went to sleep so far, all together.
    pub fn sleeps(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a process");
        let of = |task: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
            let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
        };
        tasks.filter_map(of).sum()
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a process").count()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// What every test's file begins with.
fn whole(config: &str) -> String {
    // A test may begin with its own number.
    let workers = if config.starts_with("workers = ") { "" } else { "workers = 2\n" };
    let shared = "[gateway]\nadmin = \"127.0.0.1:0\"\naccess_log = \"access.log\"\nplugin_cache = \"cache\"\ndrain_timeout = \"10s\"\n";
    format!("{shared}{workers}{config}")
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the gateway's log, its end first ---\n{}", tail.join("\n"));
        }
    }
}
