//! Components built against contract 0.1.0 load and answer, for as long as there is a gateway: `tests/guests/contract-0.1.0`.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use tidegate_policy::contract::{self, asked, asked_with, attempt, endpoints};
use tidegate_policy::{
    Cause, Choice, EndpointsView, Families, Identity, RequestEdits, RouteAnswer, TunnelAnswer, Verdict,
};
use tidegate_wasm::{Grants, Isolation, Limits, Plugin, PluginSpec, Runtime, RuntimeOptions, Share};

fn load(name: &str, digest: &str, settings: serde_json::Value) -> Arc<Plugin> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/contract-0.1.0").join(name);
    let bytes = std::fs::read(file).expect("a committed component");
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, digest, "{name} was built anew: it no longer shows that old components load");
    let spec = PluginSpec {
        name: "old".into(),
        bytes: bytes.into(),
        settings,
        deny: false,
        limits: Limits { time: Duration::from_millis(50), memory: 8 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Worker,
        memoise: false,
        share: Share::default(),
    };
    let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 10 }).expect("an engine");
    let plugin = runtime.load(&spec, None).expect("it loads");
    plugin.rehearse().expect("it answers a plain request");
    plugin
}

#[test]
fn a_router_of_contract_0_1_0_routes() {
    let settings = json!({
        "tenant_from": [{ "header": "x-tenant" }, { "cookie": "tenant" }],
        "tenants": [{ "name": "a", "cluster": "a", "canary": { "cluster": "b", "percent": 40, "sticky_by": { "cookie": "sid" } } }],
        "default": "c",
    });
    let digest = "1310dbcd32614f4f5e78b7c578b9bd93f06d9d0aa08f1fb482484990ed65ddf2";
    let router = load("tenant_canary.wasm", digest, settings).router().expect("it routes");
    contract::router(&*router, &["a", "b", "c"]);
    let to = |question| match router.route(&question, &mut RequestEdits::default()).expect("an answer").value {
        RouteAnswer::Forward(cluster) => cluster.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(to(asked("GET", "/")), "c");
    assert!(["a", "b"].contains(&to(asked_with("GET", "/", &[("x-tenant", "a")])).as_str()));
}

#[test]
fn a_balancer_of_contract_0_1_0_picks() {
    let digest = "7bcc525c1761c271c8b1cbccdaceed655ad8f61863923d2b1fbb5d5d5fa08aa2";
    let balancer = load("latency_aware.wasm", digest, json!({})).balancer().expect("it picks");
    contract::balancer(&|_| balancer.clone());
    let view = EndpointsView::new(endpoints(&[1]), Duration::ZERO);
    assert_eq!(balancer.pick(&asked("GET", "/"), &view).expect("an answer").value, Choice::Endpoint(0));
}

#[test]
fn a_forwarding_policy_of_contract_0_1_0_identifies() {
    let digest = "a8f9aa7a639828c70b7f4eaeb908242e069f3703b973fc2c075d90dfd75b688b";
    let settings = json!({ "secret": "0123456789abcdef", "keep_chain": true });
    let forwarding = load("private_forwarding.wasm", digest, settings).forwarding().expect("it identifies");
    contract::forwarding(&*forwarding);
    let families = Families { forwarded: true, x_forwarded: true, x_real_ip: true };
    let mut identity = Identity { elements: Vec::new(), families };
    forwarding.identify(&asked("GET", "/"), &mut identity).expect("an answer");
    let sent = format!("{:?}", identity.elements);
    assert!(!identity.elements.is_empty() && !sent.contains("192.0.2.7"), "{sent}");
}

#[test]
fn a_retry_policy_of_contract_0_1_0_decides() {
    let digest = "388cced27d4241b894ed1087a998ee4346bdd188cc02b94481b7d73e2fdc0c1b";
    let retry = load("careful_retry.wasm", digest, json!({})).retry().expect("it decides");
    contract::retry(&*retry);
    let view = EndpointsView::new(endpoints(&[1, 1]), Duration::ZERO);
    let verdict = retry.decide(&asked("GET", "/"), &Rc::new(attempt(1, Cause::ConnectRefused)), &view);
    assert_ne!(verdict.expect("an answer").value, Verdict::Stop);
}

#[test]
fn a_tunnel_router_of_contract_0_1_0_routes_connections() {
    let digest = "1a15d2fe8a21c872ab0b0690e710af20ad671941e2ac7a169da42402c6ca0950";
    let settings = json!({ "suffixes": { "example.com": "a" }, "refuse": "no.example" });
    let router = load("by_sni.wasm", digest, settings).tunnel_router().expect("it routes connections");
    contract::tunnel_router(&*router, &["a"]);
    let to = |name| router.tunnel(&contract::tunnel_to(name)).expect("an answer").value;
    assert_eq!(to(Some("x.example.com")), TunnelAnswer::Forward("a".into()));
    assert_eq!([to(Some("no.example")), to(None)], [TunnelAnswer::Refuse, TunnelAnswer::Pass]);
}
