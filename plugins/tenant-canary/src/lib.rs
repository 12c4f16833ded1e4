//! Routes by tenant, with weighted, sticky canaries: the component. The policy is in `policy`.

pub mod policy;

tidegate_sdk::router!(policy::TenantCanary);
