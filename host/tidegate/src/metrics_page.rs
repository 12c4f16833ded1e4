//! The metrics page: workers and endpoints by `tidegate_proxy`, plugins and the process here.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use tidegate_edge::Stats;
use tidegate_policy::{Bound, Version};
use tidegate_proxy::observe::{names, render as render_workers};
use tidegate_steer::nft::Count;
use tidegate_wasm::{CustomMetric, Plugin, QuestionStats, Reason, Rollout, Shadow};

use crate::boot::Control;
use crate::compile::{Compiled, Loaded, Tenant};
use crate::steering::{EndpointReport, Report};

// Writing to a String cannot fail.
pub(crate) fn render(control: &Control, out: &mut String) {
    let (workers, compiled) = control.metrics();
    render_workers(&workers, &compiled.snapshot, out);
    head(out, names::GENERATION, "gauge", "the configuration that is served");
    let _ = writeln!(out, "{} {}", names::GENERATION, compiled.snapshot.generation);
    head(out, names::RELOADS, "counter", "reloads, by outcome");
    for (outcome, count) in [("ok", &control.reloads_ok), ("refused", &control.reloads_refused)] {
        let _ = writeln!(out, "{}{{outcome=\"{outcome}\"}} {}", names::RELOADS, count.load(Ordering::Relaxed));
    }
    head(out, names::CERTIFICATE_RENEWALS, "counter", "certificate files that changed and were read again, by outcome");
    for (outcome, count) in [("ok", &control.renewals_ok), ("refused", &control.renewals_refused)] {
        let _ =
            writeln!(out, "{}{{outcome=\"{outcome}\"}} {}", names::CERTIFICATE_RENEWALS, count.load(Ordering::Relaxed));
    }
    head(out, names::CERTIFICATE_NOT_AFTER, "gauge", "when a listener's certificate ends, in seconds since 1970");
    for listener in &compiled.snapshot.listeners {
        for expiry in listener.tls.iter().flat_map(|tls| tls.expiries()) {
            let labels = format!("listener=\"{}\",name=\"{}\"", listener.name, label(&expiry.name));
            let _ = writeln!(out, "{}{{{labels}}} {}", names::CERTIFICATE_NOT_AFTER, expiry.not_after);
        }
    }
    head(out, names::CONFLICTING_CLAIMS, "counter", "requests whose forwarding fields named different clients");
    let _ = writeln!(out, "{} {}", names::CONFLICTING_CLAIMS, tidegate_policy::native::conflicting_claims());
    let buffers = &compiled.snapshot.buffers;
    head(out, names::BUFFERED, "gauge", "bytes of buffered bodies held now, by place");
    for (place, allowance) in [("memory", &buffers.memory), ("disk", &buffers.disk)] {
        let _ = writeln!(out, "{}{{place=\"{place}\"}} {}", names::BUFFERED, allowance.used());
    }
    head(out, names::SPOOLED, "counter", "bytes of bodies written to disk");
    let _ = writeln!(out, "{} {}", names::SPOOLED, buffers.spooled.load(Ordering::Relaxed));
    if let Some(dropped) = &control.log_dropped {
        head(out, names::LOG_DROPPED, "counter", "access log lines dropped");
        let _ = writeln!(out, "{} {}", names::LOG_DROPPED, dropped.load(Ordering::Relaxed));
    }
    let plugins: Vec<&Plugin> = compiled.plugins.list.iter().map(|(_, plugin)| &**plugin).collect();
    if !plugins.is_empty() {
        of_plugins(out, &plugins);
        of_versions(out, control, &compiled.plugins);
    }
    of_steers(out, &control.steering.reports());
    of_rollouts(out, &compiled);
    of_shadows(out, &compiled);
    of_components(out, &compiled);
    if !compiled.tenants.is_empty() {
        of_tenants(out, &compiled.tenants);
    }
}

fn of_steers(out: &mut String, steers: &[Report]) {
    if steers.is_empty() {
        return;
    }
    let mut each = |name: &str, kind: &str, help: &str, of: &dyn Fn(&Report) -> Vec<(String, u64)>| {
        head(out, name, kind, help);
        for steer in steers {
            for (labels, value) in of(steer) {
                let _ = writeln!(out, "{name}{{steer=\"{}\"{labels}}} {value}", steer.steer.name);
            }
        }
    };
    let alone = |value: u64| vec![(String::new(), value)];
    each(names::STEER_INSTALLED, "gauge", "1 while its rules are in the kernel", &|steer| {
        alone(steer.installed.into())
    });
    each(names::STEER_CHANGES, "counter", "changes of rules, by outcome", &|steer| {
        let outcome = |name: &str, count| (format!(",outcome=\"{name}\""), count);
        vec![outcome("applied", steer.applied), outcome("failed", steer.failed)]
    });
    each(names::STEER_UNSERVED, "counter", "packets that no endpoint could take", &|steer| {
        alone(steer.unserved.packets)
    });
    each(names::STEER_MOVED, "counter", "flows taken from endpoints that are down", &|steer| alone(steer.moved));
    each(names::STEER_FLOWS, "counter", "flows that an endpoint was chosen for", &|steer| {
        steer.endpoints.iter().map(|of| (format!(",endpoint=\"{}\"", of.address), of.flows)).collect()
    });
    let both_ways = |steer: &Report, value: fn(Count) -> u64| -> Vec<(String, u64)> {
        let one = |of: &EndpointReport, direction: &str, count: Count| {
            (format!(",endpoint=\"{}\",direction=\"{direction}\"", of.address), value(count))
        };
        let ways = |of: &EndpointReport| {
            let back = of.sent.map(|sent| one(of, "to_client", sent));
            std::iter::once(one(of, "to_endpoint", of.received)).chain(back).collect::<Vec<_>>()
        };
        steer.endpoints.iter().flat_map(ways).collect()
    };
    each(names::STEER_PACKETS, "counter", "packets, by direction", &|steer| both_ways(steer, |count| count.packets));
    each(names::STEER_BYTES, "counter", "their bytes", &|steer| both_ways(steer, |count| count.bytes));
}

fn of_rollouts(out: &mut String, compiled: &Compiled) {
    if compiled.rollouts().next().is_none() {
        return;
    }
    let named = |rollout: &Rollout| compiled.plugins.get(rollout.plugin()).map(|plugin| labels(plugin));
    let rollouts: Vec<_> = compiled.rollouts().filter_map(|rollout| Some((named(rollout)?, rollout))).collect();
    head(out, names::ROLLOUT_SHARE, "gauge", "share of exchanges that the next version has");
    for (plugin, rollout) in &rollouts {
        let _ = writeln!(out, "{}{{{plugin}}} {}", names::ROLLOUT_SHARE, rollout.share());
    }
    head(out, names::ROLLOUT_DECISIONS, "counter", "questions asked, by version");
    for (plugin, rollout) in &rollouts {
        for version in Version::ALL {
            let labels = format!("{plugin},version=\"{}\"", version.name());
            let _ = writeln!(out, "{}{{{labels}}} {}", names::ROLLOUT_DECISIONS, rollout.decisions(version));
        }
    }
    head(out, names::ROLLOUT_ROLLBACKS, "counter", "rollouts that were ended, by reason");
    for (plugin, rollout) in &rollouts {
        for reason in Reason::ALL {
            let labels = format!("{plugin},reason=\"{}\"", reason.name());
            let _ = writeln!(out, "{}{{{labels}}} {}", names::ROLLOUT_ROLLBACKS, rollout.rollbacks(reason));
        }
    }
}

fn of_shadows(out: &mut String, compiled: &Compiled) {
    if compiled.shadows().next().is_none() {
        return;
    }
    let named = |shadow: &Shadow| compiled.plugins.get(shadow.plugin()).map(|plugin| labels(plugin));
    let shadows: Vec<_> = compiled.shadows().filter_map(|shadow| Some((named(shadow)?, shadow))).collect();
    let questions = |out: &mut String, name: &str, of: fn((&'static str, u64, u64)) -> u64| {
        for (plugin, shadow) in &shadows {
            for row in shadow.compared() {
                let labels = format!("{plugin},question=\"{}\"", row.0);
                let _ = writeln!(out, "{name}{{{labels}}} {}", of(row));
            }
        }
    };
    head(out, names::SHADOW_COMPARED, "counter", "answers compared with a shadow's");
    questions(out, names::SHADOW_COMPARED, |(_, compared, _)| compared);
    head(out, names::SHADOW_DIFFERENCES, "counter", "of those, the ones that differed");
    questions(out, names::SHADOW_DIFFERENCES, |(_, _, differ)| differ);
    head(out, names::SHADOW_SKIPPED, "counter", "questions that a shadow was not asked, by reason");
    for (plugin, shadow) in &shadows {
        for (reason, count) in shadow.skipped() {
            let labels = format!("{plugin},reason=\"{reason}\"");
            let _ = writeln!(out, "{}{{{labels}}} {count}", names::SHADOW_SKIPPED);
        }
    }
}

fn of_components(out: &mut String, compiled: &Compiled) {
    if compiled.components().next().is_none() {
        return;
    }
    let mut all = |name: &str, kind: &str, help: &str, of: &dyn Fn(&Stats) -> f64| {
        head(out, name, kind, help);
        for (cluster, stats) in compiled.components() {
            let _ = writeln!(out, "{name}{{cluster=\"{cluster}\"}} {}", of(stats));
        }
    };
    all(names::COMPONENT_REQUESTS, "counter", "requests of components", &|stats| stats.requests() as f64);
    all(names::COMPONENT_INSTANCES, "gauge", "live instances", &|stats| stats.live() as f64);
    all(names::COMPONENT_CPU, "counter", "CPU time of instances", &|stats| stats.cpu().as_secs_f64());
    all(names::COMPONENT_LOG_DROPPED, "counter", "log lines dropped", &|stats| stats.lines_dropped() as f64);
    head(out, names::COMPONENT_FAULTS, "counter", "requests that a component failed, by cause");
    for (cluster, stats) in compiled.components() {
        for (cause, count) in stats.faults() {
            let labels = format!("cluster=\"{cluster}\",cause=\"{cause}\"");
            let _ = writeln!(out, "{}{{{labels}}} {count}", names::COMPONENT_FAULTS);
        }
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value as the text format has it: backslash, quote and line end are escaped.
fn label(text: &str) -> Cow<'_, str> {
    if !text.contains(['\\', '"', '\n']) {
        return text.into();
    }
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

fn of_plugins(out: &mut String, plugins: &[&Plugin]) {
    by_question(out, plugins, names::DECISIONS, "questions asked", QuestionStats::asked);
    by_question(out, plugins, names::DECISIONS_MEMOISED, "answers that the memo knew", QuestionStats::memo_hits);
    head(out, names::DECISION_FAULTS, "counter", "decisions that failed, by cause");
    for (plugin, question, stats) in asked(plugins) {
        for (cause, count) in stats.faults() {
            let labels = format!("{plugin},question=\"{question}\",cause=\"{cause}\"");
            let _ = writeln!(out, "{}{{{labels}}} {count}", names::DECISION_FAULTS);
        }
    }
    let name = names::DECISION_SECONDS;
    head(out, name, "histogram", "time a decision took");
    for (plugin, question, stats) in asked(plugins) {
        times(out, name, &format!("{plugin},question=\"{question}\""), stats.times());
    }
    by_plugin(out, plugins, names::PLUGIN_INSTANCES, "gauge", "live instances", |p| p.stats().live_instances());
    by_plugin(out, plugins, names::PLUGIN_INSTANTIATIONS, "counter", "instances made", |p| p.stats().instantiations());
    by_plugin(out, plugins, names::PLUGIN_QUARANTINED, "gauge", "1 while left alone", |p| p.quarantined().into());
    by_plugin(out, plugins, names::PLUGIN_WITHDRAWN, "gauge", "1 when revoked", |p| p.withdrawn().into());
    by_plugin(out, plugins, names::PLUGIN_LOG_DROPPED, "counter", "log lines dropped", |p| {
        p.stats().log_lines_dropped()
    });
    let keeping: Vec<&Plugin> = plugins.iter().copied().filter(|plugin| plugin.kv().is_some()).collect();
    if !keeping.is_empty() {
        let (bytes, evicted) = (names::PLUGIN_KV_BYTES, names::PLUGIN_KV_EVICTED);
        by_plugin(out, &keeping, bytes, "gauge", "bytes of kv in use", |p| p.kv().unwrap_or_default().0);
        by_plugin(out, &keeping, evicted, "counter", "entries of kv that made room", |p| p.kv().unwrap_or_default().1);
    }
    let calling: Vec<&Plugin> = plugins.iter().copied().filter(|p| p.callouts_in_flight().is_some()).collect();
    if !calling.is_empty() {
        of_callouts(out, &calling);
    }
    let name = names::PLUGIN_CUSTOM;
    head(out, name, "untyped", "what guests count themselves");
    for plugin in plugins {
        for (metric, value) in plugin.stats().custom() {
            let labels = format!("{},name=\"{metric}\"", labels(plugin));
            let _ = match value {
                CustomMetric::Counter(count) => writeln!(out, "{name}{{{labels}}} {count}"),
                CustomMetric::Gauge(value) => writeln!(out, "{name}{{{labels}}} {value}"),
                CustomMetric::Histogram(count, sum) => {
                    writeln!(out, "{name}{{{labels},of=\"count\"}} {count}\n{name}{{{labels},of=\"sum\"}} {sum}")
                }
            };
        }
    }
}

/// A histogram's lines, of what `QuestionStats::times` gives.
fn times(out: &mut String, name: &str, labels: &str, (buckets, count, sum): (Vec<(f64, u64)>, u64, f64)) {
    for (bound, count) in buckets {
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
}

fn of_callouts(out: &mut String, plugins: &[&Plugin]) {
    head(out, names::PLUGIN_CALLOUTS, "counter", "calls to clusters, by outcome");
    for plugin in plugins {
        for (outcome, count) in plugin.stats().callouts() {
            let _ = writeln!(out, "{}{{{},outcome=\"{outcome}\"}} {count}", names::PLUGIN_CALLOUTS, labels(plugin));
        }
    }
    let name = names::PLUGIN_CALLOUT_SECONDS;
    head(out, name, "histogram", "time a call took");
    for plugin in plugins {
        times(out, name, &labels(plugin), plugin.stats().callout_times());
    }
    by_plugin(out, plugins, names::PLUGIN_CALLOUTS_ACTIVE, "gauge", "calls under way", |p| {
        p.callouts_in_flight().unwrap_or_default()
    });
}

fn of_versions(out: &mut String, control: &Control, plugins: &Loaded) {
    let name = names::PLUGIN_VERSION;
    head(out, name, "gauge", "the version that serves");
    for (plugin, loaded) in &plugins.list {
        let labels = format!("{},component=\"sha256:{}\"", labels(loaded), loaded.digest());
        let shipped = plugins.served.get(plugin).map(|served| {
            format!(",manifest=\"{}\",reference=\"{}\"", served.version.manifest, label(&served.reference))
        });
        let _ = writeln!(out, "{name}{{{labels}{}}} 1", shipped.unwrap_or_default());
    }
    let counts = control.shipping().counts();
    if counts.is_empty() {
        return;
    }
    head(out, names::PLUGIN_FETCHES, "counter", "looks at registries, by outcome");
    for (plugin, counts) in &counts {
        for (outcome, count) in &counts.fetches {
            let labels = format!("{},outcome=\"{outcome}\"", named(plugin, counts.tenant.as_deref()));
            let _ = writeln!(out, "{}{{{labels}}} {count}", names::PLUGIN_FETCHES);
        }
    }
    head(out, names::PLUGIN_REFUSALS, "counter", "versions that were not taken, by stage");
    for (plugin, counts) in &counts {
        for (stage, count) in &counts.refusals {
            let labels = format!("{},stage=\"{stage}\"", named(plugin, counts.tenant.as_deref()));
            let _ = writeln!(out, "{}{{{labels}}} {count}", names::PLUGIN_REFUSALS);
        }
    }
}

/// A plugin's labels; its tenant's, if it has one.
fn labels(plugin: &Plugin) -> String {
    named(plugin.name(), plugin.tenant().map(|tenant| &**tenant))
}

fn named(plugin: &str, tenant: Option<&str>) -> String {
    let name = label(plugin);
    match tenant {
        Some(tenant) => format!("plugin=\"{name}\",tenant=\"{}\"", label(tenant)),
        None => format!("plugin=\"{name}\""),
    }
}

fn of_tenants(out: &mut String, tenants: &[Tenant]) {
    let mut all = |name: &str, kind: &str, help: &str, of: &dyn Fn(&Tenant) -> Option<f64>| {
        head(out, name, kind, help);
        for (tenant, value) in tenants.iter().filter_map(|tenant| Some((tenant, of(tenant)?))) {
            let _ = writeln!(out, "{name}{{tenant=\"{}\"}} {value}", label(&tenant.proxy.name));
        }
    };
    let bounded = |tenant: &Tenant| tenant.proxy.requests.bounds(Bound::Requests);
    all(names::TENANT_CPU, "counter", "CPU time of its guests", &|tenant| Some(tenant.wasm.cpu().as_secs_f64()));
    all(names::TENANT_MEMORY, "gauge", "bytes of its live instances", &|tenant| Some(tenant.wasm.memory() as f64));
    all(names::TENANT_INSTANCES, "gauge", "its live instances", &|tenant| Some(tenant.wasm.live_instances() as f64));
    all(names::TENANT_REQUESTS, "gauge", "its requests in flight", &|tenant| {
        bounded(tenant).then(|| tenant.proxy.requests.active(Bound::Requests).into())
    });
    all(names::TENANT_REFUSED, "counter", "requests beyond what it may have in flight", &|tenant| {
        bounded(tenant).then(|| tenant.proxy.requests.refused(Bound::Requests) as f64)
    });
}

/// Every question that a plugin answers, with its counts.
fn asked<'a>(plugins: &'a [&'a Plugin]) -> impl Iterator<Item = (String, &'static str, &'a QuestionStats)> {
    plugins.iter().flat_map(|plugin| plugin.answered().map(|(name, stats)| (labels(plugin), name, stats)))
}

fn by_question(out: &mut String, plugins: &[&Plugin], name: &str, help: &str, of: impl Fn(&QuestionStats) -> u64) {
    head(out, name, "counter", help);
    for (plugin, question, stats) in asked(plugins) {
        let _ = writeln!(out, "{name}{{{plugin},question=\"{question}\"}} {}", of(stats));
    }
}

fn by_plugin(out: &mut String, plugins: &[&Plugin], name: &str, kind: &str, help: &str, of: impl Fn(&Plugin) -> u64) {
    head(out, name, kind, help);
    for plugin in plugins {
        let _ = writeln!(out, "{name}{{{}}} {}", labels(plugin), of(plugin));
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn labels_cannot_end_early() {
        assert_eq!(label("tenant-canary"), "tenant-canary");
        assert_eq!(label("a\"} 1\nb \\"), "a\\\"} 1\\nb \\\\");
    }
}
