//! Real components under the runtime: the contract suite, memoisation against the plain guest, loading and its errors.
//! The components are the committed ones, which a test of the repository compares with their sources.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use tidegate_policy::contract::{self, asked, asked_with};
use tidegate_policy::{Asked, Blame, Origin, PolicyFaultKind, RequestEdits, RouteAnswer, TunnelAnswer};
use tidegate_wasm::{Binary, Grants, Isolation, Limits, LoadError, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

fn runtime() -> Arc<Runtime> {
    Runtime::new(RuntimeOptions { cache: None, max_instances: 50 }).expect("an engine")
}

fn component(path: &str) -> Binary {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read(root.join(path)).expect("a committed component").into()
}

fn spec(path: &str, settings: serde_json::Value) -> PluginSpec {
    PluginSpec {
        name: "p".into(),
        bytes: component(path),
        settings,
        deny: false,
        limits: Limits { time: Duration::from_millis(50), memory: 8 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Worker,
        memoise: false,
        share: Share::default(),
    }
}

fn load(spec: &PluginSpec) -> Arc<Plugin> {
    runtime().load(spec, None).expect("it loads")
}

const READER: &str = "tests/guests/built/reader.wasm";
const CANARY: &str = "plugins/tenant-canary/tenant_canary.wasm";
const TUNNELS: &str = "tests/guests/built/by_sni.wasm";
const ROUTER: &str = "tests/guests/built/misbehave_router.wasm";

fn canary_settings() -> serde_json::Value {
    json!({
        "tenant_from": [{ "header": "x-tenant" }, { "cookie": "tenant" }],
        "tenants": [{ "name": "a", "cluster": "a", "canary": { "cluster": "b", "percent": 40, "sticky_by": { "cookie": "sid" } } }],
        "default": "c",
    })
}

#[test]
fn components_keep_the_contract_of_their_questions() {
    let router = load(&spec(CANARY, canary_settings())).router().expect("it routes");
    contract::router(&*router, &["a", "b", "c"]);
    let mut memoised = spec(CANARY, canary_settings());
    memoised.memoise = true;
    contract::router(&*load(&memoised).router().expect("it routes"), &["a", "b", "c"]);
    let balancer = load(&spec("plugins/latency-aware/latency_aware.wasm", json!({}))).balancer().expect("it picks");
    contract::balancer(&|_| balancer.clone());
    let settings = json!({ "secret": "0123456789abcdef", "keep_chain": true });
    let forwarding = spec("plugins/private-forwarding/private_forwarding.wasm", settings);
    contract::forwarding(&*load(&forwarding).forwarding().expect("it identifies"));
    let retry = load(&spec("plugins/careful-retry/careful_retry.wasm", json!({}))).retry().expect("it decides");
    contract::retry(&*retry);
    let tunnels = load(&spec(TUNNELS, tunnel_settings())).tunnel_router().expect("it routes connections");
    contract::tunnel_router(&*tunnels, &["a", "b"]);
}

fn tunnel_settings() -> serde_json::Value {
    json!({ "suffixes": { "example.com": "a", "b.example": "b" }, "refuse": "no.example", "trap": "trap.example" })
}

/// With an instance that lives, one for each question, and a memo: the same answers, and only the memo's are remembered.
#[test]
fn a_tunnel_router_is_asked_of_connections() {
    let name = |name: &str| contract::tunnel_to(Some(name));
    let mut plain = spec(TUNNELS, tunnel_settings());
    plain.limits.time = Duration::from_secs(1);
    let mut fresh = plain.clone();
    fresh.isolation = Isolation::Request;
    let mut memoised = plain.clone();
    memoised.memoise = true;
    for (spec, again) in [(&plain, Origin::Wasm), (&fresh, Origin::Wasm), (&memoised, Origin::Memo)] {
        let plugin = load(spec);
        assert!(plugin.router().is_none() && plugin.questions().tunnel);
        plugin.rehearse().expect("it answers a plain connection");
        let router = plugin.tunnel_router().expect("it routes connections");
        for origin in [Origin::Wasm, again] {
            let asked = |asked: &Rc<Asked>| {
                let answered = router.tunnel(asked).expect("it answers");
                assert_eq!(answered.origin, origin, "{spec:?}");
                answered.value
            };
            assert_eq!(asked(&name("x.example.com")), TunnelAnswer::Forward("a".into()));
            assert_eq!(asked(&name("x.b.example")), TunnelAnswer::Forward("b".into()));
            assert_eq!(asked(&name("no.example")), TunnelAnswer::Refuse);
            assert_eq!(asked(&contract::tunnel_to(None)), TunnelAnswer::Pass);
        }
        let fault = router.tunnel(&name("trap.example")).expect_err("it traps");
        assert_eq!((fault.kind, fault.deny), (PolicyFaultKind::Trap, false));
        assert_eq!(router.tunnel(&name("no.example")).expect("another instance").value, TunnelAnswer::Refuse);
        let counts = plugin.status();
        assert_eq!(counts["questions"]["tunnel"]["asked"], 10, "{counts}");
        assert_eq!(counts["questions"].as_object().map(serde_json::Map::len), Some(1), "{counts}");
    }
}

/// Its world has no request: what would read one is refused.
#[test]
fn a_tunnel_router_reads_no_request() {
    let text = r#"(component
      (import "tidegate:policy/request@0.1.0" (instance))
      (core module $policy (func (export "route")))
      (core instance $policy (instantiate $policy))
      (func $route (canon lift (core func $policy "route")))
      (instance $router (export "route" (func $route)))
      (export "tidegate:policy/tunnel-router@0.1.0" (instance $router)))"#;
    let mut spec = spec(TUNNELS, json!({}));
    spec.bytes = wat::parse_str(text).expect("a component").into();
    let error = runtime().load(&spec, None).err().expect("it is refused");
    assert!(
        matches!(&error, LoadError::Import { import, why } if import.contains("request") && why.contains("question")),
        "{error}"
    );
}

fn answer(plugin: &Plugin, asked: &Rc<Asked>) -> (String, RequestEdits, Origin) {
    let mut edits = RequestEdits::default();
    let answered = plugin.router().expect("it routes").route(asked, &mut edits).expect("it answers");
    (format!("{:?}", answered.value), edits, answered.origin)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A memoised policy and the same policy unmemoised agree on every request, edits included.
    #[test]
    fn memo_and_guest_agree(requests in proptest::collection::vec(
        (0_usize..6, proptest::option::of(0_usize..4), proptest::option::of(0_usize..3), proptest::option::of(0_usize..4)), 1..60)
    ) {
        for (path, settings) in [(READER, json!({})), (CANARY, canary_settings())] {
            let plain = spec(path, settings);
            let mut memoised = plain.clone();
            memoised.memoise = true;
            let runtime = runtime();
            let (plain, memoised) = (runtime.load(&plain, None).expect("it loads"), runtime.load(&memoised, None).expect("it loads"));
            let mut remembered = 0;
            for (target, tenant, env, sid) in &requests {
                let target = ["/", "/v1/a", "/v1/b?x", "/edit/1", "/edit/2", "/v2"][*target];
                let mut fields = Vec::new();
                if let Some(tenant) = tenant {
                    fields.push(("x-tenant", ["a", "b", "", "unknown"][*tenant]));
                }
                if let Some(env) = env {
                    fields.push(("x-env", ["beta", "prod", ""][*env]));
                }
                if let Some(sid) = sid {
                    fields.push(("cookie", ["sid=1", "sid=2; tenant=a", "tenant=a", "x"][*sid]));
                }
                let question = asked_with("GET", target, &fields);
                let (expected, edits, _) = answer(&plain, &question);
                let (got, same, origin) = answer(&memoised, &question);
                prop_assert_eq!(got, expected);
                prop_assert_eq!(same, edits);
                remembered += usize::from(origin == Origin::Memo);
            }
            let distinct: std::collections::HashSet<_> = requests.iter().collect();
            prop_assert!(remembered >= requests.len() - distinct.len(), "a repeated request is remembered");
        }
    }
}

#[test]
fn ungranted_fields_read_as_absent_and_cannot_be_edited() {
    let mut limited = spec(READER, json!({}));
    limited.grants.headers = Some(vec!["x-env".to_owned()]);
    let question = asked_with("GET", "/v1", &[("x-tenant", "t")]);
    assert!(answer(&load(&limited), &question).0.contains("shared"));
    assert!(answer(&load(&spec(READER, json!({}))), &question).0.contains("\"t\""));
    let (_, edits, _) = answer(&load(&limited), &asked("GET", "/edit"));
    assert!(edits.headers.is_empty() && !edits.notes.is_empty());
}

#[test]
fn faults_are_told_apart_and_quarantine_by_cause() {
    for (behave, kind) in
        [("loop", PolicyFaultKind::Deadline), ("trap", PolicyFaultKind::Trap), ("hog", PolicyFaultKind::Memory)]
    {
        for isolation in [Isolation::Worker, Isolation::Request] {
            let mut spec = spec(ROUTER, json!({ "behave": behave }));
            spec.isolation = isolation;
            let plugin = load(&spec);
            let router = plugin.router().expect("it routes");
            for _ in 0..5 {
                let fault = router.route(&asked("GET", "/"), &mut RequestEdits::default()).expect_err("it fails");
                assert_eq!(fault.kind, kind, "{behave}: {}", fault.detail);
            }
            let fault = router.route(&asked("GET", "/"), &mut RequestEdits::default()).expect_err("it is left alone");
            assert_eq!(fault.kind, PolicyFaultKind::Quarantined);
            assert!(plugin.quarantined() && plugin.stats().live_instances() == 0);
        }
    }
}

#[test]
fn what_cannot_be_loaded_says_why() {
    let runtime = runtime();
    let error = |spec: &PluginSpec| runtime.load(spec, None).err().expect("it is refused");
    let with = |bytes: &[u8]| {
        let mut spec = spec(READER, json!({}));
        spec.bytes = bytes.into();
        spec
    };
    assert!(matches!(error(&with(b"junk")), LoadError::NotAComponent(_)));
    let text = |source: &str| wat::parse_str(source).expect("a component");
    assert!(matches!(error(&with(&text("(component)"))), LoadError::NoQuestion));
    let empty = r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance)))"#;
    assert!(
        matches!(error(&with(&text(empty))), LoadError::Import { import, .. } if import.starts_with("wasi:clocks"))
    );
    let unknown = r#"(component (import "tidegate:policy/future@0.9.0" (instance)))"#;
    assert!(
        matches!(error(&with(&text(unknown))), LoadError::Import { import, why } if import.contains("future") && why.contains("does not have"))
    );
    let refused = error(&spec(ROUTER, json!({ "behave": "refuse_settings" })));
    assert!(matches!(refused, LoadError::Settings(reason) if reason.contains("on purpose")));
    let schema = error(&spec(CANARY, json!({ "tenant_from": [], "tenants": [], "x": 1 })));
    assert!(matches!(schema, LoadError::Settings(reason) if reason.contains('x') && reason.contains("tenant_from")));
    let mut small = spec(READER, json!({}));
    small.limits.memory = 64 << 10;
    assert!(matches!(error(&small), LoadError::Start(_)));
}

#[test]
fn an_unchanged_plugin_is_taken_over_and_the_cache_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    let runtime = || Runtime::new(RuntimeOptions { cache: Some(cache.clone()), max_instances: 10 }).expect("an engine");
    let spec = spec(READER, json!({}));
    let first = runtime().load(&spec, None).expect("it loads");
    assert!(Arc::ptr_eq(&first, &runtime().load(&spec, Some(&first)).expect("it loads")));
    let mut changed = spec.clone();
    changed.limits.time = Duration::from_millis(7);
    assert!(!Arc::ptr_eq(&first, &runtime().load(&changed, Some(&first)).expect("it loads")));
    let files = || {
        std::fs::read_dir(&cache).expect("the cache").map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    assert_eq!(files().len(), 2, "the code and its digest");
    for file in files() {
        std::fs::write(&file, b"damaged").expect("written");
    }
    let question = asked("GET", "/v1");
    let again = runtime().load(&spec, None).expect("it is compiled again");
    assert_eq!(answer(&again, &question).0, answer(&first, &question).0);
    assert!(
        matches!(again.router().expect("it routes").route(&question, &mut RequestEdits::default()), Ok(a) if matches!(a.value, RouteAnswer::Forward(_)))
    );
}

/// Every thread has its own instance, and only that thread can drop it: it does once nobody can ask any more.
#[test]
fn instances_of_a_plugin_that_is_gone_retire_on_every_thread() {
    let runtime = runtime();
    let plugin = runtime.load(&spec(READER, json!({})), None).expect("it loads");
    let other = runtime.load(&spec(READER, json!({})), None).expect("it loads");
    let stats = |plugin: &Plugin| plugin.stats().live_instances();
    let (asked_once, gone) = (Arc::new(std::sync::Barrier::new(3)), Arc::new(std::sync::Barrier::new(3)));
    let done = Arc::new(std::sync::Barrier::new(3));
    let threads = [0, 1].map(|index| {
        let (router, other) = (plugin.router().expect("it routes"), other.router().expect("it routes"));
        let (asked_once, gone, done) = (asked_once.clone(), gone.clone(), done.clone());
        std::thread::spawn(move || {
            let question = asked("GET", "/v1");
            router.route(&question, &mut RequestEdits::default()).expect("an answer");
            drop(router);
            asked_once.wait();
            gone.wait();
            match index {
                // By the worker's own look, and by a question to any other plugin.
                0 => tidegate_wasm::retire_stale(),
                _ => drop(other.route(&question, &mut RequestEdits::default())),
            }
            done.wait();
        })
    });
    asked_once.wait();
    assert_eq!(stats(&plugin), 2);
    // The handle goes; what counts the instances stays, to be looked at.
    let counts = plugin.stats().clone();
    drop(plugin);
    gone.wait();
    done.wait();
    assert_eq!(counts.live_instances(), 0);
    for thread in threads {
        thread.join().expect("no panic");
    }
}

/// A router's own responses are held against its grants too.
#[test]
fn a_response_has_only_granted_fields() {
    let mut respond = spec(ROUTER, json!({ "behave": "bad_field" }));
    respond.grants.headers = Some(vec!["x-env".to_owned()]);
    let router = load(&respond).router().expect("it routes");
    let fault = router.route(&asked("GET", "/"), &mut RequestEdits::default()).expect_err("it is refused");
    assert!(fault.kind == PolicyFaultKind::Invalid && fault.detail.contains("not granted"), "{}", fault.detail);
}

/// One wrong name must not switch a whole router off, a busy pool no plugin at all.
#[test]
fn a_refused_answer_quarantines_only_whom_it_blames() {
    let plugin = load(&spec(READER, json!({})));
    let router = plugin.router().expect("it routes");
    for _ in 0..20 {
        assert!(!router.answer_refused("no such cluster", Blame::Nobody).deny);
    }
    assert!(!plugin.quarantined());
    let faults = |kind: &str| plugin.stats().questions[0].faults().find(|(name, _)| *name == kind).map(|(_, n)| n);
    assert_eq!(faults("invalid"), Some(20));
    (0..5).for_each(|_| drop(router.answer_refused("nonsense", Blame::Policy)));
    assert!(plugin.quarantined());
    let mut closed = spec(READER, json!({}));
    closed.deny = true;
    assert!(load(&closed).router().expect("it routes").answer_refused("no such cluster", Blame::Nobody).deny);
}

/// Names are lower case by contract; a guest that writes them otherwise gets the same with and without explicit grants.
#[test]
fn the_case_of_a_name_makes_no_difference_to_grants() {
    let settings = json!({ "tenant_from": [{ "header": "X-Tenant" }], "tenants": [{ "name": "t", "cluster": "own" }], "default": "c" });
    let question = asked_with("GET", "/", &[("x-tenant", "t")]);
    let all = spec(CANARY, settings);
    let mut some = all.clone();
    some.grants.headers = Some(vec!["x-tenant".to_owned()]);
    assert_eq!(answer(&load(&all), &question).0, answer(&load(&some), &question).0);
}
