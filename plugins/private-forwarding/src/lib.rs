//! Tells origins of clients by obfuscated identifiers: the component. The policy is in `policy`.

pub mod policy;

tidegate_sdk::forwarding!(policy::PrivateForwarding);
