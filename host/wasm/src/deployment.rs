//! A plugin as routes and clusters have it: alone, with a next version that takes part of its exchanges, with a shadow that
//! is compared, or with both.

use std::sync::Arc;

use tidegate_policy::{Balancer, Forwarding, Retry, Router, TunnelRouter};

use crate::plugin::Plugin;
use crate::rollout::{Rollout, Split};
use crate::shadow::{Shadow, Shadowed};

/// What answers the questions that a plugin is named for.
#[derive(Clone)]
pub struct Deployment {
    pub plugin: Arc<Plugin>,
    /// The next version, and how it takes over. It answers every question that `plugin` does.
    pub rollout: Option<(Arc<Plugin>, Arc<Rollout>)>,
    /// It too.
    pub shadow: Option<Arc<Shadow>>,
}

/// The policy of one question. The shadow is beside each version, so that it is compared with the answer that stood.
macro_rules! policy {
    ($self:ident, $question:ident, $policy:ident) => {{
        let policy = |plugin: &Plugin| -> Option<Arc<dyn $policy>> {
            let policy = plugin.$question()?;
            Some(match &$self.shadow {
                Some(shadow) => Arc::new(Shadowed { policy, shadow: shadow.clone() }),
                None => policy,
            })
        };
        let current = policy(&$self.plugin)?;
        match &$self.rollout {
            Some((next, rollout)) => Some(Arc::new(Split::new(current, policy(next)?, rollout))),
            None => Some(current),
        }
    }};
}

impl Deployment {
    /// Of a plugin alone.
    pub fn of(plugin: Arc<Plugin>) -> Self {
        Self { plugin, rollout: None, shadow: None }
    }

    pub fn router(&self) -> Option<Arc<dyn Router>> {
        policy!(self, router, Router)
    }

    pub fn tunnel_router(&self) -> Option<Arc<dyn TunnelRouter>> {
        policy!(self, tunnel_router, TunnelRouter)
    }

    pub fn balancer(&self) -> Option<Arc<dyn Balancer>> {
        policy!(self, balancer, Balancer)
    }

    pub fn forwarding(&self) -> Option<Arc<dyn Forwarding>> {
        policy!(self, forwarding, Forwarding)
    }

    pub fn retry(&self) -> Option<Arc<dyn Retry>> {
        policy!(self, retry, Retry)
    }
}
