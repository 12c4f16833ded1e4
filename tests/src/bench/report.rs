//! The table.

use std::fmt::Write;

use super::proxies::Kind;
use super::run::Sample;
use super::scenarios::{Measure, Scenario};

/// All samples of one scenario.
pub struct Row {
    pub scenario: Scenario,
    pub samples: Vec<(Kind, Vec<Sample>)>,
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl Row {
    fn of(&self, kind: Kind, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        let (_, samples) = self.samples.iter().find(|(known, samples)| *known == kind && !samples.is_empty())?;
        Some(median(samples.iter().map(value).collect()))
    }
}

/// In Markdown: what a request costs, then what it was like.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::from("| | unit |");
    for kind in Kind::ALL {
        let _ = write!(out, " {} |", kind.name());
    }
    out.push_str(" to the best peer |\n|---|---|");
    out.push_str(&"--:|".repeat(Kind::ALL.len() + 1));
    out.push('\n');
    for row in rows {
        let unit = match row.scenario.measure {
            Measure::Request => "us CPU",
            Measure::Bytes => "ms CPU/GiB",
            Measure::Idle => "KiB",
        };
        let _ = write!(out, "| {} | {unit} |", row.scenario.name);
        for kind in Kind::ALL {
            let _ = match row.of(kind, |sample| sample.cost) {
                Some(cost) => write!(out, " {cost:.1} |"),
                None => write!(out, " - |"),
            };
        }
        let own = row.of(Kind::Tidegate, |sample| sample.cost);
        let peers = Kind::ALL[1..].iter().filter_map(|kind| Some((*kind, row.of(*kind, |sample| sample.cost)?)));
        let best = peers.min_by(|one, other| one.1.total_cmp(&other.1));
        let _ = match (own, best) {
            (Some(own), Some((kind, best))) => writeln!(out, " {:.2} x {} |", own / best, kind.name()),
            _ => writeln!(out, " |"),
        };
    }
    out.push_str("\n| | proxy | requests/s | p50 us | p99 us | p99.9 us | peak MiB |\n|---|---|--:|--:|--:|--:|--:|\n");
    for row in rows.iter().filter(|row| row.scenario.measure != Measure::Idle) {
        for kind in Kind::ALL {
            let Some(rate) = row.of(kind, |sample| sample.per_second) else { continue };
            let at = |index: usize| row.of(kind, |sample| sample.latencies[index]).unwrap_or(f64::NAN);
            let peak = row.of(kind, |sample| sample.peak).unwrap_or(f64::NAN);
            let _ = writeln!(
                out,
                "| {} | {} | {rate:.0} | {:.0} | {:.0} | {:.0} | {peak:.0} |",
                row.scenario.name,
                kind.name(),
                at(0),
                at(1),
                at(2)
            );
        }
    }
    out
}
