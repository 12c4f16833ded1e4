//! JavaScript: componentize-js puts the source and an engine into one component.

use std::process::Command;

use super::result;
use crate::project::Project;
use crate::tools::{find, missing, run};

pub(super) fn build(project: &Project) -> anyhow::Result<Vec<u8>> {
    let folder = &project.folder;
    let tool = find(folder, "componentize-js").ok_or_else(|| {
        missing(
            "componentize-js",
            "npm install        (here: package.json asks for it; it needs Node 20 or newer)",
            "the same",
        )
    })?;
    let output = project.build_folder().join("component.wasm");
    let mut command = Command::new(tool);
    command.current_dir(folder).arg("policy.js").arg("-w").arg(project.wit());
    command.args(["-n", &project.manifest.world()]);
    // Without these the component imports no WASI.
    command.args(["-d", "stdio", "random", "clocks", "http", "fetch-event", "-o"]).arg(&output);
    run(&mut command)?;
    result(&output)
}
