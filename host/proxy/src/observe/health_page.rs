//! The part of the metrics page that tells of health and circuit breakers.

use std::fmt::Write;

use tidegate_policy::{Bound, CheckOutcome, Endpoint};

use super::names;
use crate::snapshot::{Cluster, Snapshot};

/// What is checked, ejected or bounded shows; clusters without any of it stay off the page.
pub(super) fn render(snapshot: &Snapshot, out: &mut String) {
    let judged = |cluster: &&Cluster| cluster.check.is_some() || cluster.set.health.rules.ejection.is_some();
    let clusters = || snapshot.clusters.iter().map(|cluster| &**cluster);
    head(out, names::ENDPOINT_UNHEALTHY, "gauge", "1 while it takes no requests for this reason");
    for (cluster, endpoint) in clusters().filter(judged).flat_map(endpoints) {
        let ailment = endpoint.state.health.ailment().map(|ailment| ailment.name());
        for reason in ["awaited", "checks", "ejected"] {
            let labels = format!("{},reason=\"{reason}\"", labels(cluster, endpoint));
            sample(out, names::ENDPOINT_UNHEALTHY, &labels, u64::from(ailment == Some(reason)));
        }
    }
    head(out, names::ENDPOINT_EJECTIONS, "counter", "ejections");
    let ejecting = |cluster: &&Cluster| cluster.set.health.rules.ejection.is_some();
    for (cluster, endpoint) in clusters().filter(ejecting).flat_map(endpoints) {
        sample(out, names::ENDPOINT_EJECTIONS, &labels(cluster, endpoint), endpoint.state.health.ejections());
    }
    head(out, names::ENDPOINT_CHECKS, "counter", "active checks, by outcome");
    for (cluster, endpoint) in clusters().filter(|cluster| cluster.check.is_some()).flat_map(endpoints) {
        for outcome in CheckOutcome::ALL {
            let labels = format!("{},outcome=\"{}\"", labels(cluster, endpoint), outcome.name());
            sample(out, names::ENDPOINT_CHECKS, &labels, endpoint.state.health.checks(outcome));
        }
    }
    head(out, names::CLUSTER_PANIC, "gauge", "1 while so few endpoints are healthy that all are used");
    for cluster in clusters().filter(judged) {
        sample(out, names::CLUSTER_PANIC, &of_cluster(cluster), u64::from(cluster.set.panicking()));
    }
    head(out, names::CLUSTER_PANIC_ATTEMPTS, "counter", "attempts made in panic");
    for cluster in clusters().filter(judged) {
        sample(out, names::CLUSTER_PANIC_ATTEMPTS, &of_cluster(cluster), cluster.set.health.shared.panicked());
    }
    head(out, names::BREAKER_ACTIVE, "gauge", "what counts against a circuit breaker's bound");
    for (cluster, bound) in clusters().flat_map(bounds) {
        let labels = format!("{},bound=\"{}\"", of_cluster(cluster), bound.name());
        sample(out, names::BREAKER_ACTIVE, &labels, cluster.breaker.active(bound).into());
    }
    head(out, names::BREAKER_REFUSED, "counter", "what a circuit breaker refused");
    for (cluster, bound) in clusters().flat_map(bounds) {
        let labels = format!("{},bound=\"{}\"", of_cluster(cluster), bound.name());
        sample(out, names::BREAKER_REFUSED, &labels, cluster.breaker.refused(bound));
    }
}

fn endpoints(cluster: &Cluster) -> impl Iterator<Item = (&Cluster, &Endpoint)> {
    cluster.set.endpoints.iter().map(move |endpoint| (cluster, endpoint))
}

/// Requests are counted only where they are bounded.
fn bounds(cluster: &Cluster) -> impl Iterator<Item = (&Cluster, Bound)> {
    Bound::ALL.into_iter().filter(|bound| cluster.breaker.bounds(*bound)).map(move |bound| (cluster, bound))
}

fn of_cluster(cluster: &Cluster) -> String {
    format!("cluster=\"{}\"", cluster.name)
}

fn labels(cluster: &Cluster, endpoint: &Endpoint) -> String {
    format!("cluster=\"{}\",endpoint=\"{}\"", cluster.name, endpoint.address)
}

// Writing to a String cannot fail.
fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(out: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}
