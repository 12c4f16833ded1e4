//! What a forwarding policy sets is kept as edits: they belong to the question they were made for, and to whatever its
//! route proposes.

use std::sync::Arc;
use std::time::Duration;

use tidegate_policy::contract::asked;
use tidegate_policy::{Element, Families, Identity, Node, Origin};
use tidegate_wasm::{Grants, Isolation, Limits, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

/// A forwarding policy whose functions are these bodies. `$elements` sets an empty chain, `$families` all families.
fn plugin(configure: &str, identify: &str, memoise: bool) -> Arc<Plugin> {
    let text = format!(
        r#"(component
  (import "tidegate:policy/types@0.1.0" (instance $types
    (type $ip (variant (case "ipv4" (tuple u8 u8 u8 u8)) (case "ipv6" (tuple u16 u16 u16 u16 u16 u16 u16 u16))))
    (export "ip-address" (type $ip' (eq $ip)))
    (type $address (record (field "ip" $ip') (field "port" u16)))
    (export "socket-address" (type $address' (eq $address)))
    (type $error (variant (case "invalid-name") (case "invalid-value") (case "not-granted")
      (case "other" (option string))))
    (export "edit-error" (type $error' (eq $error)))))
  (alias export $types "ip-address" (type $ip))
  (alias export $types "socket-address" (type $address))
  (alias export $types "edit-error" (type $error))
  (import "tidegate:policy/identity@0.1.0" (instance $identity
    (type $node (variant (case "address" $address) (case "ip" $ip) (case "unknown") (case "obfuscated" string)))
    (export "node" (type $node' (eq $node)))
    (type $element (record (field "for" (option $node')) (field "by" (option $node'))
      (field "host" (option string)) (field "proto" (option string))))
    (export "element" (type $element' (eq $element)))
    (type $families (flags "forwarded" "x-forwarded" "x-real-ip"))
    (export "field-families" (type $families' (eq $families)))
    (export "set-elements" (func (param "elements" (list $element')) (result (result (error $error)))))
    (export "set-families" (func (param "families" $families')))))
  (core module $libc
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $libc (instantiate $libc))
  (core func $elements (canon lower (func $identity "set-elements")
    (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $families (canon lower (func $identity "set-families")))
  (core module $policy
    (import "host" "elements" (func $set (param i32 i32 i32)))
    (import "host" "families" (func $allow (param i32)))
    (func $elements (call $set (i32.const 0) (i32.const 0) (i32.const 512)))
    (func $families (call $allow (i32.const 7)))
    (func (export "configure") (param i32 i32) (result i32) {configure} (i32.const 256))
    (func (export "identify") {identify}))
  (core instance $policy (instantiate $policy (with "host" (instance
    (export "elements" (func $elements)) (export "families" (func $families))))))
  (func $configure (param "settings" string) (result (result (error string)))
    (canon lift (core func $policy "configure") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (func $identify (canon lift (core func $policy "identify")))
  (instance $plugin (export "configure" (func $configure)))
  (instance $forwarding (export "identify" (func $identify)))
  (export "tidegate:policy/plugin@0.1.0" (instance $plugin))
  (export "tidegate:policy/forwarding@0.1.0" (instance $forwarding)))"#
    );
    let spec = PluginSpec {
        name: "p".into(),
        bytes: wat::parse_str(text).expect("a component").into(),
        settings: serde_json::json!({}),
        deny: false,
        limits: Limits { time: Duration::from_millis(50), memory: 1 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Worker,
        memoise,
        share: Share::default(),
    };
    let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 10 }).expect("an engine");
    runtime.load(&spec, None).expect("it loads")
}

const FORWARDED: Families = Families { forwarded: true, x_forwarded: false, x_real_ip: false };
const X_FORWARDED: Families = Families { forwarded: false, x_forwarded: true, x_real_ip: false };

/// What becomes of the proposal of a route with these families.
fn ask(plugin: &Plugin, families: Families) -> (usize, Families, Origin) {
    let own = Element { r#for: Some(Node::Unknown), ..Element::default() };
    let mut identity = Identity { elements: vec![own], families };
    let forwarding = plugin.forwarding().expect("it identifies");
    let answered = forwarding.identify(&asked("GET", "/"), &mut identity).expect("an answer");
    (identity.elements.len(), identity.families, answered.origin)
}

/// One plugin, two routes that differ in what they propose: the memo must not carry one's proposal to the other.
#[test]
fn remembered_edits_apply_to_each_routes_own_proposal() {
    let plugin = plugin("", "(call $elements)", true);
    assert_eq!(ask(&plugin, FORWARDED), (0, FORWARDED, Origin::Wasm));
    assert_eq!(ask(&plugin, X_FORWARDED), (0, X_FORWARDED, Origin::Memo));
    assert_eq!(ask(&plugin, FORWARDED), (0, FORWARDED, Origin::Memo));
}

#[test]
fn what_a_guest_sets_while_it_is_configured_belongs_to_no_question() {
    let plugin = plugin("(call $elements) (call $families)", "", false);
    for _ in 0..2 {
        assert_eq!(ask(&plugin, FORWARDED), (1, FORWARDED, Origin::Wasm));
    }
}
