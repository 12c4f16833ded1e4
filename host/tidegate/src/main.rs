//! The program: parse, run, print the chain of causes, exit.
//!
//! Exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration.

use std::process::ExitCode;

use clap::Parser;

mod admin;
mod admin_client;
mod allocator;
mod boot;
mod cli;
mod compile;
mod demo;
mod files;
mod metrics_page;
mod plugin_inspect;
mod plugin_shipping;
mod plugins;
mod refresh;
mod reload;
mod shadow;
mod shipping;
mod status;
mod steering;
mod telemetry;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            if error.is::<cli::ConfigRefused>() { ExitCode::from(cli::EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}
