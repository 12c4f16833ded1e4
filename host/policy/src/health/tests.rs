use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::contract::endpoints;
use crate::{Cause, EndpointsView};

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> EjectionRules {
    EjectionRules {
        consecutive_5xx: 3,
        consecutive_gateway: 2,
        consecutive_local: 2,
        interval: 10 * SECOND,
        base_time: 30 * SECOND,
        max_time: 70 * SECOND,
        max_ejected: 0.5,
        success_rate_factor: 1.5,
        failure_share: 0.0,
        min_endpoints: 3,
        min_requests: 10,
    }
}

fn set(count: usize, ejection: EjectionRules) -> Arc<EndpointSet> {
    with(count, HealthRules { panic_threshold: 0.0, slow_start: Duration::ZERO, ejection: Some(ejection) })
}

fn with(count: usize, rules: HealthRules) -> Arc<EndpointSet> {
    let mut set = Arc::into_inner(endpoints(&vec![1; count])).expect("the only one");
    set.health = SetHealth::new(rules, Arc::default());
    Arc::new(set)
}

fn report(set: &EndpointSet, index: u32, outcomes: &[Outcome]) -> Option<EjectionReason> {
    let mut last = None;
    for outcome in outcomes {
        last = set.report(index, *outcome, SECOND).map(|ejected| ejected.reason);
    }
    last
}

fn is_out(set: &EndpointSet) -> Vec<usize> {
    (0..set.endpoints.len()).filter(|index| set.endpoints[*index].state.health.ejected()).collect()
}

use Outcome::*;

#[test]
fn it_takes_so_many_results_in_a_row() {
    let thresholds = Thresholds { healthy: 2, unhealthy: 3 };
    let run = |start, results: &str| {
        let mut streak = Streak::default();
        results.chars().fold(start, |standing, result| streak.observe(standing, result == '+', thresholds))
    };
    for (start, results, end) in [
        (Standing::Awaited, "+", Standing::Passing),
        (Standing::Awaited, "-", Standing::Failing),
        (Standing::Unchecked, "+", Standing::Passing),
        (Standing::Unchecked, "--", Standing::Unchecked),
        (Standing::Unchecked, "---", Standing::Failing),
        (Standing::Passing, "--+--", Standing::Passing),
        (Standing::Passing, "--+---", Standing::Failing),
        (Standing::Passing, "---+", Standing::Failing),
        (Standing::Passing, "---+-+", Standing::Failing),
        (Standing::Passing, "---+-++", Standing::Passing),
        (Standing::Passing, "---++--", Standing::Passing),
    ] {
        assert_eq!(run(start, results), end, "{start:?} {results}");
    }
}

#[test]
fn failures_in_a_row_eject_by_kind() {
    let fresh = || set(4, rules());
    assert_eq!(report(&fresh(), 0, &[ServerError, ServerError, ServerError]), Some(EjectionReason::Consecutive5xx));
    assert_eq!(report(&fresh(), 0, &[ServerError, ServerError, Success, ServerError]), None);
    assert_eq!(report(&fresh(), 0, &[GatewayError, GatewayError]), Some(EjectionReason::ConsecutiveGateway));
    assert_eq!(report(&fresh(), 0, &[GatewayError, ServerError, GatewayError]), Some(EjectionReason::Consecutive5xx));
    assert_eq!(report(&fresh(), 0, &[LocalError, LocalError]), Some(EjectionReason::ConsecutiveLocal));
    assert_eq!(report(&fresh(), 0, &[LocalError, ServerError, LocalError]), None, "an answer came between");
    let mixed = [ServerError, ServerError, LocalError, ServerError];
    assert_eq!(report(&fresh(), 0, &mixed), Some(EjectionReason::Consecutive5xx), "no answer says nothing of answers");
    let off = set(4, EjectionRules { consecutive_5xx: 0, ..rules() });
    assert_eq!(report(&off, 0, &[ServerError; 50]), None);
    assert_eq!(set(4, rules()).report(9, ServerError, SECOND), None, "out of range");
}

#[test]
fn an_ejection_ends_and_the_next_lasts_longer() {
    let set = set(4, rules());
    let eject = |now| (0..3).filter_map(|_| set.report(1, ServerError, now)).next().expect("ejected");
    assert_eq!(eject(SECOND).time, 30 * SECOND);
    let health = &set.endpoints[1].state.health;
    assert!(!health.healthy());
    assert_eq!(health.ailment(), Some(Ailment::Ejected(EjectionReason::Consecutive5xx)));
    assert_eq!(report(&set, 1, &[ServerError; 9]), None, "it is out already");
    assert_eq!(set.sweep(30 * SECOND), []);
    assert_eq!(set.sweep(31 * SECOND), [(1, Swept::Returned)]);
    assert!(health.healthy());
    assert_eq!(eject(32 * SECOND).time, 60 * SECOND);
    assert_eq!(set.sweep(92 * SECOND), [(1, Swept::Returned)]);
    assert_eq!(eject(93 * SECOND).time, 70 * SECOND, "no longer than the longest");
    assert_eq!(set.sweep(163 * SECOND), [(1, Swept::Returned)]);
    // Good conduct is paid back, an interval at a time.
    (0..5).for_each(|step| drop(set.sweep(Duration::from_secs(180 + step * 11))));
    assert_eq!(eject(250 * SECOND).time, 30 * SECOND);
    assert_eq!(health.ejections(), 4);
}

#[test]
fn never_too_many_are_out() {
    for (count, share, most) in
        [(1, 0.0, 1), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (10, 0.29, 2), (100, 0.29, 29), (3, 1.0, 3)]
    {
        let set = set(count, EjectionRules { max_ejected: share, ..rules() });
        for index in 0..count as u32 {
            report(&set, index, &[ServerError; 10]);
        }
        assert_eq!(is_out(&set).len(), most, "{share} of {count}");
    }
}

#[test]
fn racing_workers_keep_the_bound() {
    for _ in 0..50 {
        let set = set(8, EjectionRules { max_ejected: 0.25, ..rules() });
        std::thread::scope(|scope| {
            for index in 0..8 {
                let set = &set;
                scope.spawn(move || report(set, index, &[LocalError; 4]));
            }
        });
        assert!(is_out(&set).len() <= 2);
    }
}

#[test]
fn outliers_of_success_rate_are_ejected() {
    let set = set(5, rules());
    let serve = |index, good: usize, bad: usize| {
        for _ in 0..good {
            set.report(index, Success, SECOND);
        }
        // A success between, so that none of them is a row.
        (0..bad).for_each(|_| {
            set.report(index, ServerError, SECOND);
            set.report(index, Success, SECOND);
        });
    };
    set.sweep(SECOND);
    (0..4).for_each(|index| serve(index, 100, 0));
    serve(4, 20, 40);
    assert_eq!(set.sweep(5 * SECOND), [], "the interval is not over");
    let swept = set.sweep(11 * SECOND);
    let time = 30 * SECOND;
    assert_eq!(swept, [(4, Swept::Ejected(Ejected { reason: EjectionReason::SuccessRate, time }))]);
    // All alike, however bad: nobody is an outlier.
    (0..4).for_each(|index| serve(index, 10, 40));
    assert_eq!(set.sweep(22 * SECOND), []);
    // Too few requests, or too few endpoints with enough of them, prove nothing.
    serve(0, 2, 3);
    (1..4).for_each(|index| serve(index, 5, 0));
    assert_eq!(set.sweep(33 * SECOND), []);
    serve(0, 20, 40);
    serve(1, 100, 0);
    assert_eq!(set.sweep(39 * SECOND), []);
}

#[test]
fn a_share_of_failures_ejects_where_it_is_set() {
    let set = set(4, EjectionRules { failure_share: 0.5, success_rate_factor: 0.0, min_endpoints: 1, ..rules() });
    set.sweep(SECOND);
    for _ in 0..6 {
        for index in 0..3 {
            report(&set, index, &[Success, ServerError]);
        }
        report(&set, 3, &[Success, Success, Success, ServerError]);
    }
    let swept: Vec<u32> = set.sweep(12 * SECOND).into_iter().map(|(index, _)| index).collect();
    assert_eq!(swept, [0, 1], "half may be out");
}

#[test]
fn a_warming_endpoint_grows_from_a_tenth_to_the_whole() {
    let slow = with(2, HealthRules { slow_start: 10 * SECOND, ejection: Some(rules()), ..HealthRules::default() });
    let endpoint = &slow.endpoints[0];
    let at = |seconds: f64| endpoint.effective_weight(Duration::from_secs_f64(seconds));
    assert_eq!(at(0.0), 1.0, "one that was always there is warm");
    report(&slow, 0, &[ServerError; 3]);
    slow.sweep(100 * SECOND);
    for (seconds, weight) in
        [(100.0, 0.1), (100.5, 0.1), (102.0, 0.2), (105.0, 0.5), (109.0, 0.9), (110.0, 1.0), (999.0, 1.0)]
    {
        assert!((at(seconds) - weight).abs() < 1e-6, "{seconds}: {}", at(seconds));
    }
    let view = EndpointsView::new(slow.clone(), 105 * SECOND);
    let taken = (0..2000).filter(|_| view.warm_enough(0)).count();
    assert!((800..1200).contains(&taken), "about half: {taken}");
    assert!((0..100).all(|_| view.warm_enough(1)));
}

#[test]
fn checks_warm_up_what_was_not_believed() {
    let (shared, window) = (SharedHealth::default(), 10 * SECOND);
    let believed = EndpointHealth::default();
    shared.judge(&believed, Standing::Passing, SECOND, window);
    assert_eq!(believed.warmth(SECOND), 1.0);
    let awaited = EndpointHealth::awaited();
    assert_eq!(awaited.ailment(), Some(Ailment::Awaited));
    shared.judge(&awaited, Standing::Passing, SECOND, window);
    assert!(awaited.healthy() && awaited.warmth(SECOND) < 0.2);
    let epoch = shared.epoch();
    shared.judge(&awaited, Standing::Passing, SECOND, window);
    assert_eq!(shared.epoch(), epoch, "nothing changed");
    shared.judge(&awaited, Standing::Failing, SECOND, window);
    assert_eq!((awaited.ailment(), shared.epoch()), (Some(Ailment::Checks), epoch + 1));
}

#[test]
fn panic_uses_all_when_too_few_are_left() {
    let set = with(4, HealthRules { panic_threshold: 0.5, ..HealthRules::default() });
    let judge = |index: usize, to| {
        set.health.shared.judge(&set.endpoints[index].state.health, to, SECOND, Duration::ZERO);
    };
    let available = || {
        let mut view = EndpointsView::new(set.clone(), SECOND);
        view.refresh(SECOND);
        (0..4).filter(|index| view.available(*index)).collect::<Vec<_>>()
    };
    assert_eq!(available(), [0, 1, 2, 3]);
    judge(0, Standing::Failing);
    judge(1, Standing::Failing);
    assert_eq!(available(), [2, 3], "half is enough");
    let before = set.current_generation();
    judge(2, Standing::Failing);
    assert!(set.current_generation() > before);
    assert!(set.panicking());
    assert_eq!(available(), [0, 1, 2, 3]);
    assert_eq!(set.health.shared.panicked(), 1);
    judge(2, Standing::Passing);
    assert_eq!(available(), [2, 3]);
    // What awaits its first check counts neither way, unless there is nothing else.
    judge(0, Standing::Awaited);
    judge(1, Standing::Awaited);
    assert_eq!(available(), [2, 3]);
    judge(2, Standing::Awaited);
    assert_eq!(available(), [3]);
    judge(3, Standing::Awaited);
    assert_eq!(available(), [0, 1, 2, 3]);
    let never = with(1, HealthRules::default());
    never.health.shared.judge(&never.endpoints[0].state.health, Standing::Failing, SECOND, Duration::ZERO);
    assert!(!EndpointsView::new(never, SECOND).available(0), "a threshold of zero is none");
}

#[test]
fn a_pardon_takes_back_what_gone_rules_did() {
    let set = set(4, rules());
    report(&set, 0, &[ServerError; 3]);
    let health = &set.endpoints[0].state.health;
    assert!(health.ejected());
    set.health.shared.pardon(health);
    assert!(health.healthy());
}

#[test]
fn outcomes_blame_whom_they_should() {
    let of = |status: u16, grpc| Outcome::of_response(StatusCode::from_u16(status).expect("a status"), grpc);
    assert_eq!(of(200, None), Success);
    assert_eq!(of(404, None), Success);
    assert_eq!(of(500, None), ServerError);
    assert_eq!(of(503, None), GatewayError);
    assert_eq!(of(505, None), ServerError);
    assert_eq!(of(200, Some(b"0".as_slice())), Success);
    assert_eq!(of(200, Some(b"5".as_slice())), Success);
    assert_eq!(of(200, Some(b"13".as_slice())), ServerError);
    assert_eq!(of(200, Some(b"14".as_slice())), GatewayError);
    assert_eq!(Outcome::of_fault(Cause::ConnectRefused), Some(LocalError));
    assert_eq!(Outcome::of_fault(Cause::AttemptTimeout), Some(LocalError));
    for cause in [
        Cause::PoolExhausted,
        Cause::NoEndpoint,
        Cause::GoAway,
        Cause::UpgradeFailed,
        Cause::ClientGone,
        Cause::Internal,
    ] {
        assert_eq!(Outcome::of_fault(cause), None, "{cause:?}");
    }
}
