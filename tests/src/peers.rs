//! Independent implementations that tests speak to: Python packages, in the environment that `tests/setup` makes.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

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
