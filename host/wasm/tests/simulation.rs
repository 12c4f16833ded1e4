//! A component under a simulated clock and chance: what it reads is what was given.

use std::sync::Arc;
use std::time::Duration;

use tidegate_policy::contract::{asked, endpoints};
use tidegate_policy::{Choice, EndpointsView};
use tidegate_wasm::{Grants, Isolation, Limits, PluginSpec, Runtime, RuntimeOptions, Share, Simulation};

/// A balancer whose hash is what a function of the contract gives.
fn hash_of(interface: &str, function: &str) -> Arc<[u8]> {
    let text = format!(
        r#"(component
          (import "tidegate:policy/{interface}@0.1.0" (instance $facts (export "{function}" (func (result u64)))))
          (core func $read (canon lower (func $facts "{function}")))
          (core module $policy
            (import "facts" "read" (func $read (result i64)))
            (memory (export "memory") 1)
            (func (export "pick") (result i32)
              (i32.store8 (i32.const 64) (i32.const 2))
              (i64.store (i32.const 72) (call $read))
              (i32.const 64)))
          (core instance $policy (instantiate $policy
            (with "facts" (instance (export "read" (func $read))))))
          (type $choice' (variant (case "pass") (case "endpoint" u32) (case "hash" u64) (case "none")))
          (component $part
            (type $local (variant (case "pass") (case "endpoint" u32) (case "hash" u64) (case "none")))
            (import "choice" (type $choice (eq $local)))
            (import "pick" (func $pick (result $choice)))
            (export $shown "choice" (type $choice))
            (export "pick" (func $pick) (func (result $shown))))
          (func $pick (result $choice')
            (canon lift (core func $policy "pick") (memory (core memory $policy "memory"))))
          (instance $balancer (instantiate $part (with "choice" (type $choice')) (with "pick" (func $pick))))
          (export "tidegate:policy/balancer@0.1.0" (instance $balancer)))"#
    );
    wat::parse_str(text).expect("a component").into()
}

fn spec(bytes: Arc<[u8]>) -> PluginSpec {
    PluginSpec {
        name: "p".into(),
        bytes: bytes.into(),
        settings: serde_json::json!({}),
        deny: false,
        limits: Limits { time: Duration::from_secs(5), memory: 1 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Request,
        memoise: false,
        share: Share::default(),
    }
}

#[test]
fn time_stands_where_it_was_set_and_chance_begins_with_its_seed() {
    let simulation = Arc::new(Simulation::new(Duration::from_nanos(5), Duration::from_nanos(6), 1));
    let options = RuntimeOptions { cache: None, max_instances: 10 };
    let runtime = Runtime::simulated(options, simulation.clone()).expect("an engine");
    let ask = |interface: &str, function: &str| {
        let plugin = runtime.load(&spec(hash_of(interface, function)), None).expect("it loads");
        let view = EndpointsView::new(endpoints(&[1]), Duration::ZERO);
        match plugin.balancer().expect("it picks").pick(&asked("GET", "/"), &view).expect("an answer").value {
            Choice::Hash(read) => read,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((ask("clock", "monotonic"), ask("clock", "wall")), (5, 6));
    let first = ask("random", "next");
    assert_eq!(ask("random", "next"), first, "each instance begins anew");
    simulation.set(Duration::from_secs(1), Duration::from_secs(2), 2);
    assert_eq!((ask("clock", "monotonic"), ask("clock", "wall")), (1_000_000_000, 2_000_000_000));
    assert_ne!(ask("random", "next"), first);
}
