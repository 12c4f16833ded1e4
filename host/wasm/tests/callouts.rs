//! Components that call out, on one thread and without a network: who waits has an instance to itself, what it runs is counted
//! and bounded, and what is given up leaves nothing.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tidegate_policy::contract::asked;
use tidegate_policy::{
    Callout, CalloutError, CalloutResponse, Decision, Egress, Origin, PolicyFaultKind, RequestEdits, RouteAnswer,
    Router, Sent,
};
use tidegate_wasm::{
    Grants, HttpGrant, Isolation, Limits, LoadError, Plugin, PluginSpec, Runtime, RuntimeOptions, Scripted, Share,
    Simulation,
};
use tokio::sync::Notify;

fn spec(settings: serde_json::Value) -> PluginSpec {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let bytes = std::fs::read(root.join("tests/guests/built/caller_router.wasm")).expect("a committed component");
    PluginSpec {
        name: "p".into(),
        bytes: bytes.into(),
        settings,
        deny: false,
        limits: Limits { time: Duration::from_millis(100), memory: 8 << 20 },
        grants: Grants { headers: None, wasi: false },
        isolation: Isolation::Worker,
        memoise: true,
        share: Share { http: Some(HttpGrant::of(&["auth"])), ..Share::default() },
    }
}

fn load(spec: &PluginSpec) -> Arc<Plugin> {
    let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 20 }).expect("an engine");
    runtime.load(spec, None).expect("it loads")
}

/// Answers when it is let.
#[derive(Default)]
struct Gate {
    open: Notify,
    sent: RefCell<Vec<Callout>>,
    ran: Cell<Duration>,
}

impl Egress for Gate {
    fn send(self: Rc<Self>, callout: Callout) -> Sent {
        self.sent.borrow_mut().push(callout);
        Box::pin(async move {
            self.open.notified().await;
            Ok(CalloutResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new() })
        })
    }

    fn guest_ran(&self, time: Duration) {
        self.ran.set(self.ran.get() + time);
    }
}

fn on_a_worker(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test());
}

type Answered = Decision<(RouteAnswer, RequestEdits)>;

fn ask(router: &Arc<dyn Router>, gate: &Rc<Gate>, path: &str) -> tokio::task::JoinHandle<Answered> {
    let (router, gate, asked) = (router.clone(), gate.clone(), asked("GET", path));
    tokio::task::spawn_local(async move { router.route_later(&asked, gate).await })
}

async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came to this: {what}");
}

#[test]
fn questions_wait_beside_one_another_and_instances_are_used_again() {
    on_a_worker(async || {
        let plugin = load(&spec(json!({})));
        let router = plugin.router().expect("it routes");
        assert!(router.waits());
        let gate = Rc::new(Gate::default());
        let tasks: Vec<_> = (0..5).map(|index| ask(&router, &gate, &format!("/{index}"))).collect();
        until("all wait", || gate.sent.borrow().len() == 5).await;
        assert_eq!((plugin.stats().live_instances(), plugin.callouts_in_flight()), (5, Some(5)));
        // One that calls nobody is answered meanwhile, and the memo knows it the next time.
        for origin in [Origin::Wasm, Origin::Memo] {
            let free = ask(&router, &gate, "/free").await.expect("no panic").expect("an answer");
            assert_eq!(free.origin, origin);
        }
        gate.open.notify_waiters();
        for task in tasks {
            let answered = task.await.expect("no panic").expect("an answer");
            assert!(matches!(answered.value.0, RouteAnswer::Pass) && answered.origin == Origin::Wasm);
            assert!(!answered.value.1.headers.is_empty());
        }
        assert_eq!(plugin.callouts_in_flight(), Some(0));
        let made = plugin.stats().instantiations();
        let again = ask(&router, &gate, "/1");
        until("it waits", || plugin.callouts_in_flight() == Some(1)).await;
        gate.open.notify_one();
        let again = again.await.expect("no panic").expect("an answer");
        assert_eq!(again.origin, Origin::Wasm, "who called is asked again");
        assert_eq!(plugin.stats().instantiations(), made);
        let sent = gate.sent.borrow();
        assert_eq!((sent.len(), &*sent[0].cluster, sent[0].target.path()), (6, "auth", "/check/0"));
        assert!(gate.ran.get() > Duration::ZERO);
    });
}

#[test]
fn a_question_that_is_given_up_leaves_nothing() {
    on_a_worker(async || {
        let plugin = load(&spec(json!({})));
        let router = plugin.router().expect("it routes");
        let gate = Rc::new(Gate::default());
        for _ in 0..3 {
            let task = ask(&router, &gate, "/");
            until("it waits", || plugin.callouts_in_flight() == Some(1)).await;
            task.abort();
            assert!(task.await.is_err_and(|error| error.is_cancelled()));
            assert_eq!((plugin.callouts_in_flight(), plugin.stats().live_instances()), (Some(0), 0));
        }
        let cancelled = plugin.stats().callouts().find(|(outcome, _)| *outcome == "cancelled");
        assert_eq!(cancelled, Some(("cancelled", 3)));
        // The plugin goes while somebody waits: whoever waits holds it.
        let waiting = ask(&router, &gate, "/");
        until("it waits", || plugin.callouts_in_flight() == Some(1)).await;
        let stats = plugin.stats().clone();
        drop((plugin, router));
        gate.open.notify_one();
        assert!(waiting.await.expect("no panic").is_ok());
        tidegate_wasm::retire_stale();
        assert_eq!(stats.live_instances(), 0);
    });
}

#[test]
fn waiting_is_no_time_that_it_runs_and_what_it_runs_counts() {
    on_a_worker(async || {
        let mut slow = spec(json!({}));
        slow.limits.time = Duration::from_millis(20);
        let plugin = load(&slow);
        let router = plugin.router().expect("it routes");
        let gate = Rc::new(Gate::default());
        let task = ask(&router, &gate, "/");
        until("it waits", || plugin.callouts_in_flight() == Some(1)).await;
        // The thread is busy with others all the while.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(400) {
            std::hint::spin_loop();
        }
        gate.open.notify_one();
        assert!(task.await.expect("no panic").is_ok());
        slow.settings = json!({ "work": 4_000_000_000_u64 });
        let plugin = load(&slow);
        let router = plugin.router().expect("it routes");
        let fault = ask(&router, &gate, "/").await.expect("no panic").expect_err("past its limit");
        assert_eq!(fault.kind, PolicyFaultKind::Deadline);
    });
}

#[test]
fn nobody_is_called_without_a_grant_or_an_egress() {
    let mut ungranted = spec(json!({}));
    ungranted.share = Share::default();
    let runtime = Runtime::new(RuntimeOptions { cache: None, max_instances: 20 }).expect("an engine");
    let refused = runtime.load(&ungranted, None).map(drop);
    assert!(matches!(&refused, Err(LoadError::Import { why, .. }) if why.contains("grants.http")), "{refused:?}");
    let plugin = runtime.load(&spec(json!({})), None).expect("it loads");
    plugin.rehearse().expect("it answers by what it is told");
    let configured = runtime.load(&spec(json!({ "at_once": true })), None).map(drop);
    assert!(matches!(&configured, Err(LoadError::Settings(why)) if why.contains("NotGranted")), "{configured:?}");
    // In the shadow it is asked at once, and told the same.
    let shadow = runtime.load_shadow(&spec(json!({})), None).expect("it loads");
    let router = shadow.router().expect("it routes");
    assert!(!router.waits());
    let answered = router.route(&asked("GET", "/"), &mut RequestEdits::default()).expect("an answer");
    assert!(matches!(answered.value, RouteAnswer::Respond(response) if response.body == "NotGranted"));
}

#[test]
fn a_simulation_has_the_responses_that_were_written_down() {
    let simulation = Arc::new(Simulation::new(Duration::ZERO, Duration::ZERO, 1));
    let options = RuntimeOptions { cache: None, max_instances: 20 };
    let runtime = Runtime::simulated(options, simulation.clone()).expect("an engine");
    let mut plain = spec(json!({}));
    plain.share = Share::default();
    let router = runtime.load(&plain, None).expect("it loads").router().expect("it routes");
    let scripted = |target: &str, response| Scripted {
        cluster: "auth".to_owned(),
        method: "GET".to_owned(),
        target: target.to_owned(),
        response,
    };
    let ok = CalloutResponse { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::new() };
    simulation.set_callouts(vec![scripted("/check/a", Ok(ok)), scripted("/check/b", Err(CalloutError::TimedOut))]);
    let body = |path: &str| {
        let answered = router.route(&asked("GET", path), &mut RequestEdits::default()).expect("an answer");
        match answered.value {
            RouteAnswer::Respond(response) => String::from_utf8_lossy(&response.body).into_owned(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!([body("/a"), body("/b"), body("/c")], ["Pass", "TimedOut", "NotGranted"]);
}
