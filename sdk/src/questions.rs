//! The traits a policy implements.

use serde::de::DeserializeOwned;

use crate::{Attempt, Choice, Connection, Endpoints, Forward, Identity, Request, Route, TunnelRoute, Verdict};

/// A policy, made once per instance from its settings.
pub trait Policy: Sized + 'static {
    /// The plugin's `settings` table.
    type Settings: DeserializeOwned;

    /// Called before any question. An error keeps the old configuration alive, and is shown to whoever loaded it.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// JSON Schema of the settings, which the gateway checks them against first.
    fn settings_schema() -> Option<String> {
        None
    }
}

/// Answers where a request goes: once per exchange, at its head.
pub trait Router: Policy {
    /// Edits made through `forward` count if the answer is `Pass` or `Forward`.
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route;
}

/// Answers which endpoint takes an attempt.
///
/// ```
/// use tidegate_sdk::testing::{Endpoint, Question};
/// use tidegate_sdk::{Balancer, Choice, Endpoints, Policy, Request};
///
/// /// Keeps a client at its endpoint; the gateway's consistent hash finds it.
/// struct ByUser;
///
/// impl Policy for ByUser {
///     type Settings = serde::de::IgnoredAny;
///     fn new(_: Self::Settings) -> Result<Self, String> {
///         Ok(Self)
///     }
/// }
///
/// impl Balancer for ByUser {
///     fn pick(&mut self, request: &Request, _: &Endpoints) -> Choice {
///         let user = request.header("x-user").unwrap_or_default();
///         Choice::Hash(user.bytes().fold(0, |hash, byte| hash * 31 + u64::from(byte)))
///     }
/// }
///
/// tidegate_sdk::balancer!(ByUser);
///
/// let pick = |user: &str| Question::get("/").header("x-user", user).endpoint(Endpoint::default()).pick(&mut ByUser);
/// assert_eq!(pick("a"), pick("a"));
/// assert_ne!(pick("a"), pick("b"));
/// ```
pub trait Balancer: Policy {
    fn pick(&mut self, request: &Request, endpoints: &Endpoints) -> Choice;
}

/// Decides what the upstream learns of the client: once per exchange, after routing.
///
/// ```
/// use tidegate_sdk::testing::Question;
/// use tidegate_sdk::{Element, Forwarding, Identity, Node, Policy, Request};
///
/// /// Tells that there is a client, and nothing of it.
/// struct Nameless;
///
/// impl Policy for Nameless {
///     type Settings = serde::de::IgnoredAny;
///     fn new(_: Self::Settings) -> Result<Self, String> {
///         Ok(Self)
///     }
/// }
///
/// impl Forwarding for Nameless {
///     fn identify(&mut self, _: &Request, identity: &mut Identity) {
///         let element = Element { r#for: Some(Node::Unknown), ..Element::default() };
///         // A chain that the gateway cannot write leaves the configured one in force.
///         let _ = identity.set_elements(vec![element]);
///     }
/// }
///
/// tidegate_sdk::forwarding!(Nameless);
///
/// let mut question = Question::get("/");
/// question.identify(&mut Nameless);
/// assert_eq!(question.edited.elements.expect("a chain")[0].r#for, Some(Node::Unknown));
/// ```
pub trait Forwarding: Policy {
    /// Without an edit the configured rule stands.
    fn identify(&mut self, request: &Request, identity: &mut Identity);
}

/// Decides whether to try again after a failed attempt.
///
/// ```
/// use std::time::Duration;
/// use tidegate_sdk::testing::Question;
/// use tidegate_sdk::{Attempt, Cause, Endpoints, Policy, Proof, Request, Retry, Verdict};
///
/// /// Elsewhere at once, if the origin was not reached.
/// struct Unreached;
///
/// impl Policy for Unreached {
///     type Settings = serde::de::IgnoredAny;
///     fn new(_: Self::Settings) -> Result<Self, String> {
///         Ok(Self)
///     }
/// }
///
/// impl Retry for Unreached {
///     fn decide(&mut self, _: &Request, attempt: &Attempt, _: &Endpoints) -> Verdict {
///         match attempt.failure() {
///             Cause::Connect | Cause::Tls => Verdict::Elsewhere(Duration::ZERO),
///             _ => Verdict::Stop,
///         }
///     }
/// }
///
/// tidegate_sdk::retry!(Unreached);
///
/// let ask = |failure| Question::get("/").failed(failure, Proof::Unprocessed).decide(&mut Unreached);
/// assert_eq!(ask(Cause::Connect), Verdict::Elsewhere(Duration::ZERO));
/// assert_eq!(ask(Cause::Status(503)), Verdict::Stop);
/// ```
pub trait Retry: Policy {
    fn decide(&mut self, request: &Request, attempt: &Attempt, endpoints: &Endpoints) -> Verdict;
}

/// Answers where a connection goes that the gateway does not decrypt: once, before any upstream is touched.
///
/// ```
/// use tidegate_sdk::testing::Question;
/// use tidegate_sdk::{Connection, Policy, TunnelRoute, TunnelRouter};
///
/// /// `NAME.shops.example` goes to the cluster `shop-NAME`; who names nothing goes nowhere.
/// struct Shops;
///
/// impl Policy for Shops {
///     type Settings = serde::de::IgnoredAny;
///     fn new(_: Self::Settings) -> Result<Self, String> {
///         Ok(Self)
///     }
/// }
///
/// impl TunnelRouter for Shops {
///     fn route(&mut self, connection: &Connection) -> TunnelRoute {
///         let Some(name) = connection.server_name() else { return TunnelRoute::Refuse };
///         match name.strip_suffix(".shops.example") {
///             Some(shop) => TunnelRoute::Forward(format!("shop-{shop}")),
///             None => TunnelRoute::Pass,
///         }
///     }
/// }
///
/// tidegate_sdk::tunnel_router!(Shops);
///
/// let ask = |name: &str| Question::connection(name).tunnel(&mut Shops);
/// assert_eq!(ask("tea.shops.example"), TunnelRoute::Forward("shop-tea".into()));
/// assert_eq!(ask("other.example"), TunnelRoute::Pass);
/// let mut nameless = Question { server_name: None, ..Question::connection("") };
/// assert_eq!(nameless.tunnel(&mut Shops), TunnelRoute::Refuse);
/// ```
pub trait TunnelRouter: Policy {
    fn route(&mut self, connection: &Connection) -> TunnelRoute;
}
