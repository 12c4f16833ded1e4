//! Asks a service of one's own whether a request may pass.
//!
//! The service gets a `GET` with the fields of `send`, and the method and target of the request in `x-original-method` and
//! `x-original-target`. A status of 2xx lets the request pass, with the fields of `take` as the service set them; a client's
//! own are removed. A status from 400 to 499 is the client's answer. Anything else, and no answer at all, is 503.

use tidegate_sdk::http_client::{self, Error};
use tidegate_sdk::{Forward, Level, Policy, Request, Response, Route, Router, log};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A cluster.
    service: String,
    path: String,
    /// Lower-case names: fields of the request that the service sees.
    #[serde(default)]
    send: Vec<String>,
    /// Fields of its response that the upstream sees.
    #[serde(default)]
    take: Vec<String>,
}

pub struct ExtAuthz(Settings);

impl Policy for ExtAuthz {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if !settings.path.starts_with('/') {
            return Err(format!("path = {:?} does not begin with /", settings.path));
        }
        Ok(Self(settings))
    }
}

impl ExtAuthz {
    fn asked(&self, request: &Request) -> Result<Response, Error> {
        let mut target = request.path();
        if let Some(query) = request.query() {
            target = format!("{target}?{query}");
        }
        let mut call = http_client::Request::get(&self.0.service, &self.0.path)
            .header("x-original-method", request.method())
            .header("x-original-target", target);
        for name in &self.0.send {
            if let Some(value) = request.header_bytes(name) {
                call = call.header(name, value);
            }
        }
        call.send()
    }
}

impl Router for ExtAuthz {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        let response = match self.asked(request) {
            Ok(response) => response,
            Err(error) => {
                log(Level::Warn, &format!("the service gave no answer: {error}"));
                return refuse(503);
            }
        };
        match response.status {
            200..=299 => {
                for name in &self.0.take {
                    let value = response.headers.iter().find(|(field, _)| field == name);
                    let edited = match value {
                        Some((_, value)) => forward.set_header(name, value),
                        None => forward.remove_header(name),
                    };
                    // A client must not name its user itself.
                    if edited.is_err() {
                        return refuse(503);
                    }
                }
                Route::Pass
            }
            status @ 400..=499 => {
                let challenge = |(name, _): &(String, Vec<u8>)| name == "www-authenticate";
                let headers = response.headers.into_iter().filter(challenge).collect();
                Route::Respond(Response { status, headers, body: response.body })
            }
            _ => refuse(503),
        }
    }
}

fn refuse(status: u16) -> Route {
    Route::Respond(Response { status, headers: Vec::new(), body: Vec::new() })
}

tidegate_sdk::router!(ExtAuthz);

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    fn policy() -> ExtAuthz {
        let settings =
            serde_json::json!({ "service": "auth", "path": "/check", "send": ["authorization"], "take": ["x-user"] });
        configure(settings).expect("settings")
    }

    fn answers(
        status: u16,
        fields: &[(&str, &str)],
    ) -> impl Fn(&http_client::Request) -> Result<Response, Error> + 'static {
        let headers = fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_owned())).collect();
        let response = Response { status, headers, body: b"why".to_vec() };
        move |_| Ok(response.clone())
    }

    #[test]
    fn the_service_decides() {
        let question = |status, fields: &[(&str, &str)]| {
            Question::get("/a?b=c")
                .header("authorization", "Bearer x")
                .header("x-private", "y")
                .header("x-user", "forged")
                .origin("auth", answers(status, fields))
        };
        let mut passes = question(200, &[("x-user", "somebody")]);
        assert_eq!(passes.route(&mut policy()), Route::Pass);
        assert_eq!(passes.edited.headers, [("x-user".to_owned(), Some(b"somebody".to_vec()))]);
        let names: Vec<&str> = passes.called[0].headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-original-method", "x-original-target", "authorization"]);
        let mut nobody = question(204, &[]);
        assert_eq!(nobody.route(&mut policy()), Route::Pass);
        assert_eq!(nobody.edited.headers, [("x-user".to_owned(), None)], "what a client claims does not pass");
        let refused = question(401, &[("www-authenticate", "Bearer"), ("x-secret", "1")]).route(&mut policy());
        let Route::Respond(refused) = refused else { panic!("{refused:?}") };
        assert_eq!((refused.status, refused.headers.len(), &refused.body[..]), (401, 1, &b"why"[..]));
    }

    #[test]
    fn without_an_answer_nobody_passes() {
        let failing = [
            Question::get("/").origin("auth", |_| Err(Error::TimedOut)),
            Question::get("/").origin("auth", answers(500, &[])),
            Question::get("/"),
        ];
        for mut question in failing {
            assert!(matches!(question.route(&mut policy()), Route::Respond(response) if response.status == 503));
        }
    }
}
