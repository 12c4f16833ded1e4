//! Plugins as their authors meet them: written from a template, built with the tools of their language, tested and measured
//! against the runtime that will ask them.
//!
//! Used by the command line only; nothing on a request's path knows of it. What serves is `tidegate-wasm`.

use std::process::ExitCode;

mod bench;
mod build;
mod cases;
mod command;
mod component;
mod new;
mod project;
mod tools;
mod words;

pub use command::PluginCommand;

/// Runs one `tidegate plugin` command: 0 done, 1 failed or a case that does not hold, 2 misuse.
pub fn run(command: PluginCommand) -> anyhow::Result<ExitCode> {
    match command::run(command) {
        Err(error) if error.is::<Misuse>() => {
            eprintln!("tidegate: {error:#}");
            Ok(ExitCode::from(EXIT_MISUSE))
        }
        result => result,
    }
}

const EXIT_MISUSE: u8 = 2;

/// What was asked for cannot be done as it was asked: a wrong name, a missing file, a file that does not read.
#[derive(Debug)]
struct Misuse(String);

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

fn misuse(text: impl Into<String>) -> anyhow::Error {
    Misuse(text.into()).into()
}
