//! Reads a path and two header fields, and answers by them: what benchmarks and memoisation tests ask. Tells of a field of
//! the PROXY header.

use serde::Deserialize;
use tidegate_sdk::{Forward, Policy, Request, Route, Router};

#[derive(Deserialize)]
pub struct Settings {}

pub struct Reader;

impl Policy for Reader {
    type Settings = Settings;

    fn new(_: Settings) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Router for Reader {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        let path = request.path();
        if path.starts_with("/edit") {
            let _ = forward.set_header("x-edited", path.as_bytes());
            forward.set_note("seen", &path);
        }
        if let Some(kind) = path.strip_prefix("/tlv/").and_then(|kind| kind.parse().ok()) {
            let value = request.connection().proxy_tlv(kind);
            let _ = forward.set_header("x-tlv", value.as_deref().unwrap_or(b"none"));
        }
        if !path.starts_with("/v1") {
            return Route::Pass;
        }
        match (request.header("x-tenant"), request.header("x-env")) {
            (Some(tenant), Some(env)) if env == "beta" => Route::Forward(format!("{tenant}-beta")),
            (Some(tenant), _) => Route::Forward(tenant),
            (None, _) => Route::Forward("shared".to_owned()),
        }
    }
}

tidegate_sdk::router!(Reader);
