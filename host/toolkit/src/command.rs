//! `tidegate plugin ...`: each command and its arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::words::{Language, Question};
use crate::{bench, build, cases, new};

/// What can be done with a plugin.
#[derive(Subcommand)]
pub enum PluginCommand {
    /// Write a new plugin's folder: source, contract, manifest and tests
    New {
        /// The language it is written in
        #[arg(long, value_name = "LANGUAGE")]
        lang: Language,
        /// The question it answers
        #[arg(long, value_name = "QUESTION", default_value = "router")]
        question: Question,
        /// Rust: take the SDK from this folder, not from the registry
        #[arg(long, value_name = "FOLDER")]
        sdk: Option<PathBuf>,
        /// The folder to make, whose last part names the plugin
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
    /// Build a plugin's component with the tools of its language
    Build {
        /// The plugin's folder
        #[arg(value_name = "DIR", default_value = ".")]
        folder: PathBuf,
    },
    /// Ask a plugin what its cases ask, and compare the answers
    Test {
        /// The plugin's folder, or a component
        #[arg(value_name = "DIR|COMPONENT", default_value = ".")]
        plugin: PathBuf,
        /// The cases; those of the folder where it is left out
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
    },
    /// Measure what a plugin's decision costs, asked the first of its cases
    Bench {
        /// The plugin's folder, or a component
        #[arg(value_name = "DIR|COMPONENT", default_value = ".")]
        plugin: PathBuf,
        /// The cases; those of the folder where it is left out
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: PluginCommand) -> anyhow::Result<ExitCode> {
    match command {
        PluginCommand::New { lang, question, sdk, name } => new::write(lang, question, sdk.as_deref(), &name),
        PluginCommand::Build { folder } => build::build(&folder),
        PluginCommand::Test { plugin, cases } => cases::test(&plugin, cases.as_deref()),
        PluginCommand::Bench { plugin, cases, json } => bench::measure(&plugin, cases.as_deref(), json),
    }
}
