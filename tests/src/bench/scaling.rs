//! What tidegate's costs grow with: the same request with few and with many routes, endpoints and plugins, on one worker and
//! on two; what it takes to start with them, and the memory of each.

use std::fmt::Write;

use super::proxies::Behind;
use super::report::median;
use super::run::Times;
use crate::certs::Authority;

mod measure;
mod setup;

use setup::{By, Setup};

/// What all measurements need.
pub struct Around<'a> {
    pub behind: &'a Behind,
    pub authority: &'a Authority,
    pub times: Times,
}

#[derive(Clone, Copy)]
enum What {
    /// Processor time of a request.
    Cost,
    /// Time of a start, and whether compiled plugins are on disk.
    Start { cached: bool },
    /// Memory of each, as the difference between few and many.
    Each,
    /// Memory of an instance of each plugin.
    Instance,
    /// Memory of each idle connection.
    Idle,
}

struct Row {
    name: &'static str,
    what: What,
    few: usize,
    many: usize,
    setup: fn(&Behind, usize) -> Setup,
    samples: [Vec<f64>; 2],
}

fn rows() -> Vec<Row> {
    let by_host = |behind: &Behind, count: usize| setup::routes(behind, By::Host, count);
    let least_request = |behind: &Behind, count: usize| setup::endpoints(behind, "least_request", count);
    let row = |name, what, few, many, setup| Row { name, what, few, many, setup, samples: Default::default() };
    vec![
        row("routes, by host", What::Cost, 10, 10_000, by_host),
        row("routes, by path prefix", What::Cost, 10, 10_000, |behind, count| setup::routes(behind, By::Prefix, count)),
        row("routes, by a field", What::Cost, 10, 10_000, |behind, count| setup::routes(behind, By::Field, count)),
        row("endpoints, least_request", What::Cost, 10, 10_000, least_request),
        row("endpoints, round_robin", What::Cost, 10, 10_000, |behind, count| {
            setup::endpoints(behind, "round_robin", count)
        }),
        row("plugins", What::Cost, 1, 1000, setup::plugins),
        row("workers", What::Cost, 1, 2, setup::workers),
        row("workers, all on one core", What::Cost, 1, 2, setup::crowded),
        row("start, routes", What::Start { cached: false }, 10, 10_000, by_host),
        row("start, endpoints", What::Start { cached: false }, 10, 10_000, least_request),
        row("start, plugins", What::Start { cached: false }, 1, 1000, setup::plugins),
        row("start, plugins that are cached", What::Start { cached: true }, 1, 1000, setup::plugins),
        row("memory of a route", What::Each, 10, 10_000, by_host),
        row("memory of an endpoint", What::Each, 10, 10_000, least_request),
        row("memory of a plugin", What::Each, 1, 1000, setup::plugins),
        row("memory of a plugin's instance", What::Instance, 100, 1000, setup::plugins),
        row("memory of an idle TLS connection", What::Idle, 1000, 10_000, |behind, _| setup::workers(behind, 1)),
    ]
}

impl Row {
    async fn measure(&self, around: &Around<'_>, count: usize) -> Result<f64, String> {
        let setup = (self.setup)(around.behind, count);
        match self.what {
            What::Cost => measure::cost(around, &setup).await,
            What::Start { cached } => measure::start_up(around, &setup, cached).await,
            What::Each => measure::resident(around, &setup).await,
            What::Instance => measure::instance(around, &setup).await,
            What::Idle => measure::idle(around, &setup, count).await,
        }
    }

    fn line(&self) -> String {
        let [few, many] = self.samples.clone().map(median);
        let (name, counts) = (self.name, format!("{} / {}", self.few, self.many));
        let both = |unit: &str| format!("| {name} | {counts} | {unit} | {few:.1} | {many:.1} | {:.2} |", many / few);
        match self.what {
            What::Cost => both("us CPU"),
            What::Start { .. } => both("ms"),
            What::Each => {
                let each = (many - few) / (self.many - self.few) as f64;
                format!("| {name} | {counts} | KiB | - | {each:.1} | - |")
            }
            What::Instance | What::Idle => both("KiB"),
        }
    }
}

/// The table, and whether something failed. Rows of a round come one after the other, few before many.
pub async fn run(around: &Around<'_>, rounds: usize, chosen: impl Fn(&str) -> bool) -> (String, bool) {
    let mut rows: Vec<Row> = rows().into_iter().filter(|row| chosen(row.name)).collect();
    let mut failed = false;
    for round in 1..=rounds {
        for row in &mut rows {
            for (place, count) in [row.few, row.many].into_iter().enumerate() {
                match row.measure(around, count).await {
                    Ok(value) => {
                        eprintln!("round {round}: {}, {count}: {value:.1}", row.name);
                        row.samples[place].push(value);
                    }
                    Err(error) => {
                        failed = true;
                        eprintln!("round {round}: {}, {count}: {error}", row.name);
                    }
                }
            }
        }
    }
    let mut table = String::from("| | of | unit | few | many | many to few |\n|---|---|---|--:|--:|--:|\n");
    for row in &rows {
        let _ = writeln!(table, "{}", row.line());
    }
    for row in rows.iter().filter(|row| row.name == "workers") {
        let [one, two] = row.samples.clone().map(median);
        let _ = writeln!(
            table,
            "\nBy what a request costs, two workers on two cores do {:.2} times the work of one: 2 x {one:.1} / {two:.1}. The load \
             shares both cores with them, so this is too little; with both workers on one core the load is on the other.",
            2.0 * one / two
        );
    }
    (table, failed)
}
