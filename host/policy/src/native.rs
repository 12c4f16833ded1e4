//! The native answers: the gateway is whole without a plugin.

mod draw;
mod forwarded;
mod forwarding_fields;
mod hop_by_hop;
mod least_request;
mod maglev;
mod peak_ewma;
mod retry_budget;
mod retry_rules;
mod round_robin;
mod route_table;
mod standard_forwarding;
mod tunnel_table;

pub use forwarded::parse_forwarded;
pub use forwarding_fields::render_forwarded;
pub use hop_by_hop::{Nominated, is_hop_by_hop};
pub use least_request::LeastRequest;
pub use maglev::{HashOn, Maglev, maglev_table};
pub use peak_ewma::PeakEwma;
pub use retry_budget::RetryBudget;
#[cfg(fuzzing)]
pub(crate) use retry_rules::retry_after;
pub use retry_rules::{RetryOn, RetryRules, permitted};
pub use round_robin::RoundRobin;
pub use route_table::{HostPattern, PathPattern, RouteRule, RouteTable, Split, ValuePattern};
pub use standard_forwarding::{
    ForwardingMode, StandardForwarding, TrustedFamily, conflicting_claims, is_identity_field, received_identity,
};
pub use tunnel_table::{TunnelRule, TunnelTable};
