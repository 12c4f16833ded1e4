//! Balances by latency and load, avoiding outliers: the component. The policy is in `policy`.

pub mod policy;

tidegate_sdk::balancer!(policy::LatencyAware);
