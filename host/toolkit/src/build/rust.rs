//! Rust: `wasm32-unknown-unknown` by rustup's target, or by Debian's compiler with the standard library from its source.

use std::path::Path;
use std::process::Command;

use super::result;
use crate::component;
use crate::project::Project;
use crate::tools::{find, missing, run};

const TARGET: &str = "wasm32-unknown-unknown";
/// A policy's stack need not be the megabyte that is usual.
const FLAGS: &str = "-C link-arg=-zstack-size=65536";

pub(super) fn build(project: &Project) -> anyhow::Result<Vec<u8>> {
    let folder = &project.folder;
    let target = folder.join("target");
    let mut cargo = cargo(folder)?;
    cargo.current_dir(folder).args(["--release", "--target", TARGET, "--target-dir"]).arg(&target);
    run(cargo.env("RUSTFLAGS", FLAGS))?;
    let module = format!("{}.wasm", crate_name(&folder.join("Cargo.toml"))?.replace('-', "_"));
    component::from_module(&result(&target.join(TARGET).join("release").join(module))?)
}

/// The one that can compile for the target.
fn cargo(folder: &Path) -> anyhow::Result<Command> {
    if let (Some(cargo), Some(rustc)) = (find(folder, "cargo"), find(folder, "rustc"))
        && has_target(&rustc)
    {
        let mut command = Command::new(cargo);
        command.arg("build");
        return Ok(command);
    }
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    let linker = ["wasm-ld", "wasm-ld-19"].iter().find_map(|name| find(Path::new("/"), name));
    if let Some(linker) = linker.filter(|_| cargo.exists() && rustc.exists() && Path::new(DEBIAN_SOURCE).exists()) {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(cargo);
        // A stable compiler builds the standard library only when it is told so.
        command.args(["build", "-Zbuild-std=std,panic_abort"]).envs([("RUSTC_BOOTSTRAP", "1")]);
        command.env("RUSTC", rustc).env("PATH", format!("/usr/bin:{path}"));
        command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        return Ok(command);
    }
    Err(missing(
        "a Rust compiler for wasm32-unknown-unknown",
        "rustup target add wasm32-unknown-unknown",
        "apt-get install rustc-web cargo-web rust-web-src lld-19        (Debian 12)",
    ))
}

/// Where Debian keeps the source of the standard library.
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/std";

/// Whether the compiler has the target's standard library.
fn has_target(rustc: &Path) -> bool {
    let found = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    found.is_ok_and(|found| {
        let place = String::from_utf8_lossy(&found.stdout);
        found.status.success() && std::fs::read_dir(place.trim()).is_ok_and(|mut files| files.next().is_some())
    })
}

/// A plugin may have been renamed in its manifest only.
fn crate_name(manifest: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(result(manifest)?)?;
    let manifest: toml::Table = toml::from_str(&text)?;
    let name = |table: &str| manifest.get(table)?.get("name")?.as_str().map(str::to_owned);
    name("lib").or_else(|| name("package")).ok_or_else(|| anyhow::anyhow!("Cargo.toml has no package.name"))
}
