//! The tools of a language: where they are, and running them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Looks for a program where a project keeps its own (`.venv/bin`, `node_modules/.bin`, here or in a folder above), then on
/// the search path.
pub(crate) fn find(folder: &Path, program: &str) -> Option<PathBuf> {
    let own = folder.ancestors().flat_map(|above| [above.join(".venv/bin"), above.join("node_modules/.bin")]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.chain(std::env::split_paths(&path)).map(|place| place.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What to do about a tool that is not there: the usual route, and one by package registries alone.
pub(crate) fn missing(what: &str, usual: &str, registries: &str) -> anyhow::Error {
    anyhow::anyhow!("{what} is missing; install it:\n  {usual}\nor, from package registries alone:\n  {registries}")
}

/// Runs a tool, which speaks for itself on standard error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_projects_own_tool_comes_before_the_search_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let plugin = folder.path().join("deep/plugin");
        let place = folder.path().join(".venv/bin");
        std::fs::create_dir_all(&plugin).expect("a folder");
        std::fs::create_dir_all(&place).expect("a folder");
        let tool = place.join("sh");
        std::fs::write(&tool, "").expect("a file");
        assert_ne!(find(&plugin, "sh").as_ref(), Some(&tool), "it cannot be run");
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        assert_eq!(find(&plugin, "sh"), Some(tool));
        assert_eq!(find(&plugin, "no-such-tool-anywhere"), None);
    }

    #[test]
    fn a_tool_that_fails_is_named_with_its_arguments() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("it fails");
        assert!(error.to_string().contains("sh -c exit 3"), "{error}");
    }
}
