//! `tidegate shadow`: what the shadows of a running gateway came to, for people.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::ensure;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::{admin_client, cli};

/// Asks the gateway behind `admin` for its report and prints it.
pub(crate) fn ask(admin: &str, json: bool) -> anyhow::Result<ExitCode> {
    let (status, report) = admin_client::ask(admin, Method::GET, "/shadow")?;
    ensure!(status == StatusCode::OK, "the admin listener answered {status}: {report}");
    cli::say(&if json { format!("{report:#}\n") } else { words(&report) })?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What a guest or a client named, without what would move a terminal's cursor.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

// Writing to a String cannot fail.
fn words(report: &Value) -> String {
    let mut out = String::new();
    for shadow in list(&report["shadows"]) {
        let _ = writeln!(out, "{}", text(&shadow["name"]));
        for (question, counts) in shadow["questions"].as_object().into_iter().flatten() {
            let count = |name: &str| counts[name].as_u64().unwrap_or_default();
            let (compared, differ) = (count("compared"), count("differences"));
            let share = if compared == 0 { 0.0 } else { differ as f64 * 100.0 / compared as f64 };
            let _ = writeln!(out, "  {question:<8} {differ} of {compared} answers differ ({share:.2}%)");
        }
        let skipped = shadow["skipped"].as_object().into_iter().flatten();
        for (reason, count) in skipped.filter(|(_, count)| count.as_u64() != Some(0)) {
            let _ = writeln!(out, "  not asked {count} times: {reason}");
        }
        for group in list(&shadow["groups"]) {
            let (stood, other) = (text(&group["stood"]), text(&group["shadow"]));
            let count = group["count"].as_u64().unwrap_or_default();
            let _ = writeln!(out, "\n  {count:>8}  {}: {stood} -> {other}", text(&group["question"]));
            for example in list(&group["examples"]) {
                example_words(&mut out, example, [&stood, &other]);
            }
        }
        if let Some(more @ 1..) = shadow["ungrouped"].as_u64() {
            let _ = writeln!(out, "\n  {more:>8}  of other kinds");
        }
        out.push('\n');
    }
    if out.is_empty() {
        out.push_str("no plugin has a shadow; see `shadow` of [[plugin]]\n");
    }
    out
}

fn example_words(out: &mut String, example: &Value, kinds: [&str; 2]) {
    let _ =
        write!(out, "            {} {}{}", text(&example["method"]), text(&example["host"]), text(&example["path"]));
    for field in list(&example["fields"]) {
        let value = field["value"].as_str().map_or_else(|| "absent".to_owned(), |_| text(&field["value"]));
        let _ = write!(out, "  {}: {value}", text(&field["name"]));
    }
    let exact = [text(&example["stood"]), text(&example["shadow"])];
    if exact != kinds {
        let _ = write!(out, "  ({} -> {})", exact[0], exact[1]);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::words;

    #[test]
    fn a_report_reads_as_counts_groups_and_examples() {
        let example = json!({
            "method": "GET", "host": "a.example", "path": "/v1\u{1b}[2J", "stood": "forward a", "shadow": "forward b, edits x-plan",
            "fields": [{ "name": "x-tenant", "value": "acme" }, { "name": "x-env", "value": null }],
        });
        let group = json!({ "question": "route", "stood": "forward a", "shadow": "forward b", "count": 25, "examples": [example] });
        let report = json!({ "shadows": [{
            "name": "tenants@shadow", "groups": [group], "ungrouped": 2, "skipped": { "rate": 3, "quarantined": 0 },
            "questions": { "route": { "compared": 108, "differences": 27 } },
        }] });
        assert_eq!(
            words(&report),
            "tenants@shadow\n  route    27 of 108 answers differ (25.00%)\n  not asked 3 times: rate\n\n        \
             25  route: forward a -> forward b\n            GET a.example/v1\u{fffd}[2J  x-tenant: acme  x-env: absent  \
             (forward a -> forward b, edits x-plan)\n\n         2  of other kinds\n\n"
        );
        assert!(words(&json!({ "shadows": [] })).starts_with("no plugin has a shadow"));
    }
}
