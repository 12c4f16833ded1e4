//! `tidegate plugin build`: the language's own tools make a module or a component, and what comes out is checked here.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use wit_bindgen_core::{Files, WorldGenerator};

use crate::component;
use crate::project::Project;
use crate::words::Language;

mod c;
mod go;
mod javascript;
mod python;
mod rust;

pub(crate) fn build(folder: &Path) -> anyhow::Result<ExitCode> {
    let project = Project::open(folder)?;
    let manifest = &project.manifest;
    std::fs::create_dir_all(project.build_folder())?;
    let bytes = match manifest.language {
        Language::Rust => rust::build(&project),
        Language::Go => go::build(&project),
        Language::C => c::build(&project),
        Language::JavaScript => javascript::build(&project),
        Language::Python => python::build(&project),
    }?;
    component::check(&bytes, manifest.question)?;
    let output = project.output();
    if let Some(parent) = output.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&output, &bytes).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}: {} bytes, sha256:{}", output.display(), bytes.len(), component::digest(&bytes));
    Ok(ExitCode::SUCCESS)
}

/// Writes the bindings that a generator makes of the project's world. Gives the folder they are in.
fn bind(
    project: &Project,
    mut generator: Box<dyn WorldGenerator>,
    into: PathBuf,
    change: impl Fn(&str, &str) -> String,
) -> anyhow::Result<PathBuf> {
    let (mut resolve, world) = component::contract(&project.wit(), &project.manifest.world())?;
    let mut files = Files::default();
    generator.generate(&mut resolve, world, &mut files).context("the bindings cannot be made")?;
    // What an older contract left would be compiled too.
    match std::fs::remove_dir_all(&into) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    for (name, content) in files.iter() {
        let file = into.join(name);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::str::from_utf8(content) {
            Ok(text) => std::fs::write(&file, change(name, text))?,
            Err(_) => std::fs::write(&file, content)?,
        }
    }
    Ok(into)
}

/// What a tool left.
fn result(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("the build left no {}", file.display()))
}
