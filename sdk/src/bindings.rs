//! The contract's bindings: one world with all facts, and one per question that shares them.

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
            import tidegate:policy/metrics@0.1.0;
        }",
        world: "tidegate:sdk/facts",
        generate_all,
    });
}

/// A question's world, with the facts it shares with the others. The names must be those the world imports: the
/// generator takes no more.
macro_rules! world {
    ($name:ident, $world:literal, $($interface:literal => $module:ident),*) => {
        pub mod $name {
            wit_bindgen::generate!({
                path: "../wit",
                world: $world,
                pub_export_macro: true,
                export_macro_name: "export",
                default_bindings_module: "tidegate_sdk::bindings",
                with: {
                    "tidegate:policy/types@0.1.0": crate::bindings::facts::tidegate::policy::types,
                    "tidegate:policy/request@0.1.0": crate::bindings::facts::tidegate::policy::request,
                    "tidegate:policy/log@0.1.0": crate::bindings::facts::tidegate::policy::log,
                    "tidegate:policy/clock@0.1.0": crate::bindings::facts::tidegate::policy::clock,
                    "tidegate:policy/random@0.1.0": crate::bindings::facts::tidegate::policy::random,
                    "tidegate:policy/metrics@0.1.0": crate::bindings::facts::tidegate::policy::metrics,
                    $($interface: crate::bindings::facts::tidegate::policy::$module),*
                },
            });
        }
    };
}

world!(router, "tidegate:policy/router-plugin@0.1.0",
    "tidegate:policy/connection@0.1.0" => connection, "tidegate:policy/forward@0.1.0" => forward);
world!(balancer, "tidegate:policy/balancer-plugin@0.1.0",
    "tidegate:policy/connection@0.1.0" => connection, "tidegate:policy/endpoints@0.1.0" => endpoints);
world!(forwarding, "tidegate:policy/forwarding-plugin@0.1.0",
    "tidegate:policy/connection@0.1.0" => connection, "tidegate:policy/identity@0.1.0" => identity);
world!(retry, "tidegate:policy/retry-plugin@0.1.0",
    "tidegate:policy/endpoints@0.1.0" => endpoints, "tidegate:policy/attempt@0.1.0" => attempt);

use facts::tidegate::policy::types;

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
