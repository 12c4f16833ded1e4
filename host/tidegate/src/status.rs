//! `tidegate status`: what a running gateway serves, for people.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::ensure;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::shadow::{list, text};
use crate::{admin_client, cli};

/// Asks the gateway behind `admin` for its status and prints it.
pub(crate) fn ask(admin: &str, json: bool) -> anyhow::Result<ExitCode> {
    let (status, report) = admin_client::ask(admin, Method::GET, "/status")?;
    ensure!(status == StatusCode::OK, "the admin listener answered {status}: {report}");
    cli::say(&if json { format!("{report:#}\n") } else { words(&report) })?;
    Ok(ExitCode::SUCCESS)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

// Writing to a String cannot fail.
fn words(report: &Value) -> String {
    let mut out = String::new();
    let (version, generation) = (text(&report["version"]), number(&report["generation"]));
    let draining = if report["draining"] == true { ", draining" } else { "" };
    let (workers, up) = (number(&report["workers"]), number(&report["uptime_seconds"]));
    let _ = writeln!(out, "tidegate {version}: configuration {generation}, {workers} workers, up {up}s{draining}");
    for listener in list(&report["listeners"]) {
        let _ = writeln!(out, "listener {}  {}", text(&listener["name"]), text(&listener["address"]));
    }
    for cluster in list(&report["clusters"]) {
        let panic = if cluster["panic"] == true { "  too few are healthy: all are used" } else { "" };
        let _ = writeln!(out, "cluster {}{panic}", text(&cluster["name"]));
        for endpoint in list(&cluster["endpoints"]) {
            let health = match (endpoint["healthy"] == true, endpoint["reason"].as_str()) {
                (true, _) => "healthy".to_owned(),
                (false, None) => "unhealthy".to_owned(),
                (false, Some(_)) => format!("unhealthy ({})", text(&endpoint["reason"])),
            };
            let (weight, requests) = (number(&endpoint["weight"]), number(&endpoint["requests"]));
            let failures = number(&endpoint["failures"]);
            let address = text(&endpoint["address"]);
            let _ = writeln!(out, "  {address}  {health}  weight {weight}, {requests} requests, {failures} failed");
        }
    }
    list(&report["steers"]).for_each(|steer| steer_words(&mut out, steer));
    for plugin in list(&report["plugins"]) {
        let _ = writeln!(out, "plugin {}", text(&plugin["name"]));
    }
    for refused in list(&report["refused_versions"]) {
        let (name, stage, why) = (text(&refused["name"]), text(&refused["stage"]), text(&refused["why"]));
        let _ = writeln!(out, "plugin {name}  a version was not taken ({stage}): {why}");
    }
    out
}

fn steer_words(out: &mut String, steer: &Value) {
    let words = |key: &str, between: &str| list(&steer[key]).map(text).collect::<Vec<_>>().join(between);
    let (name, mode, table) = (text(&steer["name"]), text(&steer["mode"]), text(&steer["table"]));
    let state = if steer["installed"] == true { "table" } else { "NOT installed: table" };
    let _ = writeln!(
        out,
        "steer {name}  {mode}  {} {} {} -> cluster {}  ({state} {table})",
        words("protocols", "+"),
        text(&steer["address"]),
        words("ports", ","),
        text(&steer["cluster"]),
    );
    if steer["failure"].is_string() {
        let _ = writeln!(out, "  cannot be changed: {}", text(&steer["failure"]));
    }
    if steer["forwarding"] == false {
        let _ = writeln!(out, "  this host does not forward packets");
    }
    for endpoint in list(&steer["endpoints"]) {
        let mac = endpoint["mac"].as_str().map(|_| format!("  {}", text(&endpoint["mac"]))).unwrap_or_default();
        let back = endpoint["packets_to_client"].as_u64().map(|count| format!(", {count} back")).unwrap_or_default();
        let (address, role) = (text(&endpoint["address"]), text(&endpoint["role"]));
        let (flows, packets) = (number(&endpoint["flows"]), number(&endpoint["packets_to_endpoint"]));
        let _ = writeln!(out, "  {address}{mac}  {role}  {flows} flows, {packets} packets to it{back}");
    }
    if let Some(unserved @ 1..) = steer["unserved_packets"].as_u64() {
        let _ = writeln!(out, "  {unserved} packets dropped: no endpoint could take them");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::words;

    #[test]
    fn a_status_reads_as_lines() {
        let steer = json!({
            "name": "web", "mode": "dsr", "table": "netdev tidegate_web", "installed": true, "failure": null,
            "address": "192.0.2.10", "ports": ["80", "8000-8010"], "protocols": ["tcp", "udp"], "cluster": "web",
            "unserved_packets": 3,
            "endpoints": [{
                "address": "10.0.0.1:80", "role": "takes", "mac": "02:00:5e:00:53:01", "flows": 4,
                "packets_to_endpoint": 20, "packets_to_client": null,
            }],
        });
        let endpoint = json!({ "address": "10.0.0.1:80", "healthy": false, "reason": "checks", "weight": 1 });
        let report = json!({
            "version": "0.1.0", "generation": 2, "workers": 2, "uptime_seconds": 5, "draining": true,
            "listeners": [{ "name": "edge", "address": "127.0.0.1:8080" }],
            "clusters": [{ "name": "web", "panic": true, "endpoints": [endpoint] }],
            "steers": [steer], "plugins": [{ "name": "a\u{1b}b" }],
        });
        let wanted = "tidegate 0.1.0: configuration 2, 2 workers, up 5s, draining\nlistener edge  127.0.0.1:8080\n\
                      cluster web  too few are healthy: all are used\n  10.0.0.1:80  unhealthy (checks)  weight 1, 0 requests, 0 failed\n\
                      steer web  dsr  tcp+udp 192.0.2.10 80,8000-8010 -> cluster web  (table netdev tidegate_web)\n  \
                      10.0.0.1:80  02:00:5e:00:53:01  takes  4 flows, 20 packets to it\n  \
                      3 packets dropped: no endpoint could take them\nplugin a\u{fffd}b\n";
        assert_eq!(words(&report), wanted);
        let broken = json!({ "steers": [{ "name": "web", "installed": false, "failure": "no", "forwarding": false }] });
        let said = words(&broken);
        assert!(
            said.contains("NOT installed")
                && said.contains("cannot be changed: no")
                && said.contains("does not forward")
        );
    }
}
