//! `soak [--time 10m] [--seed 1] [--clients 12] [PROGRAM]`: loads the program, or the one of `TIDEGATE_BIN`, for a while, and
//! ends with 1 if anything happened that cannot be explained.

use std::process::ExitCode;
use std::time::Duration;

use tidegate_tests::soak::{Options, run};

const USAGE: &str = "usage: soak [--time 30s|10m|2h] [--seed NUMBER] [--clients NUMBER] [PROGRAM]";

fn options() -> Option<Options> {
    let mut options = Options { time: Duration::from_secs(60), seed: 1, clients: 12 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--time" => options.time = time(&arguments.next()?)?,
            "--seed" => options.seed = arguments.next()?.parse().ok()?,
            "--clients" => options.clients = arguments.next()?.parse().ok()?,
            path if !path.starts_with('-') => tidegate_tests::gateway::set_program(path.into()),
            _ => return None,
        }
    }
    Some(options)
}

fn time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()? * seconds))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let report = run(&options).await;
    println!("{}", report.text);
    if report.unexplained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
