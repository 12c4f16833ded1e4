//! Asks a service by `http-client` and answers by what it says: what the tests of callouts load. Built once per question.

use std::time::Duration;

use serde::Deserialize;
use tidegate_sdk::http_client::{self, Error};
use tidegate_sdk::{
    Attempt, Balancer, Choice, Element, Endpoints, Forward, Forwarding, Identity, Node, Policy, Request, Response,
    Retry, Route, Router, Verdict,
};

#[derive(Deserialize)]
#[serde(default)]
pub struct Settings {
    cluster: String,
    method: String,
    /// A path of its own; else that of the request below `/check`.
    path: String,
    fields: Vec<(String, String)>,
    /// Bytes of the call's body.
    body: usize,
    timeout_ms: Option<u64>,
    /// Calls, one after the other.
    times: u32,
    /// Additions before and after the calls.
    work: u64,
    /// Calls as it is configured, too, and refuses what comes of it.
    at_once: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "auth".to_owned(),
            method: "GET".to_owned(),
            path: String::new(),
            fields: Vec::new(),
            body: 0,
            timeout_ms: None,
            times: 1,
            work: 0,
            at_once: false,
        }
    }
}

pub struct Caller {
    settings: Settings,
    asked: u64,
}

impl Policy for Caller {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.at_once {
            let called = http_client::Request::get(&settings.cluster, "/").send();
            return Err(format!("called as it is configured: {called:?}"));
        }
        Ok(Self { settings, asked: 0 })
    }
}

impl Caller {
    fn work(&self) {
        for step in 0..self.settings.work {
            std::hint::black_box(step);
        }
    }

    /// What the last call came to.
    fn call(&mut self, request: &Request) -> Result<Response, Error> {
        self.asked += 1;
        self.work();
        let Settings { cluster, method, path, fields, body, timeout_ms, times, .. } = &self.settings;
        let path = if path.is_empty() { format!("/check{}", request.path()) } else { path.clone() };
        let mut call = http_client::Request::new(method, cluster, &path);
        for (name, value) in fields {
            call = call.header(name, value);
        }
        if let Some(token) = request.header("authorization") {
            call = call.header("authorization", token);
        }
        call.body = vec![b'x'; *body];
        call.timeout = timeout_ms.map(Duration::from_millis);
        let called = (1..*times).fold(call.send(), |_, _| call.send());
        self.work();
        called
    }

    fn words(&mut self, request: &Request) -> String {
        match self.call(request) {
            Ok(response) => String::from_utf8_lossy(&response.body).into_owned(),
            Err(error) => format!("{error:?}"),
        }
    }
}

impl Router for Caller {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        if request.path() == "/free" {
            return Route::Pass;
        }
        let called = self.call(request);
        let _ = forward.set_response_header("x-asked", self.asked.to_string().as_bytes());
        let respond =
            |status, why: String| Route::Respond(Response { status, headers: Vec::new(), body: why.into_bytes() });
        match called {
            Ok(response) if response.status == 200 => {
                let user = response.headers.iter().find(|(name, _)| name == "x-user");
                let _ = forward.set_header("x-user", user.map_or(b"nobody".as_slice(), |(_, value)| value));
                let _ = forward.set_header("x-answer-bytes", response.body.len().to_string().as_bytes());
                Route::Pass
            }
            Ok(response) => respond(403, format!("the service says {}", response.status)),
            Err(error) => respond(503, format!("{error:?}")),
        }
    }
}

impl Balancer for Caller {
    fn pick(&mut self, request: &Request, _: &Endpoints) -> Choice {
        self.words(request).parse().map_or(Choice::Pass, Choice::Endpoint)
    }
}

impl Forwarding for Caller {
    fn identify(&mut self, request: &Request, identity: &mut Identity) {
        let node = Node::Obfuscated(format!("_{}", self.words(request)));
        let _ = identity.set_elements(vec![Element { r#for: Some(node), ..Element::default() }]);
    }
}

impl Retry for Caller {
    fn decide(&mut self, request: &Request, _: &Attempt, _: &Endpoints) -> Verdict {
        match self.words(request).as_str() {
            "again" => Verdict::Again(Duration::ZERO),
            _ => Verdict::Stop,
        }
    }
}

#[cfg(not(any(feature = "balancer", feature = "forwarding", feature = "retry")))]
tidegate_sdk::router!(Caller);
#[cfg(feature = "balancer")]
tidegate_sdk::balancer!(Caller);
#[cfg(feature = "forwarding")]
tidegate_sdk::forwarding!(Caller);
#[cfg(feature = "retry")]
tidegate_sdk::retry!(Caller);
