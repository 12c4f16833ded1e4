//! The component: it exports the policy as the answer to its question.

pub mod policy;

tidegate_sdk::tunnel_router!(policy::Names);
