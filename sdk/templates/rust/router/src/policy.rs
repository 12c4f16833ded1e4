//! Routes each request to its tenant's cluster.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use tidegate_sdk::{Forward, Policy, Request, Response, Route, Router};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The field that names the tenant, and tells it to the upstream.
    #[serde(default = "default_header")]
    header: String,
    /// The cookie that names it where the field is absent.
    cookie: Option<String>,
    /// The cluster of each tenant.
    tenants: BTreeMap<String, String>,
    /// The cluster of everybody else; without it the route table decides.
    default: Option<String>,
    /// Tenants that are turned away.
    #[serde(default)]
    blocked: Vec<String>,
    /// Beginnings of paths that are left to the route table.
    #[serde(default)]
    open: Vec<String>,
}

fn default_header() -> String {
    "x-tenant".to_owned()
}

/// The policy.
pub struct Tenants(Settings);

impl Policy for Tenants {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        let name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if settings.header.is_empty() || !settings.header.bytes().all(name_byte) {
            return Err(format!("header: {:?} is not a lower-case field name", settings.header));
        }
        if let Some((tenant, _)) = settings.tenants.iter().find(|(_, cluster)| cluster.is_empty()) {
            return Err(format!("tenants.{tenant}: not a cluster's name"));
        }
        if settings.default.as_deref() == Some("") {
            return Err("default: not a cluster's name".to_owned());
        }
        if let Some(tenant) = settings.blocked.iter().find(|tenant| settings.tenants.contains_key(*tenant)) {
            return Err(format!("blocked: {tenant:?} is in tenants too"));
        }
        if let Some(path) = settings.open.iter().find(|path| !path.starts_with('/')) {
            return Err(format!("open: {path:?} does not begin with /"));
        }
        Ok(Self(settings))
    }

    fn settings_schema() -> Option<String> {
        let text = json!({ "type": "string" });
        let texts = json!({ "type": "array", "items": text });
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["tenants"],
            "properties": {
                "header": text, "cookie": text, "default": text, "blocked": texts, "open": texts,
                "tenants": { "type": "object", "additionalProperties": text },
            },
        });
        Some(schema.to_string())
    }
}

impl Router for Tenants {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        let settings = &self.0;
        let path = request.path();
        if settings.open.iter().any(|open| path.starts_with(open)) {
            return Route::Pass;
        }
        let by_cookie = || settings.cookie.as_deref().and_then(|name| request.cookie(name));
        if let Some(tenant) = request.header(&settings.header).or_else(by_cookie) {
            if settings.blocked.contains(&tenant) {
                return Route::Respond(Response {
                    status: 403,
                    headers: vec![("content-type".to_owned(), b"text/plain".to_vec())],
                    body: format!("tenant {tenant} is blocked\n").into_bytes(),
                });
            }
            if let Some(cluster) = settings.tenants.get(&tenant) {
                // Refused where the field is not granted: the answer holds without it.
                let _ = forward.set_header(&settings.header, tenant.as_bytes());
                forward.set_note("tenant", &tenant);
                return Route::Forward(cluster.clone());
            }
            // Nobody's name goes upstream.
            let _ = forward.remove_header(&settings.header);
        }
        settings.default.clone().map_or(Route::Pass, Route::Forward)
    }
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    #[test]
    fn a_tenant_goes_to_its_cluster() {
        let settings = json!({ "tenants": { "t42": "beta" }, "default": "alpha" });
        let mut policy: Tenants = configure(settings).expect("good settings");
        assert_eq!(Question::get("/").route(&mut policy), Route::Forward("alpha".to_owned()));
        assert_eq!(Question::get("/").header("x-tenant", "t42").route(&mut policy), Route::Forward("beta".to_owned()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let settings = json!({ "tenants": { "t42": "" } });
        assert_eq!(configure::<Tenants>(settings).err().as_deref(), Some("tenants.t42: not a cluster's name"));
    }
}
