//! Retries by method, status, gRPC status and Retry-After: the component. The policy is in `policy`.

pub mod policy;

tidegate_sdk::retry!(policy::CarefulRetry);
