//! Independent implementations that tests speak to: Python packages, in the environment that `tests/setup` makes.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// The interpreter that has the packages: `target/peers-python`, else the one on the path.
pub fn interpreter() -> PathBuf {
    let own = crate::gateway::root().join("target/peers-python/bin/python");
    if own.exists() { own } else { PathBuf::from("python3") }
}

/// Runs a script of `tests/peers` to its end: what it said, if it ended well; everything it said as the error if not.
pub async fn python(script: &str, arguments: &[&str]) -> Result<String, String> {
    let path = crate::gateway::root().join("tests/peers").join(script);
    let run = Command::new(interpreter()).arg(path).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(Duration::from_secs(300), run).await.map_err(|_| format!("{script} does not end"))?;
    let output = output.map_err(|error| format!("{script} does not run: {error}; run tests/setup"))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// A script of `tests/peers` that goes on running. Killed when dropped.
pub struct Script {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Script {
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let path = crate::gateway::root().join("tests/peers").join(script);
        let mut child = Command::new(interpreter())
            .arg(path)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the script starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, lines }
    }

    /// The next line it prints.
    pub async fn line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(60), self.lines.next_line()).await.expect("a line in time");
        line.expect("text").expect("a line before its end; run tests/setup if a package is missing")
    }
}
