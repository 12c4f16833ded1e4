//! Two answers to one question, as words: those that are grouped by, and those an example shows.

use tidegate_policy::{
    Choice, Decision, EndpointsView, Families, Identity, PolicyFault, RequestEdits, RouteAnswer, TunnelAnswer, Verdict,
};

/// How two answers differ.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Difference {
    /// What stood and what the shadow said, without what would make a group of every request.
    pub(crate) kind: [String; 2],
    /// The same exactly.
    pub(crate) exact: [String; 2],
}

/// The longest name in it, which is a guest's: of a cluster.
const MAX_WORDS: usize = 80;

/// Of `stood` and `shadow`; nothing where they are the same. `words` gives an answer's kind and its exact words; where two
/// kinds are alike the second is called another.
fn difference<T: Copy>(
    stood: Result<T, &PolicyFault>,
    shadow: Result<T, &PolicyFault>,
    same: impl FnOnce(T, T) -> bool,
    words: impl Fn(T) -> (String, String),
) -> Option<Difference> {
    match (stood, shadow) {
        (Ok(stood), Ok(shadow)) if same(stood, shadow) => return None,
        // Neither gave an answer: the native one stands both ways.
        (Err(_), Err(_)) => return None,
        _ => {}
    }
    let of = |answer: Result<T, &PolicyFault>| match answer {
        Ok(answer) => words(answer),
        Err(fault) => (format!("failed: {}", fault.kind.name()), fault.detail.clone()),
    };
    let ((stood, stood_exactly), (mut shadow, shadow_exactly)) = (of(stood), of(shadow));
    if stood == shadow {
        shadow.insert_str(0, "another ");
    }
    Some(Difference { kind: [short(stood), short(shadow)], exact: [short(stood_exactly), short(shadow_exactly)] })
}

pub(crate) fn short(mut text: String) -> String {
    if text.len() > MAX_WORDS {
        text.truncate(text.floor_char_boundary(MAX_WORDS));
        text.push('…');
    }
    text
}

/// A route's decision, and the edits that came with it.
pub(crate) type Routed<'a> = (&'a Decision<RouteAnswer>, &'a RequestEdits);

pub(crate) fn of_routes(stood: Routed<'_>, shadow: Routed<'_>) -> Option<Difference> {
    fn with<'a>((decision, edits): Routed<'a>) -> Result<(&'a RouteAnswer, &'a RequestEdits), &'a PolicyFault> {
        decision.as_ref().map(|answered| (&answered.value, edits))
    }
    let words = |(answer, edits): (&RouteAnswer, &RequestEdits)| {
        let kind = match answer {
            RouteAnswer::Pass => "pass".to_owned(),
            RouteAnswer::Forward(cluster) => format!("forward {cluster}"),
            RouteAnswer::Respond(response) => format!("respond {}", response.status.as_u16()),
        };
        let changed = edited(edits);
        let exact = if changed.is_empty() { kind.clone() } else { format!("{kind}, edits {changed}") };
        (kind, exact)
    };
    difference(with(stood), with(shadow), |a, b| same_route(a.0, b.0) && a.1 == b.1, words)
}

fn same_route(a: &RouteAnswer, b: &RouteAnswer) -> bool {
    match (a, b) {
        (RouteAnswer::Pass, RouteAnswer::Pass) => true,
        (RouteAnswer::Forward(a), RouteAnswer::Forward(b)) => a == b,
        (RouteAnswer::Respond(a), RouteAnswer::Respond(b)) => {
            a.status == b.status && a.headers == b.headers && a.body == b.body
        }
        _ => false,
    }
}

/// What is edited, not to what: values may be secrets.
fn edited(edits: &RequestEdits) -> String {
    let mut names: Vec<&str> = Vec::new();
    let set = [
        ("path", edits.path.is_some()),
        ("query", edits.query.is_some()),
        ("authority", edits.authority.is_some()),
        ("timeout", edits.timeout.is_some()),
        ("attempt timeout", edits.attempt_timeout.is_some()),
        ("buffering", edits.buffering.is_some()),
    ];
    names.extend(set.iter().filter(|(_, set)| *set).map(|(name, _)| *name));
    names.extend(edits.headers.iter().map(|edit| edit.name().as_str()));
    names.extend(edits.response_headers.iter().map(|edit| edit.name().as_str()));
    names.extend(edits.notes.iter().map(|(name, _)| name.as_str()));
    names.join(" ")
}

pub(crate) fn of_picks(
    stood: &Decision<Choice>,
    shadow: &Decision<Choice>,
    view: &EndpointsView,
) -> Option<Difference> {
    let words = |choice| match choice {
        Choice::Pass => ("pass".to_owned(), "pass".to_owned()),
        Choice::Endpoint(index) => {
            let address = view.get(index).map_or_else(|| "none".to_owned(), |endpoint| endpoint.address.to_string());
            ("endpoint".to_owned(), format!("endpoint {index} ({address})"))
        }
        Choice::Hash(key) => ("hash".to_owned(), format!("hash {key:016x}")),
        Choice::None => ("none".to_owned(), "none".to_owned()),
    };
    difference(values(stood), values(shadow), |a, b| a == b, words)
}

/// A forwarding policy's decision, and what it made of the proposal.
pub(crate) type Identified<'a> = (&'a Decision<()>, &'a Identity);

pub(crate) fn of_identities(stood: Identified<'_>, shadow: Identified<'_>) -> Option<Difference> {
    fn with<'a>((decision, identity): Identified<'a>) -> Result<&'a Identity, &'a PolicyFault> {
        decision.as_ref().map(|_| identity)
    }
    // The chain tells of clients: how long it is says enough.
    let words = |identity: &Identity| {
        let Families { forwarded, x_forwarded, x_real_ip } = identity.families;
        let families = [("forwarded", forwarded), ("x_forwarded", x_forwarded), ("x_real_ip", x_real_ip)];
        let sent: Vec<&str> = families.iter().filter(|(_, sent)| *sent).map(|(name, _)| *name).collect();
        ("identity".to_owned(), format!("{} elements as {}", identity.elements.len(), sent.join(" ")))
    };
    difference(with(stood), with(shadow), |a, b| a == b, words)
}

pub(crate) fn of_verdicts(stood: &Decision<Verdict>, shadow: &Decision<Verdict>) -> Option<Difference> {
    let words = |verdict| match verdict {
        Verdict::Stop => ("stop".to_owned(), "stop".to_owned()),
        Verdict::Again(pause) => ("again".to_owned(), format!("again after {pause:?}")),
        Verdict::Elsewhere(pause) => ("elsewhere".to_owned(), format!("elsewhere after {pause:?}")),
    };
    difference(values(stood), values(shadow), |a, b| a == b, words)
}

pub(crate) fn of_tunnels(stood: &Decision<TunnelAnswer>, shadow: &Decision<TunnelAnswer>) -> Option<Difference> {
    fn answer(decision: &Decision<TunnelAnswer>) -> Result<&TunnelAnswer, &PolicyFault> {
        decision.as_ref().map(|answered| &answered.value)
    }
    let words = |answer: &TunnelAnswer| {
        let words = match answer {
            TunnelAnswer::Pass => "pass".to_owned(),
            TunnelAnswer::Forward(cluster) => format!("forward {cluster}"),
            TunnelAnswer::Refuse => "refuse".to_owned(),
        };
        (words.clone(), words)
    };
    difference(answer(stood), answer(shadow), |a, b| a == b, words)
}

fn values<T: Copy>(decision: &Decision<T>) -> Result<T, &PolicyFault> {
    decision.as_ref().map(|answered| answered.value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, StatusCode};
    use tidegate_policy::contract::endpoints;
    use tidegate_policy::{Answered, DirectResponse, PolicyFaultKind};

    use super::*;

    fn route(answer: RouteAnswer) -> Decision<RouteAnswer> {
        Ok(Answered::native(answer))
    }

    fn failed<T>() -> Decision<T> {
        Err(PolicyFault { kind: PolicyFaultKind::Trap, ..PolicyFault::invalid("unreachable") })
    }

    fn kinds(difference: Option<Difference>) -> Option<String> {
        difference.map(|difference| difference.kind.join(" | "))
    }

    #[test]
    fn routes_are_told_apart_by_where_they_lead_and_what_they_edit() {
        let (none, mut some) = (RequestEdits::default(), RequestEdits::default());
        some.headers.set("x-plan", b"secret").expect("a field");
        let forward = |name: &str| route(RouteAnswer::Forward(name.into()));
        let respond = |status, body: &'static str| {
            let status = StatusCode::from_u16(status).expect("a status");
            let response = DirectResponse { status, headers: HeaderMap::new(), body: body.into() };
            route(RouteAnswer::Respond(Box::new(response)))
        };
        let of = |a: &Decision<RouteAnswer>, b: &Decision<RouteAnswer>| kinds(of_routes((a, &none), (b, &none)));
        assert_eq!(of(&forward("a"), &forward("a")), None);
        assert_eq!(of(&forward("a"), &forward("b")).as_deref(), Some("forward a | forward b"));
        assert_eq!(of(&route(RouteAnswer::Pass), &respond(403, "")).as_deref(), Some("pass | respond 403"));
        assert_eq!(of(&respond(403, "x"), &respond(403, "x")), None);
        assert_eq!(of(&respond(403, "x"), &respond(403, "y")).as_deref(), Some("respond 403 | another respond 403"));
        assert_eq!(of(&forward("a"), &failed()).as_deref(), Some("forward a | failed: trap"));
        assert_eq!(of(&failed(), &failed()), None);
        let edited = of_routes((&forward("a"), &none), (&forward("a"), &some)).expect("another edit");
        assert_eq!(edited.kind[1], "another forward a");
        assert_eq!(edited.exact, ["forward a", "forward a, edits x-plan"]);
        let long = of_routes((&forward(&"é".repeat(500)), &none), (&forward("a"), &none)).expect("a difference");
        assert!(long.kind[0].len() <= MAX_WORDS + 3, "{}", long.kind[0]);
    }

    #[test]
    fn one_group_holds_all_pairs_of_endpoints_and_all_pauses() {
        let view = EndpointsView::new(endpoints(&[1, 1, 1]), Duration::ZERO);
        let pick = |choice| Ok(Answered::native(choice));
        let of = |a, b| of_picks(&pick(a), &pick(b), &view);
        assert_eq!(of(Choice::Endpoint(1), Choice::Endpoint(1)), None);
        let two = of(Choice::Endpoint(0), Choice::Endpoint(2)).expect("a difference");
        assert_eq!(two.kind, ["endpoint", "another endpoint"]);
        assert_eq!(two.exact, ["endpoint 0 (127.0.0.1:9000)", "endpoint 2 (127.0.0.1:9002)"]);
        assert_eq!(kinds(of(Choice::Hash(1), Choice::Pass)).as_deref(), Some("hash | pass"));
        let decide = |verdict| Ok(Answered::native(verdict));
        let again = |ms| decide(Verdict::Again(Duration::from_millis(ms)));
        assert_eq!(of_verdicts(&again(1), &again(1)), None);
        assert_eq!(kinds(of_verdicts(&again(1), &again(2))).as_deref(), Some("again | another again"));
        assert_eq!(kinds(of_verdicts(&decide(Verdict::Stop), &again(2))).as_deref(), Some("stop | again"));
    }

    #[test]
    fn tunnels_are_told_apart_by_where_they_lead() {
        let tunnel = |answer| Ok(Answered::native(answer));
        let forward = |name: &str| tunnel(TunnelAnswer::Forward(name.into()));
        let refuse = || tunnel(TunnelAnswer::Refuse);
        assert_eq!(of_tunnels(&forward("a"), &forward("a")), None);
        assert_eq!(of_tunnels(&refuse(), &refuse()), None);
        assert_eq!(kinds(of_tunnels(&forward("a"), &forward("b"))).as_deref(), Some("forward a | forward b"));
        assert_eq!(kinds(of_tunnels(&tunnel(TunnelAnswer::Pass), &refuse())).as_deref(), Some("pass | refuse"));
        assert_eq!(kinds(of_tunnels(&refuse(), &failed())).as_deref(), Some("refuse | failed: trap"));
    }
}
