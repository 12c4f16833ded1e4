//! The contract's bindings: one world with all facts, one for configuration, and one per question that shares the facts.
//! A component's own world is what it exports of these, put together when the component is made.

#![allow(missing_docs, clippy::all)]

pub mod facts {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package tidegate:sdk; world facts {
            import tidegate:policy/types@0.1.0; import tidegate:policy/connection@0.1.0;
            import tidegate:policy/request@0.1.0; import tidegate:policy/forward@0.1.0;
            import tidegate:policy/endpoints@0.1.0; import tidegate:policy/identity@0.1.0;
            import tidegate:policy/attempt@0.1.0; import tidegate:policy/log@0.1.0;
            import tidegate:policy/clock@0.1.0; import tidegate:policy/random@0.1.0;
            import tidegate:policy/metrics@0.1.0; import tidegate:policy/kv@0.1.0;
            import tidegate:policy/http-client@0.1.0;
        }",
        world: "tidegate:sdk/facts",
        generate_all,
        // Only questions use `types.facts`.
        generate_unused_types: true,
    });
}

pub mod plugin {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package tidegate:sdk; world plugin-part { export tidegate:policy/plugin@0.1.0; }",
        world: "tidegate:sdk/plugin-part",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "tidegate_sdk::bindings::plugin",
    });
}

/// A question's part of a world. The facts named must be those that its interface uses: the generator takes no more.
macro_rules! question {
    ($name:ident, $world:literal, $inline:literal, $($interface:literal => $module:ident),*) => {
        pub mod $name {
            wit_bindgen::generate!({
                path: "../wit",
                inline: $inline,
                world: $world,
                pub_export_macro: true,
                export_macro_name: "export",
                default_bindings_module: "tidegate_sdk::bindings",
                with: { $($interface: crate::bindings::facts::tidegate::policy::$module),* },
            });
        }
    };
}

question!(router, "tidegate:sdk/router-part",
    "package tidegate:sdk; world router-part { export tidegate:policy/router@0.1.0; export tidegate:policy/prefetched-router@0.1.0; }",
    "tidegate:policy/types@0.1.0" => types);
question!(
    balancer,
    "tidegate:sdk/balancer-part",
    "package tidegate:sdk; world balancer-part { export tidegate:policy/balancer@0.1.0; export tidegate:policy/prefetched-balancer@0.1.0; }",
    "tidegate:policy/types@0.1.0" => types
);
question!(
    forwarding,
    "tidegate:sdk/forwarding-part",
    "package tidegate:sdk; world forwarding-part { export tidegate:policy/forwarding@0.1.0; export tidegate:policy/prefetched-forwarding@0.1.0; }",
    "tidegate:policy/types@0.1.0" => types
);
question!(retry, "tidegate:sdk/retry-part",
    "package tidegate:sdk; world retry-part { export tidegate:policy/retry@0.1.0; export tidegate:policy/prefetched-retry@0.1.0; }",
    "tidegate:policy/types@0.1.0" => types);
question!(
    tunnel_router,
    "tidegate:sdk/tunnel-router-part",
    "package tidegate:sdk; world tunnel-router-part { export tidegate:policy/tunnel-router@0.1.0; }",
);

pub use facts::tidegate::policy::types;

pub fn prefetched(facts: types::Facts) -> crate::prefetched::Facts {
    use crate::prefetched::Facts;
    match facts {
        types::Facts::Words(words) => Facts::Words(<[u64; 12]>::from(words).map(u64::to_le_bytes)),
        types::Facts::Bytes(bytes) => Facts::Bytes(bytes),
    }
}

pub fn route_answer(route: crate::Route) -> router::exports::tidegate::policy::router::Answer {
    use router::exports::tidegate::policy::router::Answer;
    match route {
        crate::Route::Pass => Answer::Pass,
        crate::Route::Forward(cluster) => Answer::Forward(cluster),
        crate::Route::Respond(response) => Answer::Respond(types::Response {
            status: response.status,
            headers: response.headers.into_iter().map(|(name, value)| types::Field { name, value }).collect(),
            body: response.body,
        }),
    }
}

pub fn choice(choice: crate::Choice) -> balancer::exports::tidegate::policy::balancer::Choice {
    use balancer::exports::tidegate::policy::balancer::Choice;
    match choice {
        crate::Choice::Pass => Choice::Pass,
        crate::Choice::Endpoint(index) => Choice::Endpoint(index),
        crate::Choice::Hash(key) => Choice::Hash(key),
        crate::Choice::None => Choice::None,
    }
}

pub fn verdict(verdict: crate::Verdict) -> retry::exports::tidegate::policy::retry::Verdict {
    use retry::exports::tidegate::policy::retry::Verdict;
    let nanos = |pause: std::time::Duration| u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
    match verdict {
        crate::Verdict::Stop => Verdict::Stop,
        crate::Verdict::Again(pause) => Verdict::Again(nanos(pause)),
        crate::Verdict::Elsewhere(pause) => Verdict::Elsewhere(nanos(pause)),
    }
}

pub fn tunnel_answer(route: crate::TunnelRoute) -> tunnel_router::exports::tidegate::policy::tunnel_router::Answer {
    use tunnel_router::exports::tidegate::policy::tunnel_router::Answer;
    match route {
        crate::TunnelRoute::Pass => Answer::Pass,
        crate::TunnelRoute::Forward(cluster) => Answer::Forward(cluster),
        crate::TunnelRoute::Refuse => Answer::Refuse,
    }
}
