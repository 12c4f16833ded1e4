//! The component: it exports the policy as the answer to its question.

pub mod policy;

tidegate_sdk::router!(policy::Tenants);
