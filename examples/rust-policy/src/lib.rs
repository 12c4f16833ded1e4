//! Sends those who asked for it to the beta; for all others the route table decides.

use tidegate_sdk::{Forward, Policy, Request, Route, Router};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beta {
    cluster: String,
}

impl Policy for Beta {
    type Settings = Self;

    fn new(settings: Self) -> Result<Self, String> {
        Ok(settings)
    }
}

impl Router for Beta {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        if request.cookie("beta").as_deref() != Some("yes") {
            return Route::Pass;
        }
        // Refused only if the field were not granted: then it is left out.
        let _ = forward.set_header("x-beta", b"yes");
        Route::Forward(self.cluster.clone())
    }
}

tidegate_sdk::router!(Beta);

#[cfg(test)]
mod tests {
    use tidegate_sdk::testing::{Question, configure};

    use super::*;

    #[test]
    fn the_cookie_decides() {
        let mut policy: Beta = configure(serde_json::json!({ "cluster": "beta" })).expect("settings");
        assert_eq!(Question::get("/").route(&mut policy), Route::Pass);
        let mut asked = Question::get("/").header("cookie", "a=1; beta=yes");
        assert_eq!(asked.route(&mut policy), Route::Forward("beta".to_owned()));
        assert_eq!(asked.edited.headers, [("x-beta".to_owned(), Some(b"yes".to_vec()))]);
    }

    #[test]
    fn settings_that_are_not_known_are_refused() {
        assert!(configure::<Beta>(serde_json::json!({ "clutser": "beta" })).is_err());
    }
}
