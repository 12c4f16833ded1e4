//! What a decision costs: each question natively, by a component, remembered, and with fresh memory. `cargo bench`.
//!
//! Batches are timed and the tenth percentile told, so that a busy machine disturbs little.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderName;
use serde_json::json;
use tidegate_policy::contract::{asked_with, attempt, endpoints};
use tidegate_policy::native::{
    ForwardingMode, LeastRequest, PathPattern, RetryOn, RetryRules, RouteRule, RouteTable, StandardForwarding,
    ValuePattern,
};
use tidegate_policy::{Balancer, Cause, EndpointsView, Families, Forwarding, RequestEdits, Retry, Router};
use tidegate_wasm::{Binary, Grants, Isolation, Limits, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

/// Nanoseconds of one call.
fn time(mut call: impl FnMut()) -> f64 {
    // Warm first: a batch sized by a cold call would be small, and mostly the clock's own time.
    let begun = Instant::now();
    let mut calls = 0;
    while begun.elapsed() < Duration::from_millis(50) {
        call();
        calls += 1;
    }
    let once = (begun.elapsed() / calls).max(Duration::from_nanos(1));
    let batch = (Duration::from_micros(50).as_nanos() / once.as_nanos()).clamp(1, 5000) as u32;
    let mut batches = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(400) {
        let start = Instant::now();
        (0..batch).for_each(|_| call());
        batches.push(start.elapsed().as_nanos() as f64 / f64::from(batch));
    }
    batches.sort_by(f64::total_cmp);
    batches[batches.len() / 10]
}

struct Kinds {
    worker: Arc<Plugin>,
    memoised: Arc<Plugin>,
    fresh: Arc<Plugin>,
}

fn kinds(runtime: &Arc<Runtime>, path: &str, settings: serde_json::Value) -> Kinds {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bytes: Binary = std::fs::read(root.join(path)).expect("a committed component").into();
    let load = |isolation, memoise| {
        let spec = PluginSpec {
            name: "p".into(),
            bytes: bytes.clone(),
            settings: settings.clone(),
            deny: false,
            limits: Limits { time: Duration::from_millis(50), memory: 16 << 20 },
            grants: Grants { headers: None, wasi: false },
            isolation,
            memoise,
            share: Share::default(),
        };
        runtime.load(&spec, None).expect("it loads")
    };
    Kinds {
        worker: load(Isolation::Worker, false),
        memoised: load(Isolation::Worker, true),
        fresh: load(Isolation::Request, false),
    }
}

fn row(name: &str, native: f64, times: [f64; 3], reference: &str) {
    let [worker, memoised, fresh] = times;
    println!("{name:<34} {native:>8.0} {worker:>9.0} {memoised:>9.0} {fresh:>9.0}   {reference}");
}

fn main() {
    // `cargo test --benches` only asks whether it runs.
    let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 100 }).expect("an engine");
    let fields: Vec<(String, String)> = (0..9).map(|i| (format!("x-field-{i}"), format!("value {i}"))).collect();
    let mut fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    fields.extend([("x-tenant", "tenant-7"), ("x-env", "prod"), ("cookie", "sid=abcdef")]);
    let asked = asked_with("GET", "/v1/things/42", &fields);
    println!(
        "{:<34} {:>8} {:>9} {:>9} {:>9}   before we began (numbers.md)",
        "nanoseconds", "native", "worker", "memo", "fresh"
    );

    let clock = time(|| {
        std::hint::black_box(Instant::now());
    });
    println!("{:<34} {clock:>8.0}   of which every question takes two", "a look at the clock");

    let rule = |value: &str| RouteRule {
        hosts: vec![],
        path: PathPattern::Prefix("/v1".to_owned()),
        methods: vec![],
        headers: vec![
            (HeaderName::from_static("x-tenant"), ValuePattern::Present),
            (HeaderName::from_static("x-env"), ValuePattern::Exact(value.as_bytes().to_vec())),
        ],
        cluster: Some("a".into()),
    };
    let table = RouteTable::new(vec![rule("beta"), rule("prod")]);
    let route = |router: &dyn Router| {
        time(|| {
            let mut edits = RequestEdits::default();
            std::hint::black_box(router.route(std::hint::black_box(&asked), &mut edits)).expect("an answer");
        })
    };
    let reader = kinds(&runtime, "tests/guests/built/reader.wasm", json!({}));
    let of = |kinds: &Kinds| {
        [&kinds.worker, &kinds.memoised, &kinds.fresh].map(|plugin| route(&*plugin.router().expect("it routes")))
    };
    row(
        "route: path and two fields",
        route(&table),
        of(&reader),
        "694 for three facts; memo 25-90; fresh 6,800-27,000",
    );
    let settings = json!({ "tenant_from": [{ "header": "x-tenant" }], "tenants": [{ "name": "tenant-7", "cluster": "a" }], "default": "b" });
    row(
        "route: tenant-canary",
        route(&table),
        of(&kinds(&runtime, "plugins/tenant-canary/tenant_canary.wasm", settings)),
        "",
    );

    let set = endpoints(&[1; 16]);
    let view = EndpointsView::new(set, Duration::ZERO);
    let pick = |balancer: &dyn Balancer| {
        time(|| {
            std::hint::black_box(balancer.pick(&asked, std::hint::black_box(&view))).expect("an answer");
        })
    };
    let latency = kinds(&runtime, "plugins/latency-aware/latency_aware.wasm", json!({}));
    let times =
        [&latency.worker, &latency.memoised, &latency.fresh].map(|plugin| pick(&*plugin.balancer().expect("it picks")));
    row(
        "pick: of 16, latency-aware",
        pick(&LeastRequest::new(&view.set)),
        times,
        "274 for a list of loads; not memoisable",
    );

    let standard = StandardForwarding {
        mode: ForwardingMode::Append,
        families: Families { forwarded: true, x_forwarded: true, x_real_ip: false },
        by: None,
    };
    let proposed = standard.identity(&asked);
    let identify = |forwarding: &dyn Forwarding| {
        time(|| {
            let mut identity = proposed.clone();
            std::hint::black_box(forwarding.identify(&asked, std::hint::black_box(&mut identity))).expect("an answer");
        })
    };
    let private =
        kinds(&runtime, "plugins/private-forwarding/private_forwarding.wasm", json!({ "secret": "0123456789abcdef" }));
    let times = [&private.worker, &private.memoised, &private.fresh]
        .map(|plugin| identify(&*plugin.forwarding().expect("it identifies")));
    row("identify: private-forwarding", identify(&standard), times, "");

    let rules = RetryRules {
        on: RetryOn { connect: true, ..RetryOn::default() },
        backoff: Duration::from_millis(25),
        max_backoff: Duration::from_millis(250),
    };
    let facts = Rc::new(attempt(1, Cause::ConnectRefused));
    let decide = |retry: &dyn Retry| {
        time(|| {
            std::hint::black_box(retry.decide(&asked, std::hint::black_box(&facts), &view)).expect("an answer");
        })
    };
    let careful = kinds(&runtime, "plugins/careful-retry/careful_retry.wasm", json!({}));
    let times = [&careful.worker, &careful.memoised, &careful.fresh]
        .map(|plugin| decide(&*plugin.retry().expect("it decides")));
    row("decide: careful-retry", decide(&rules), times, "not memoisable");
}
