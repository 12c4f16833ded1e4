//! WASI on the path of a decision: what cannot wait works within a worker's runtime, what would wait is a fault of the
//! plugin, and of the plugin only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_policy::contract::asked;
use tidegate_policy::{Identity, Origin, PolicyFaultKind};
use tidegate_wasm::{Grants, Isolation, Limits, LoadError, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

/// A forwarding policy that imports clocks, standard output and polls, and runs `body` when it is asked.
fn guest(body: &str) -> Vec<u8> {
    let text = format!(
        r#"(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.ready" (func (param "self" (borrow $pollable)) (result bool)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (export "pollable" (type $pollable' (eq $pollable)))
    (export "now" (func (result u64)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $pollable'))))))
  (import "wasi:io/error@0.2.0" (instance $error (export "error" (type (sub resource)))))
  (alias export $error "error" (type $error'))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (export "error" (type $error'' (eq $error')))
    (type $failed (variant (case "last-operation-failed" (own $error'')) (case "closed")))
    (export "stream-error" (type $failed' (eq $failed)))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $stream)) (param "contents" (list u8)) (result (result (error $failed')))))))
  (alias export $streams "output-stream" (type $stream))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (export "output-stream" (type $stream' (eq $stream)))
    (export "get-stdout" (func (result (own $stream'))))))
  (core module $memory (memory (export "memory") 1))
  (core instance $memory (instantiate $memory))
  (core func $now (canon lower (func $clock "now")))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $ready (canon lower (func $poll "[method]pollable.ready")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $drop (canon resource.drop $pollable))
  (core func $get (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $memory "memory"))))
  (core module $policy
    (import "host" "memory" (memory 1))
    (import "host" "now" (func $now (result i64)))
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "ready" (func $ready (param i32) (result i32)))
    (import "host" "block" (func $block (param i32)))
    (import "host" "drop" (func $drop (param i32)))
    (import "host" "get" (func $get (result i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (func $expect (param i32) (if (i32.eqz (local.get 0)) (then unreachable)))
    (func (export "identify") (local $pollable i32) {body}))
  (core instance $policy (instantiate $policy (with "host" (instance
    (export "memory" (memory $memory "memory"))
    (export "now" (func $now)) (export "subscribe" (func $subscribe)) (export "ready" (func $ready))
    (export "block" (func $block)) (export "drop" (func $drop)) (export "get" (func $get))
    (export "write" (func $write))))))
  (func $identify (canon lift (core func $policy "identify")))
  (instance $forwarding (export "identify" (func $identify)))
  (export "tidegate:policy/forwarding@0.1.0" (instance $forwarding)))"#
    );
    wat::parse_str(text).expect("a component")
}

fn spec(body: &str) -> PluginSpec {
    PluginSpec {
        name: "p".into(),
        bytes: guest(body).into(),
        settings: serde_json::json!({}),
        deny: false,
        limits: Limits { time: Duration::from_millis(50), memory: 1 << 20 },
        grants: Grants { headers: None, wasi: true },
        isolation: Isolation::Worker,
        memoise: false,
        share: Share::default(),
    }
}

fn load(spec: &PluginSpec) -> Result<Arc<Plugin>, LoadError> {
    let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 10 }).expect("an engine");
    runtime.load(spec, None)
}

/// Asks as a worker does: on a thread that is inside a current-thread runtime.
fn ask(plugin: &Plugin) -> Result<Origin, (PolicyFaultKind, String)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let answer = plugin.forwarding().expect("it identifies").identify(&asked("GET", "/"), &mut Identity::default());
        answer.map(|answered| answered.origin).map_err(|fault| (fault.kind, fault.detail))
    })
}

const WORKS: &str = r#"
    ;; The clock goes, a pollable that is over is ready, and standard output takes what is written.
    (call $expect (i64.ne (call $now) (i64.const 0)))
    (local.set $pollable (call $subscribe (i64.const 0)))
    (call $expect (call $ready (local.get $pollable)))
    (call $block (local.get $pollable))
    (call $drop (local.get $pollable))
    (local.set $pollable (call $subscribe (i64.const 3600000000000)))
    (call $expect (i32.eqz (call $ready (local.get $pollable))))
    (call $drop (local.get $pollable))
    (call $write (call $get) (i32.const 64) (i32.const 16) (i32.const 0))
    (call $expect (i32.eqz (i32.load8_u (i32.const 0))))"#;

#[test]
fn clocks_and_streams_work_within_a_workers_runtime() {
    let plugin = load(&spec(WORKS)).expect("it loads");
    for _ in 0..3 {
        assert_eq!(ask(&plugin), Ok(Origin::Wasm));
    }
    // And without one, as when a plugin is configured.
    let answer = plugin.forwarding().expect("it identifies").identify(&asked("GET", "/"), &mut Identity::default());
    assert!(answer.is_ok());
}

/// `wasmtime-wasi`'s own synchronous poll would panic here, and sleep for an hour elsewhere.
#[test]
fn a_guest_that_waits_is_stopped_as_its_own_fault() {
    let plugin = load(&spec("(call $block (call $subscribe (i64.const 3600000000000)))")).expect("it loads");
    let begun = Instant::now();
    for _ in 0..5 {
        let (kind, detail) = ask(&plugin).expect_err("it waits");
        assert!(kind == PolicyFaultKind::Trap && detail.contains("a decision is made at once"), "{kind:?}: {detail}");
    }
    assert_eq!(ask(&plugin).map_err(|(kind, _)| kind), Err(PolicyFaultKind::Quarantined));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_guest_cannot_fill_the_hosts_table() {
    let plugin = load(&spec("(loop (drop (call $subscribe (i64.const 0))) (br 0))")).expect("it loads");
    assert_eq!(ask(&plugin).map_err(|(kind, _)| kind), Err(PolicyFaultKind::Trap));
}

/// What WASI tells a guest is in no trace, so that answers are not remembered.
#[test]
fn it_is_granted_by_interface_and_never_memoised() {
    let mut memoised = spec(WORKS);
    memoised.memoise = true;
    let plugin = load(&memoised).expect("it loads");
    assert_eq!([ask(&plugin), ask(&plugin)], [Ok(Origin::Wasm), Ok(Origin::Wasm)]);
    let mut ungranted = spec(WORKS);
    ungranted.grants.wasi = false;
    assert!(matches!(load(&ungranted), Err(LoadError::Import { why, .. }) if why.contains("grants.wasi")));
    for foreign in ["wasi:sockets/tcp@0.2.0", "wasi:http/types@0.2.0", "wasi:cli/stdout@0.3.0"] {
        let mut spec = spec(WORKS);
        spec.bytes =
            wat::parse_str(format!("(component (import \"{foreign}\" (instance)))")).expect("a component").into();
        assert!(
            matches!(load(&spec), Err(LoadError::Import { why, .. }) if why.contains("does not have")),
            "{foreign}"
        );
    }
}
