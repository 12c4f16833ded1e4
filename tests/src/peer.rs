//! Peers of other makes: scripts of `tests/peers`, run by `python3`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const LONGEST: Duration = Duration::from_secs(60);

/// A running script. Killed when dropped.
pub struct Peer {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// `None`, with a notice, where `tests/setup` has not installed what it needs.
    pub fn start(script: &str, arguments: &[&str]) -> Option<Self> {
        let there = std::process::Command::new("python3").args(["-c", "import aioquic"]).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            eprintln!("skipped: {script} needs aioquic; run tests/setup");
            return None;
        }
        let path = crate::gateway::root().join("tests/peers").join(script);
        let mut child = Command::new("python3")
            .arg(path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the script starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Some(Self { _child: child, lines })
    }

    /// The next line it prints.
    pub async fn line(&mut self) -> String {
        let line = tokio::time::timeout(LONGEST, self.lines.next_line()).await.expect("a line in time");
        line.expect("text").expect("a line before its end")
    }
}
