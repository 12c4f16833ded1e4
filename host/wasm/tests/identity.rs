//! What a forwarding policy sets is kept as edits: they belong to the question they were made for, and to whatever its
//! route proposes.

use std::sync::Arc;
use std::time::Duration;

use tidegate_policy::contract::asked;
use tidegate_policy::{Element, Families, Identity, Node, Origin};
use tidegate_wasm::{Grants, Isolation, Limits, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

fn plugin(configure: &str, identify: &str, memoise: bool) -> Arc<Plugin> {
    plugin_with(configure, identify, memoise, b"")
}

/// A forwarding policy whose functions are these bodies. `$elements` sets an empty chain, `$families` all families, `$encoded`
/// the chain of these bytes, or all families if that is refused.
fn plugin_with(configure: &str, identify: &str, memoise: bool, encoded: &[u8]) -> Arc<Plugin> {
    let (bytes, length) = (encoded.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>(), encoded.len());
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
    (export "set-encoded" (func (param "elements" (list u8)) (result (result (error $error)))))
    (export "set-families" (func (param "families" $families')))))
  (core module $libc
    (memory (export "memory") 1)
    (data (i32.const 2048) "{bytes}")
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $libc (instantiate $libc))
  (core func $elements (canon lower (func $identity "set-elements")
    (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $encoded (canon lower (func $identity "set-encoded")
    (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
  (core func $families (canon lower (func $identity "set-families")))
  (core module $policy
    (import "host" "elements" (func $set (param i32 i32 i32)))
    (import "host" "encoded" (func $set_encoded (param i32 i32 i32)))
    (import "host" "families" (func $allow (param i32)))
    (import "host" "memory" (memory 1))
    (func $elements (call $set (i32.const 0) (i32.const 0) (i32.const 512)))
    (func $families (call $allow (i32.const 7)))
    (func $encoded
      (call $set_encoded (i32.const 2048) (i32.const {length}) (i32.const 512))
      (if (i32.load8_u (i32.const 512)) (then (call $families))))
    (func (export "configure") (param i32 i32) (result i32) {configure} (i32.const 256))
    (func (export "identify") {identify}))
  (core instance $policy (instantiate $policy (with "host" (instance
    (export "elements" (func $elements)) (export "encoded" (func $encoded)) (export "families" (func $families))
    (export "memory" (memory $libc "memory"))))))
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

/// A chain as bytes is held to what any chain is, and to its form.
#[test]
fn a_chain_comes_as_bytes() {
    let unknown = [&[1, 0][..], &[0xff; 8]].concat();
    let named = [&[6][..], &2_u32.to_le_bytes(), b"_a", &[0], &[0xff; 8]].concat();
    let all = Families { forwarded: true, x_forwarded: true, x_real_ip: true };
    let cases = [
        (unknown.repeat(2), 2, FORWARDED),
        ([unknown.clone(), named].concat(), 2, FORWARDED),
        (unknown.repeat(32), 32, FORWARDED),
        (Vec::new(), 0, FORWARDED),
        // Too many; an element that says nothing; a name that is none; the end missing; no such kind.
        (unknown.repeat(33), 1, all),
        ([&[0, 0][..], &[0xff; 8]].concat(), 1, all),
        ([&[6][..], &2_u32.to_le_bytes(), b"a\n", &[0], &[0xff; 8]].concat(), 1, all),
        (unknown[..9].to_vec(), 1, all),
        ([&[9, 0][..], &[0xff; 8]].concat(), 1, all),
    ];
    for (encoded, elements, families) in cases {
        let plugin = plugin_with("", "(call $encoded)", false, &encoded);
        assert_eq!(ask(&plugin, FORWARDED), (elements, families, Origin::Wasm), "{encoded:?}");
    }
}
