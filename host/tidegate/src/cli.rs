//! The command line: what each command is, and which code it exits with.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate_config::Config;

use crate::compile::Compiler;
use crate::{boot, demo, plugin_inspect, plugin_shipping, reload, shadow, status};

/// A gateway whose judgement is WebAssembly components.
#[derive(Parser)]
#[command(name = "tidegate", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a configuration until SIGTERM; SIGHUP reloads it
    Run {
        /// The configuration file
        #[arg(long, short, value_name = "FILE")]
        config: PathBuf,
        /// Write the bound addresses, by listener name, to this file as JSON once everything serves
        #[arg(long, value_name = "FILE")]
        addresses: Option<PathBuf>,
    },
    /// Do all that run does short of serving: load, check, compile the plugins and configure them
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
    /// Serve three origins and a gateway with four plugins on loopback, and say what to try
    Demo {
        /// Drive it over HTTP/1.1, HTTP/2 and HTTP/3, show every decision, and exit 0 only if all is right
        #[arg(long)]
        check: bool,
    },
    /// Ask a running gateway to load its configuration again
    Reload {
        /// The admin listener of the gateway
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901")]
        admin: String,
    },
    /// Show what a running gateway serves: listeners, endpoints, steers with what they installed, plugins
    Status {
        /// The admin listener of the gateway
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901")]
        admin: String,
        /// Print all of it, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show how the answers of shadows differ from those that stood in a running gateway
    Shadow {
        /// The admin listener of the gateway
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901")]
        admin: String,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write, build, test, measure and ship plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Print the reference of the configuration file as Markdown, or its JSON Schema
    Reference {
        /// Print the JSON Schema
        #[arg(long)]
        schema: bool,
    },
}

#[derive(Subcommand)]
enum PluginCommand {
    #[command(flatten)]
    Making(tidegate_toolkit::PluginCommand),
    /// Show what a component is: the questions it answers, its imports, the grants it needs, the schema of its settings
    Inspect(plugin_inspect::Inspect),
    #[command(flatten)]
    Shipping(plugin_shipping::Command),
}

/// A configuration that cannot be served, with all that is wrong with it.
#[derive(Debug)]
pub(crate) struct ConfigRefused(pub(crate) tidegate_config::Errors);

impl std::fmt::Display for ConfigRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\ntidegate: " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigRefused {}

/// Wrong usage or configuration.
pub(crate) const EXIT_CONFIG: u8 = 2;

impl Cli {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run { config, addresses } => {
                let Some(loaded) = load(&config) else { return Ok(ExitCode::from(EXIT_CONFIG)) };
                boot::run(&config, loaded, addresses.as_deref())
            }
            Command::Check { config } => check(&config),
            Command::Demo { check } => demo::run(check),
            Command::Reload { admin } => reload::ask(&admin),
            Command::Status { admin, json } => status::ask(&admin, json),
            Command::Shadow { admin, json } => shadow::ask(&admin, json),
            Command::Plugin(PluginCommand::Inspect(inspect)) => inspect.run(),
            Command::Plugin(PluginCommand::Shipping(command)) => command.run(),
            Command::Plugin(PluginCommand::Making(command)) => tidegate_toolkit::run(command),
            Command::Reference { schema } => {
                if schema {
                    say(&format!("{:#}\n", tidegate_config::json_schema()))?;
                } else {
                    say(&tidegate_config::reference())?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Writes to standard output. A reader that has enough (`| head`) is no failure.
pub(crate) fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Loads and prints what is wrong.
fn load(path: &Path) -> Option<Config> {
    match tidegate_config::load(path) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("tidegate: warning: {warning}");
            }
            Some(config)
        }
        Err(errors) => {
            print_errors(&errors);
            None
        }
    }
}

pub(crate) fn print_errors(errors: &tidegate_config::Errors) {
    for error in errors.iter() {
        eprintln!("tidegate: {error}");
    }
}

fn check(path: &Path) -> anyhow::Result<ExitCode> {
    let Some(config) = load(path) else { return Ok(ExitCode::from(EXIT_CONFIG)) };
    match Compiler::new(&config).and_then(|compiler| compiler.compile(&config, None)) {
        Ok(compiled) => {
            let snapshot = &compiled.snapshot;
            for note in &compiled.plugins.notes {
                eprintln!("tidegate: warning: {note}");
            }
            let steers = match compiled.steers.len() {
                0 => String::new(),
                some => format!("{some} steers, "),
            };
            say(&format!(
                "{}: ok: {} listeners, {steers}{} clusters, {} routes, {} plugins\n",
                path.display(),
                snapshot.listeners.len(),
                snapshot.clusters.len(),
                snapshot.routes.len(),
                compiled.plugins.deployments.len(),
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(errors) => {
            print_errors(&errors);
            Ok(ExitCode::from(EXIT_CONFIG))
        }
    }
}
