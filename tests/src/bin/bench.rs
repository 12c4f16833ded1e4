//! Measures proxies side by side and prints a table: `tests/bench` builds it, fetches the others and runs it.

use std::time::Duration;

use tidegate_tests::bench::proxies::{Behind, Kind};
use tidegate_tests::bench::report::{Row, table};
use tidegate_tests::bench::run::{Times, measure};
use tidegate_tests::bench::scaling::Around;
use tidegate_tests::bench::{cpu, instructions, origin, scaling, scenarios, steering};
use tidegate_tests::certs::Authority;

const USAGE: &str = "usage: bench [--rounds N] [--seconds N] [--only PROXY,...] [SCENARIO...]
       bench --instructions [PATH...]
       bench --steering [--rounds N] [--connections N]
       bench --scaling [--rounds N] [--seconds N] [ROW...]
A scenario is chosen by a part of its name; all run where none is. Proxies: tidegate, nginx, haproxy, envoy, caddy.";

fn main() {
    let mut rounds = 3;
    let mut seconds = 3.0;
    let mut only: Option<Vec<String>> = None;
    let mut parts: Vec<String> = Vec::new();
    let mut counting = false;
    let mut scaling = false;
    let mut steering = false;
    let mut connections = 10_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| wrong(&argument));
        match argument.as_str() {
            "--rounds" => rounds = value().parse().unwrap_or_else(|_| wrong(&argument)),
            "--seconds" => seconds = value().parse().unwrap_or_else(|_| wrong(&argument)),
            "--only" => only = Some(value().split(',').map(str::to_owned).collect()),
            "--instructions" => counting = true,
            "--scaling" => scaling = true,
            "--steering" => steering = true,
            "--connections" => connections = value().parse().unwrap_or_else(|_| wrong(&argument)),
            _ if argument.starts_with("--") => wrong(&argument),
            _ => parts.push(argument),
        }
    }
    if std::env::var_os("TIDEGATE_BIN").is_none()
        && let Ok(own) = std::env::current_exe()
    {
        // Built with it, and like it.
        tidegate_tests::gateway::set_program(own.with_file_name("tidegate"));
    }
    cpu::raise_files();
    if steering {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        match runtime.block_on(steering::table(rounds, connections)) {
            Ok(table) => println!("{table}"),
            Err(error) => {
                eprintln!("bench: {error}");
                std::process::exit(1);
            }
        }
        return;
    }
    if let Err(error) = cpu::pin(&[1]) {
        eprintln!("bench: two cores are needed, one for the proxy and one for the load: {error}");
        std::process::exit(1);
    }
    let chosen = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()));
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| only.as_ref().is_none_or(|only| only.iter().any(|name| name == kind.name())))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let failed = tokio::task::LocalSet::new().block_on(&runtime, async {
        let times = Times { warm: Duration::from_secs(1), counted: Duration::from_secs_f64(seconds) };
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new();
        let pair = authority.issue(&["bench.test"]);
        pair.write(folder.path(), "edge");
        std::fs::write(folder.path().join("edge.both"), format!("{}{}", pair.certificate, pair.key)).expect("written");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("written");
        let alpha = origin::http1("alpha").await.expect("an origin");
        let beta = origin::http1("beta").await.expect("an origin");
        let http2 = origin::http2(&pair).await.expect("an origin");
        let behind = Behind { alpha, beta, http2, folder: folder.path().to_owned() };
        if counting {
            let mut failed = false;
            for path in instructions::PATHS.iter().filter(|path| chosen(path.name)) {
                match instructions::count(path, &behind, &authority).await {
                    Ok(count) => println!("{} = {count}", path.name),
                    Err(error) => {
                        failed = true;
                        eprintln!("{}: {error}", path.name);
                    }
                }
            }
            return failed;
        }
        if scaling {
            let around = Around { behind: &behind, authority: &authority, times };
            let (table, failed) = scaling::run(&around, rounds, chosen).await;
            println!("{table}");
            return failed;
        }
        let mut rows: Vec<Row> = scenarios::all()
            .into_iter()
            .filter(|scenario| chosen(scenario.name))
            .map(|scenario| Row { scenario, samples: kinds.iter().map(|kind| (*kind, Vec::new())).collect() })
            .collect();
        let mut failed = false;
        for round in 1..=rounds {
            for row in &mut rows {
                for (kind, samples) in &mut row.samples {
                    if !row.scenario.fits(*kind) {
                        continue;
                    }
                    match measure(&row.scenario, *kind, &behind, &authority, times).await {
                        Ok(Some(sample)) => {
                            eprintln!("round {round}: {}, {}: {:.1}", row.scenario.name, kind.name(), sample.cost);
                            samples.push(sample);
                        }
                        Ok(None) => {}
                        Err(error) => {
                            failed = true;
                            eprintln!("round {round}: {error}");
                        }
                    }
                }
            }
        }
        println!("{}", table(&rows));
        failed
    });
    std::process::exit(failed.into());
}

fn wrong(argument: &str) -> ! {
    eprintln!("bench: {argument} is not right\n{USAGE}");
    std::process::exit(2);
}
