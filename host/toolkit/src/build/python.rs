//! Python: componentize-py puts the source and CPython into one component.

use std::process::Command;

use super::result;
use crate::project::Project;
use crate::tools::{find, missing, run};

pub(super) fn build(project: &Project) -> anyhow::Result<Vec<u8>> {
    let folder = &project.folder;
    let tool = find(folder, "componentize-py").ok_or_else(|| {
        let install = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt";
        missing("componentize-py", install, "the same")
    })?;
    let output = project.build_folder().join("component.wasm");
    let mut command = Command::new(tool);
    command.current_dir(folder).arg("-d").arg(project.wit()).args(["-w", &project.manifest.world()]);
    // Stubbed, WASI is not imported; chance then has a seed that is fixed now.
    command.args(["componentize", "--stub-wasi", "app", "-o"]).arg(&output);
    run(&mut command)?;
    result(&output)
}
