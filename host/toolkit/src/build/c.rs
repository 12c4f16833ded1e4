//! C: clang with a libc for WASI, by whatever brings both: the WASI SDK, Zig, or Debian's packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use super::{bind, result};
use crate::component;
use crate::project::Project;
use crate::tools::{find, missing, run};

pub(super) fn build(project: &Project) -> anyhow::Result<Vec<u8>> {
    let folder = &project.folder;
    let generator = wit_bindgen_c::Opts::default().build();
    let bindings = bind(project, generator, project.build_folder().join("bindings"), |_, text| text.to_owned())?;
    let core = project.build_folder().join("core.wasm");
    let mut sources = sources(folder, &["c"])?;
    if sources.is_empty() {
        bail!("{} has no .c file", folder.display());
    }
    sources.extend(self::sources(&bindings, &["c", "o"])?);
    let mut compiler = compiler(folder)?;
    compiler.current_dir(folder).args(["-std=c11", "-Os", "-Wall", "-Wextra", "-mexec-model=reactor", "-I"]);
    // The bindings have parameters that they do not use.
    compiler
        .arg(&bindings)
        .args(["-Wno-unused-parameter", "-Wl,--strip-all", "-Wl,-z,stack-size=65536"])
        .args(sources)
        .arg("-o")
        .arg(&core);
    run(&mut compiler)?;
    component::from_module(&result(&core)?)
}

/// Files of a folder with these endings, in order, so that the same source gives the same component.
fn sources(folder: &Path, endings: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let fits = |path: &PathBuf| path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted));
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(fits).collect();
    files.sort();
    Ok(files)
}

fn compiler(folder: &Path) -> anyhow::Result<Command> {
    if let Some(sdk) = std::env::var_os("WASI_SDK_PATH") {
        return Ok(Command::new(Path::new(&sdk).join("bin/clang")));
    }
    for zig in ["zig", "python-zig"] {
        if let Some(zig) = find(folder, zig) {
            let mut command = Command::new(zig);
            command.args(["cc", "-target", "wasm32-wasi"]);
            return Ok(command);
        }
    }
    let debian = ["clang-19", "clang"].iter().find_map(|name| find(folder, name));
    if let Some(clang) = debian.filter(|_| Path::new(DEBIAN_LIBC).exists()) {
        let mut command = Command::new(clang);
        command.args(["--target=wasm32-wasi", "--sysroot=/usr"]);
        return Ok(command);
    }
    Err(missing(
        "a C compiler for wasm32-wasi",
        "the WASI SDK, and WASI_SDK_PATH set to its folder; or Zig",
        "python3 -m venv .venv && .venv/bin/pip install ziglang\n  or apt-get install clang-19 lld-19 wasi-libc \
         libclang-rt-19-dev-wasm32        (Debian 12)",
    ))
}

/// Where Debian's `wasi-libc` has its headers.
const DEBIAN_LIBC: &str = "/usr/include/wasm32-wasi";
