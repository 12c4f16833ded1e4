//! Tells every fact of its question, so that a test sees whether the facts that come along are those that are called for.
//! Built once per question.

use std::time::Duration;

use serde::Deserialize;
use tidegate_sdk::{
    Attempt, Balancer, Choice, Element, Endpoints, Forward, Forwarding, Identity, Policy, Request, Response, Retry,
    Route, Router, Verdict, random,
};

#[derive(Deserialize)]
pub struct Settings {
    /// With which fact it begins: only so many come along, and these are they.
    first: usize,
}

pub struct Teller {
    first: usize,
}

impl Policy for Teller {
    type Settings = Settings;

    fn new(Settings { first }: Settings) -> Result<Self, String> {
        Ok(Self { first })
    }
}

type Fact<'a> = (&'static str, Box<dyn Fn() -> String + 'a>);

fn of_request(request: &Request) -> Vec<Fact<'_>> {
    vec![
        ("client", Box::new(|| request.client().to_string())),
        ("version", Box::new(|| format!("{:?}", request.version()))),
        ("method", Box::new(|| request.method())),
        ("scheme", Box::new(|| format!("{:?}", request.scheme()))),
        ("authority", Box::new(|| request.authority())),
        ("path", Box::new(|| request.path())),
        ("query", Box::new(|| format!("{:?}", request.query()))),
        ("tenant", Box::new(|| format!("{:?}", request.header_bytes("x-tenant")))),
        ("tenant as text", Box::new(|| format!("{:?}", request.header("x-tenant")))),
        ("absent", Box::new(|| format!("{:?}", request.header_bytes("x-absent")))),
        ("tenants", Box::new(|| format!("{:?}", request.header_values("x-tenant")))),
        ("sid", Box::new(|| format!("{:?}", request.cookie("sid")))),
        ("note", Box::new(|| format!("{:?}", request.note("seen")))),
    ]
}

/// Not for retry policies, whose world has none.
fn of_connection(request: &Request) -> Vec<Fact<'_>> {
    vec![
        ("peer", Box::new(|| request.connection().peer().to_string())),
        ("connection's client", Box::new(|| request.connection().client().to_string())),
        ("local", Box::new(|| request.connection().local().to_string())),
        ("listener", Box::new(|| request.connection().listener())),
        ("server name", Box::new(|| format!("{:?}", request.connection().server_name()))),
        ("alpn", Box::new(|| format!("{:?}", request.connection().alpn()))),
    ]
}

fn of_endpoints(endpoints: &Endpoints) -> Vec<Fact<'_>> {
    let each = |of: &dyn Fn(u32) -> String| (0..endpoints.size() + 1).map(of).collect::<Vec<_>>().join(" ");
    vec![
        ("cluster", Box::new(|| endpoints.cluster())),
        ("generation", Box::new(|| endpoints.generation().to_string())),
        ("size", Box::new(|| endpoints.size().to_string())),
        ("loads", Box::new(move || each(&|index| format!("{:?}", endpoints.load(index))))),
        ("available", Box::new(move || each(&|index| endpoints.available(index).to_string()))),
        ("in flight", Box::new(move || each(&|index| endpoints.in_flight(index).to_string()))),
        ("latency", Box::new(move || each(&|index| format!("{:?}", endpoints.latency(index))))),
        ("all available", Box::new(|| format!("{:?}", endpoints.availables()))),
        ("all in flight", Box::new(|| format!("{:?}", endpoints.in_flights()))),
        ("all latencies", Box::new(|| format!("{:?}", endpoints.latencies()))),
        ("weights", Box::new(move || each(&|index| endpoints.weight(index).to_string()))),
    ]
}

impl Teller {
    fn told(&self, facts: Vec<Fact<'_>>) -> String {
        let count = facts.len();
        let mut told: Vec<String> = (0..count)
            .map(|index| {
                let (name, fact) = &facts[(self.first + index) % count];
                format!("{name}: {}\n", fact())
            })
            .collect();
        told.sort();
        told.concat()
    }
}

fn hash(told: &str) -> u64 {
    told.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

impl Router for Teller {
    fn route(&mut self, request: &Request, _: &mut Forward) -> Route {
        if request.path() == "/chance" {
            let body = format!("{} {}", random(), random()).into_bytes();
            return Route::Respond(Response { status: 200, headers: Vec::new(), body });
        }
        let mut facts = of_request(request);
        facts.extend(of_connection(request));
        let body = self.told(facts).into_bytes();
        Route::Respond(Response { status: 200, headers: Vec::new(), body })
    }
}

impl Balancer for Teller {
    fn pick(&mut self, request: &Request, endpoints: &Endpoints) -> Choice {
        let mut facts = of_endpoints(endpoints);
        facts.extend(of_request(request));
        facts.extend(of_connection(request));
        Choice::Hash(hash(&self.told(facts)))
    }
}

impl Forwarding for Teller {
    fn identify(&mut self, request: &Request, identity: &mut Identity) {
        let mut facts = of_request(request);
        facts.extend(of_connection(request));
        let chains: Vec<Fact<'_>> = vec![
            ("received", Box::new(|| format!("{:?}", identity.received()))),
            ("proposed", Box::new(|| format!("{:?}", identity.proposed()))),
        ];
        facts.extend(chains);
        let host = Some(format!("{:016x}", hash(&self.told(facts))));
        let _ = identity.set_elements(vec![Element { host, ..Element::default() }]);
    }
}

impl Retry for Teller {
    fn decide(&mut self, request: &Request, attempt: &Attempt, endpoints: &Endpoints) -> Verdict {
        let mut facts: Vec<Fact<'_>> = vec![
            ("number", Box::new(|| attempt.number().to_string())),
            ("endpoint", Box::new(|| attempt.endpoint().to_string())),
            ("failure", Box::new(|| format!("{:?}", attempt.failure()))),
            ("safety", Box::new(|| format!("{:?}", attempt.safety()))),
            ("elapsed", Box::new(|| format!("{:?}", attempt.elapsed()))),
            ("time left", Box::new(|| format!("{:?}", attempt.time_left()))),
            ("retries left", Box::new(|| attempt.retries_left().to_string())),
            ("retry-after", Box::new(|| format!("{:?}", attempt.response_header("retry-after")))),
        ];
        facts.extend(of_endpoints(endpoints));
        facts.extend(of_request(request));
        Verdict::Again(Duration::from_nanos(hash(&self.told(facts)) % 60_000_000_000))
    }
}

#[cfg(not(any(feature = "balancer", feature = "forwarding", feature = "retry")))]
tidegate_sdk::router!(Teller);
#[cfg(feature = "balancer")]
tidegate_sdk::balancer!(Teller);
#[cfg(feature = "forwarding")]
tidegate_sdk::forwarding!(Teller);
#[cfg(feature = "retry")]
tidegate_sdk::retry!(Teller);
