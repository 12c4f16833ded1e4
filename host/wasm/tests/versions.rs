//! Two versions of a plugin behind one policy, and one in the shadow, without a gateway around them.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_json::json;
use tidegate_policy::contract::asked_with;
use tidegate_policy::{Asked, Decision, RequestEdits, RouteAnswer, Router, Version, Versioned};
use tidegate_wasm::{
    Deployment, Grants, Guard, Isolation, Limits, LoadError, Plugin, PluginSpec, Reason, Rollout, RolloutSpec, Runtime,
    RuntimeOptions, Shadow, ShadowSpec, Share, StickyBy,
};

fn runtime() -> Arc<Runtime> {
    Runtime::new(RuntimeOptions { cache: None, max_instances: 50 }).expect("an engine")
}

fn spec(name: &str, settings: serde_json::Value) -> PluginSpec {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/built/misbehave_router.wasm");
    PluginSpec {
        name: name.into(),
        bytes: std::fs::read(file).expect("a committed component").into(),
        settings,
        deny: false,
        limits: Limits { time: Duration::from_millis(200), memory: 8 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Worker,
        memoise: false,
        share: Share::default(),
    }
}

fn forward(cluster: &str) -> serde_json::Value {
    json!({ "behave": "forward", "cluster": cluster })
}

fn rollout(share: f64) -> RolloutSpec {
    let sticky_by = StickyBy::Header(HeaderName::from_static("x-user"));
    let guard = Guard { faults: 5, error_rate: 0.05, latency: 2.0, window: Duration::from_secs(30), min: 20 };
    RolloutSpec { share, sticky_by, guard }
}

struct Pair {
    router: Arc<dyn Router>,
    rollout: Arc<Rollout>,
    next: Arc<Plugin>,
}

fn pair(next: serde_json::Value, share: f64) -> Pair {
    let runtime = runtime();
    let current = runtime.load(&spec("p", forward("a")), None).expect("it loads");
    let next = runtime.load(&spec("p@next", next), None).expect("it loads");
    let rollout = Rollout::new("p".into(), &next, rollout(share), None);
    let mut deployment = Deployment::of(current);
    deployment.rollout = Some((next.clone(), rollout.clone()));
    Pair { router: deployment.router().expect("it routes"), rollout, next }
}

fn user(user: usize, path: &str) -> Rc<Asked> {
    asked_with("GET", path, &[("x-user", &user.to_string())])
}

/// Asks as the core does: the version first, and the other where that gives no answer; then tells of the end.
fn ask(router: &dyn Router, asked: &Rc<Asked>, now: Duration, failed: bool) -> (Version, Decision<RouteAnswer>) {
    let Versioned { policy, watched, instead } = router.version(asked).expect("two versions");
    let mut decision = policy.route(asked, &mut RequestEdits::default());
    if decision.is_err()
        && let Some((current, _)) = instead
    {
        decision = current.route(asked, &mut RequestEdits::default());
    }
    watched.watch.ended(watched.version, failed, now);
    (watched.version, decision)
}

fn cluster(decision: &Decision<RouteAnswer>) -> &str {
    match decision.as_ref().map(|answered| &answered.value) {
        Ok(RouteAnswer::Forward(cluster)) => cluster,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_version_of_an_exchange_answers_and_a_larger_share_only_adds() {
    let (small, large) = (pair(forward("b"), 0.2), pair(forward("b"), 0.6));
    let mut had = [0, 0];
    for index in 0..200 {
        let asked = user(index, "/");
        let [in_small, in_large] = [&small, &large].map(|pair| {
            let (version, decision) = ask(&*pair.router, &asked, Duration::ZERO, false);
            assert_eq!(cluster(&decision), if version == Version::Next { "b" } else { "a" });
            usize::from(version == Version::Next)
        });
        assert!(in_large >= in_small, "user {index} went back");
        had = [had[0] + in_small, had[1] + in_large];
    }
    assert!((20..60).contains(&had[0]) && (90..150).contains(&had[1]), "{had:?}");
    assert_eq!(small.rollout.decisions(Version::Next), had[0] as u64);
    assert_eq!(small.rollout.decisions(Version::Current), 200 - had[0] as u64);
    assert_eq!((small.rollout.share(), large.rollout.share()), (0.2, 0.6));
}

#[test]
fn faults_roll_back_and_cost_no_request_its_answer() {
    let pair = pair(json!({ "behave": "trap_on_path" }), 1.0);
    for index in 0..10 {
        let (version, decision) = ask(&*pair.router, &user(index, "/trap"), Duration::ZERO, false);
        assert_eq!(cluster(&decision), "a", "the current version steps in");
        assert_eq!(version == Version::Next, index < 5, "{index}");
    }
    assert_eq!((pair.rollout.share(), pair.rollout.rollbacks(Reason::Faults)), (0.0, 1));
    let status = pair.rollout.status();
    assert_eq!((&status["state"], &status["rolled_back"]["reason"]), (&json!("rolled back"), &json!("faults")));
    // A configuration that leaves the rollout as it is leaves it rolled back; another begins anew, and keeps the counts.
    let same = Rollout::new("p".into(), &pair.next, rollout(1.0), Some(&pair.rollout));
    assert!(Arc::ptr_eq(&same, &pair.rollout));
    let other = Rollout::new("p".into(), &pair.next, rollout(0.5), Some(&pair.rollout));
    assert_eq!((other.share(), other.rollbacks(Reason::Faults)), (0.5, 1));
}

#[test]
fn failed_exchanges_roll_back_unless_both_versions_have_them() {
    let pair = pair(forward("b"), 0.5);
    let now = Duration::from_secs(100);
    // The origin fails for everybody.
    for index in 0..100 {
        let (_, decision) = ask(&*pair.router, &user(index, "/"), now, true);
        decision.expect("an answer");
    }
    assert_eq!(pair.rollout.share(), 0.5);
    // In the next window for the next version only.
    let later = now + Duration::from_secs(60);
    let mut failed = 0;
    for index in 0..100 {
        let next = pair.router.version(&user(index, "/")).expect("two").watched.version == Version::Next;
        failed += u32::from(next);
        let (_, decision) = ask(&*pair.router, &user(index, "/"), later, next);
        decision.expect("an answer");
    }
    assert_eq!((pair.rollout.share(), pair.rollout.rollbacks(Reason::ErrorRate)), (0.0, 1));
    assert_eq!(failed, 2, "two of twenty are more than a twentieth, whatever comes after them");
}

#[test]
fn a_slow_version_is_rolled_back() {
    let answers = || {
        let pair = pair(json!({ "behave": "slow" }), 0.5);
        for index in 0..400 {
            let (_, decision) = ask(&*pair.router, &user(index, "/"), Duration::ZERO, false);
            decision.expect("an answer");
        }
        let outcome = (pair.rollout.share(), pair.rollout.rollbacks(Reason::Latency));
        (outcome, pair.rollout.decisions(Version::Next))
    };
    // While the machine has much else to do, the current version is slow too: then once more.
    let soon = |outcome: &((f64, u64), u64)| matches!(outcome, ((0.0, 1), ..=32));
    let mut outcome = answers();
    for _ in 0..20 {
        if soon(&outcome) {
            break;
        }
        outcome = answers();
    }
    assert!(soon(&outcome), "{outcome:?}");
}

#[test]
fn a_version_is_asked_before_it_serves() {
    let runtime = runtime();
    let load = |behave: &str| runtime.load(&spec("p", json!({ "behave": behave })), None).expect("it loads");
    let refused = load("trap").rehearse();
    assert!(
        matches!(refused, Err(LoadError::Rehearsal { question: "route", ref why }) if why.contains("trap")),
        "{refused:?}"
    );
    let plugin = load("trap_on_path");
    assert!(plugin.rehearse().is_ok());
    assert_eq!(plugin.stats().live_instances(), 0, "its instance is gone");
}

/// A router that traps in the shadow, or is asked too often: the answer that stands stands.
#[test]
fn a_shadow_is_compared_bounded_and_left_alone_in_quarantine() {
    let runtime = runtime();
    let current = runtime.load(&spec("p", forward("a")), None).expect("it loads");
    let with = |settings, rate| {
        let version = runtime.load_shadow(&spec("p@shadow", settings), None).expect("it loads");
        let shadow = Shadow::new(&version, &current, ShadowSpec { share: 1.0, rate }, None);
        let mut deployment = Deployment::of(current.clone());
        deployment.shadow = Some(shadow.clone());
        (deployment.router().expect("it routes"), shadow)
    };
    let route = |router: &dyn Router, path: &str| {
        let decision = router.route(&user(1, path), &mut RequestEdits::default());
        assert_eq!(cluster(&decision), "a");
    };
    let counts = |shadow: &Shadow| shadow.compared().next().map(|(_, compared, differ)| (compared, differ));
    let skipped = |shadow: &Shadow| shadow.skipped().map(|(_, count)| count).collect::<Vec<_>>();

    let (router, shadow) = with(forward("a"), 1000);
    (0..20).for_each(|_| route(&*router, "/"));
    assert_eq!(counts(&shadow), Some((20, 0)));

    let (router, shadow) = with(json!({ "behave": "trap_on_path" }), 1000);
    route(&*router, "/");
    (0..20).for_each(|_| route(&*router, "/trap"));
    assert_eq!((counts(&shadow), skipped(&shadow)), (Some((6, 6)), vec![0, 15, 0]));
    let report = shadow.report();
    let groups: Vec<_> =
        report["groups"].as_array().expect("groups").iter().map(|g| (&g["shadow"], &g["count"])).collect();
    assert_eq!(groups, [(&json!("failed: trap"), &json!(5)), (&json!("pass"), &json!(1))]);

    let (router, shadow) = with(forward("b"), 3);
    (0..20).for_each(|_| route(&*router, "/"));
    let (compared, _) = counts(&shadow).expect("a question");
    // The second may have turned meanwhile.
    assert!((3..=6).contains(&compared) && skipped(&shadow)[0] == 20 - compared, "{compared} {:?}", skipped(&shadow));
    // Nothing of it changed: it goes on.
    let version = runtime.load_shadow(&spec("p@shadow", forward("b")), None).expect("it loads");
    let again = |share| Shadow::new(&version, &current, ShadowSpec { share, rate: 3 }, Some(&shadow));
    assert!(Arc::ptr_eq(&again(1.0), &shadow) && !Arc::ptr_eq(&again(0.5), &shadow));
}
