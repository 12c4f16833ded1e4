//! Which tenant, and which version of it.

use serde::Deserialize;
use serde_json::json;
use tidegate_sdk::{Forward, Policy, Request, Response, Route, Router};

/// Where a tenant's name, or a stickiness key, is read.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum From {
    Header(String),
    Cookie(String),
    /// The first label of the host: `a` of `a.example.com`.
    Subdomain,
    ClientIp,
}

impl From {
    fn read(&self, request: &Request) -> Option<String> {
        match self {
            Self::Header(name) => request.header(name),
            Self::Cookie(name) => request.cookie(name),
            Self::Subdomain => {
                let authority = request.authority();
                let (label, rest) = authority.split_once('.')?;
                (!rest.is_empty()).then(|| label.to_owned())
            }
            Self::ClientIp => Some(request.client().to_string()),
        }
    }
}

/// A share of a tenant's requests that goes elsewhere.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    pub cluster: String,
    /// Of 100.
    pub percent: f64,
    /// Whose requests stay together. Default: the client's address.
    #[serde(default = "client_ip")]
    pub sticky_by: From,
    /// A field that asks for the canary (`always`) or against it (`never`).
    #[serde(default)]
    pub force_header: Option<String>,
}

fn client_ip() -> From {
    From::ClientIp
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub name: String,
    pub cluster: String,
    #[serde(default)]
    pub canary: Option<Canary>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub tenant_from: Vec<From>,
    pub tenants: Vec<Tenant>,
    /// The cluster of requests without a known tenant; without it they are refused.
    #[serde(default)]
    pub default: Option<String>,
}

/// The policy.
pub struct TenantCanary(Settings);

impl Policy for TenantCanary {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        for tenant in &settings.tenants {
            if let Some(canary) = tenant.canary.as_ref().filter(|canary| !(0.0..=100.0).contains(&canary.percent)) {
                return Err(format!("tenant {:?}: percent = {} is not from 0 to 100", tenant.name, canary.percent));
            }
        }
        Ok(Self(settings))
    }

    fn settings_schema() -> Option<String> {
        let from = json!({ "anyOf": [
            { "enum": ["subdomain", "client_ip"] },
            { "type": "object", "properties": { "header": { "type": "string" } }, "required": ["header"], "additionalProperties": false },
            { "type": "object", "properties": { "cookie": { "type": "string" } }, "required": ["cookie"], "additionalProperties": false },
        ] });
        let canary = json!({ "type": "object", "additionalProperties": false, "required": ["cluster", "percent"], "properties": {
            "cluster": { "type": "string" }, "percent": { "type": "number", "minimum": 0, "maximum": 100 },
            "sticky_by": from, "force_header": { "type": "string" },
        } });
        let tenant = json!({ "type": "object", "additionalProperties": false, "required": ["name", "cluster"], "properties": {
            "name": { "type": "string" }, "cluster": { "type": "string" }, "canary": canary,
        } });
        let schema = json!({ "type": "object", "additionalProperties": false, "required": ["tenant_from", "tenants"], "properties": {
            "tenant_from": { "type": "array", "items": from, "minItems": 1 },
            "tenants": { "type": "array", "items": tenant },
            "default": { "type": "string" },
        } });
        Some(schema.to_string())
    }
}

impl Router for TenantCanary {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        let settings = &self.0;
        let known = settings.tenant_from.iter().find_map(|from| {
            let name = from.read(request)?;
            settings.tenants.iter().find(|tenant| tenant.name == name)
        });
        let Some(tenant) = known else {
            return match &settings.default {
                Some(cluster) => Route::Forward(cluster.clone()),
                None => {
                    Route::Respond(Response { status: 404, body: b"unknown tenant\n".to_vec(), ..Response::default() })
                }
            };
        };
        forward.set_note("tenant", &tenant.name);
        match tenant.canary.as_ref().filter(|canary| canary.takes(&tenant.name, request)) {
            Some(canary) => {
                // Refused only where the field is not granted: then the client does not learn which version it got.
                let _ = forward.set_response_header("x-canary", b"yes");
                Route::Forward(canary.cluster.clone())
            }
            None => Route::Forward(tenant.cluster.clone()),
        }
    }
}

impl Canary {
    /// By a stable hash: whoever got the canary keeps it, and a higher percentage only adds.
    fn takes(&self, tenant: &str, request: &Request) -> bool {
        match self.force_header.as_deref().and_then(|name| request.header(name)).as_deref() {
            Some("always") => return true,
            Some("never") => return false,
            _ => {}
        }
        let Some(key) = self.sticky_by.read(request) else { return false };
        let place = hash(tenant, &key) % 10_000;
        (place as f64) < self.percent * 100.0
    }
}

/// FNV-1a with a final mix: short keys spread evenly.
fn hash(tenant: &str, key: &str) -> u64 {
    let bytes = tenant.bytes().chain([0]).chain(key.bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    fn policy(percent: f64) -> TenantCanary {
        configure(json!({
            "tenant_from": [{ "header": "x-tenant" }, { "cookie": "tenant" }, "subdomain"],
            "tenants": [
                { "name": "a", "cluster": "a-stable", "canary": {
                    "cluster": "a-next", "percent": percent, "sticky_by": { "cookie": "sid" }, "force_header": "x-canary",
                } },
                { "name": "b", "cluster": "b-stable" },
            ],
            "default": "shared",
        }))
        .expect("good settings")
    }

    fn to(cluster: &str) -> Route {
        Route::Forward(cluster.to_owned())
    }

    #[test]
    fn the_tenant_is_found_in_order() {
        let mut policy = policy(0.0);
        assert_eq!(Question::get("/").route(&mut policy), to("shared"));
        assert_eq!(Question::get("/").header("x-tenant", "b").route(&mut policy), to("b-stable"));
        assert_eq!(Question::get("/").header("cookie", "x=1; tenant=a").route(&mut policy), to("a-stable"));
        let mut by_host = Question::get("/");
        by_host.authority = "b.example.com".to_owned();
        assert_eq!(by_host.route(&mut policy), to("b-stable"));
        assert_eq!(Question::get("/").header("x-tenant", "zzz").route(&mut policy), to("shared"));
    }

    #[test]
    fn a_canary_takes_its_share_and_keeps_whom_it_has() {
        let share = |percent: f64| -> Vec<bool> {
            let mut policy = policy(percent);
            (0..1000)
                .map(|sid| {
                    Question::get("/")
                        .header("x-tenant", "a")
                        .header("cookie", &format!("sid={sid}"))
                        .route(&mut policy)
                        == to("a-next")
                })
                .collect()
        };
        let (ten, thirty) = (share(10.0), share(30.0));
        let count = |taken: &[bool]| taken.iter().filter(|taken| **taken).count();
        assert!((60..140).contains(&count(&ten)), "{}", count(&ten));
        assert!((240..360).contains(&count(&thirty)), "{}", count(&thirty));
        assert!(ten.iter().zip(&thirty).all(|(ten, thirty)| !ten || *thirty), "a higher share only adds");
        assert_eq!(share(10.0), ten);
    }

    #[test]
    fn a_header_forces_it() {
        let ask = |percent, value: &str| {
            Question::get("/").header("x-tenant", "a").header("x-canary", value).route(&mut policy(percent))
        };
        assert_eq!(ask(0.0, "always"), to("a-next"));
        assert_eq!(ask(100.0, "never"), to("a-stable"));
    }

    #[test]
    fn without_a_default_strangers_are_refused() {
        let mut policy: TenantCanary =
            configure(json!({ "tenant_from": ["client_ip"], "tenants": [] })).expect("good settings");
        assert!(matches!(Question::get("/").route(&mut policy), Route::Respond(Response { status: 404, .. })));
        assert!(configure::<TenantCanary>(json!({ "tenant_from": [], "tenants": [], "x": 1 })).is_err());
    }
}
