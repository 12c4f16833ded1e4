//! From a policy to a component's exports.

use std::cell::RefCell;

use crate::Policy;

/// Where an instance keeps its policy between `configure` and the questions.
#[doc(hidden)]
pub struct Holder<P>(RefCell<Option<P>>);

impl<P: Policy> Holder<P> {
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    pub fn configure(&self, settings: &str) -> Result<(), String> {
        let settings = serde_json::from_str(settings).map_err(|error| error.to_string())?;
        *self.0.borrow_mut() = Some(P::new(settings)?);
        #[cfg(all(target_arch = "wasm32", feature = "arena"))]
        crate::ALLOCATOR.settle();
        Ok(())
    }

    /// The gateway configures before it asks; without that the guest traps, which is what a broken host deserves.
    pub fn ask<T>(&self, ask: impl FnOnce(&mut P) -> T) -> T {
        let mut policy = self.0.borrow_mut();
        ask(policy.as_mut().expect("configured before it is asked"))
    }
}

impl<P: Policy> Default for Holder<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// Exports a [`Router`](crate::Router) as the component's answer to `route`.
#[macro_export]
macro_rules! router {
    ($policy:ty) => {
        $crate::__export!($policy, router, {
            impl $crate::bindings::router::exports::tidegate::policy::router::Guest for Component {
                fn route() -> $crate::bindings::router::exports::tidegate::policy::router::Answer {
                    POLICY.with(|policy| {
                        policy.ask(|policy| {
                            let answer = $crate::Router::route(
                                policy,
                                &$crate::Request::current(),
                                &mut $crate::Forward::current(),
                            );
                            $crate::bindings::route_answer(answer)
                        })
                    })
                }
            }

            impl $crate::bindings::router::exports::tidegate::policy::prefetched_router::Guest for Component {
                fn route(
                    facts: $crate::bindings::types::Facts,
                ) -> $crate::bindings::router::exports::tidegate::policy::router::Answer {
                    $crate::prefetched::with($crate::bindings::prefetched(facts), || {
                        <Component as $crate::bindings::router::exports::tidegate::policy::router::Guest>::route()
                    })
                }
            }
        });
    };
}

/// Exports a [`Balancer`](crate::Balancer) as the component's answer to `pick`.
#[macro_export]
macro_rules! balancer {
    ($policy:ty) => {
        $crate::__export!($policy, balancer, {
            impl $crate::bindings::balancer::exports::tidegate::policy::balancer::Guest for Component {
                fn pick() -> $crate::bindings::balancer::exports::tidegate::policy::balancer::Choice {
                    POLICY.with(|policy| {
                        policy.ask(|policy| {
                            let choice = $crate::Balancer::pick(
                                policy,
                                &$crate::Request::current(),
                                &$crate::Endpoints::current(),
                            );
                            $crate::bindings::choice(choice)
                        })
                    })
                }
            }

            impl $crate::bindings::balancer::exports::tidegate::policy::prefetched_balancer::Guest for Component {
                fn pick(
                    facts: $crate::bindings::types::Facts,
                ) -> $crate::bindings::balancer::exports::tidegate::policy::balancer::Choice {
                    $crate::prefetched::with($crate::bindings::prefetched(facts), || {
                        <Component as $crate::bindings::balancer::exports::tidegate::policy::balancer::Guest>::pick()
                    })
                }
            }
        });
    };
}

/// Exports a [`Forwarding`](crate::Forwarding) as the component's answer to `identify`.
#[macro_export]
macro_rules! forwarding {
    ($policy:ty) => {
        $crate::__export!($policy, forwarding, {
            impl $crate::bindings::forwarding::exports::tidegate::policy::forwarding::Guest for Component {
                fn identify() {
                    POLICY.with(|policy| {
                        policy.ask(|policy| {
                            $crate::Forwarding::identify(
                                policy,
                                &$crate::Request::current(),
                                &mut $crate::Identity::current(),
                            )
                        })
                    })
                }
            }

            impl $crate::bindings::forwarding::exports::tidegate::policy::prefetched_forwarding::Guest for Component {
                fn identify(facts: $crate::bindings::types::Facts) {
                    $crate::prefetched::with($crate::bindings::prefetched(facts), || {
                        <Component as $crate::bindings::forwarding::exports::tidegate::policy::forwarding::Guest>::identify()
                    })
                }
            }
        });
    };
}

/// Exports a [`Retry`](crate::Retry) as the component's answer to `decide`.
#[macro_export]
macro_rules! retry {
    ($policy:ty) => {
        $crate::__export!($policy, retry, {
            impl $crate::bindings::retry::exports::tidegate::policy::retry::Guest for Component {
                fn decide() -> $crate::bindings::retry::exports::tidegate::policy::retry::Verdict {
                    POLICY.with(|policy| {
                        policy.ask(|policy| {
                            let verdict = $crate::Retry::decide(
                                policy,
                                &$crate::Request::current(),
                                &$crate::Attempt::current(),
                                &$crate::Endpoints::current(),
                            );
                            $crate::bindings::verdict(verdict)
                        })
                    })
                }
            }

            impl $crate::bindings::retry::exports::tidegate::policy::prefetched_retry::Guest for Component {
                fn decide(
                    facts: $crate::bindings::types::Facts,
                ) -> $crate::bindings::retry::exports::tidegate::policy::retry::Verdict {
                    $crate::prefetched::with($crate::bindings::prefetched(facts), || {
                        <Component as $crate::bindings::retry::exports::tidegate::policy::retry::Guest>::decide()
                    })
                }
            }
        });
    };
}

/// Exports a [`TunnelRouter`](crate::TunnelRouter) as the component's answer to `route` of `tunnel-router`.
#[macro_export]
macro_rules! tunnel_router {
    ($policy:ty) => {
        $crate::__export!($policy, tunnel_router, {
            impl $crate::bindings::tunnel_router::exports::tidegate::policy::tunnel_router::Guest for Component {
                fn route() -> $crate::bindings::tunnel_router::exports::tidegate::policy::tunnel_router::Answer {
                    POLICY.with(|policy| {
                        policy.ask(|policy| {
                            let answer = $crate::TunnelRouter::route(policy, &$crate::Connection::current());
                            $crate::bindings::tunnel_answer(answer)
                        })
                    })
                }
            }
        });
    };
}

/// What all export macros share: nothing natively; in a guest the component and its configuration.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($policy:ty, $world:ident, { $($guest:item)* }) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;

            std::thread_local! {
                static POLICY: $crate::Holder<$policy> = const { $crate::Holder::new() };
            }

            impl $crate::bindings::plugin::exports::tidegate::policy::plugin::Guest for Component {
                fn configure(settings: String) -> Result<(), String> {
                    POLICY.with(|policy| policy.configure(&settings))
                }

                fn settings_schema() -> Option<String> {
                    <$policy as $crate::Policy>::settings_schema()
                }
            }

            $($guest)*

            $crate::bindings::plugin::export!(Component with_types_in $crate::bindings::plugin);
            $crate::bindings::$world::export!(Component with_types_in $crate::bindings::$world);
        };
    };
}
