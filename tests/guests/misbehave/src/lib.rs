//! Fails in the way its settings say: what the fault tests load. Built once per question.

use serde::Deserialize;
use tidegate_sdk::{Balancer, Choice, Endpoints, Forward, Policy, Request, Response, Route, Router};

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behave {
    Well,
    Loop,
    Trap,
    Hog,
    UnknownCluster,
    BadStatus,
    BadField,
    OutOfRange,
    Unavailable,
    Count,
    RefuseSettings,
    /// Traps for paths that begin with `/trap`, and only for those.
    TrapOnPath,
    /// Takes its time, well within the limit.
    Slow,
    /// Sends everything to `cluster`.
    Forward,
}

#[derive(Deserialize)]
pub struct Settings {
    behave: Behave,
    #[serde(default)]
    cluster: String,
}

pub struct Misbehave {
    behave: Behave,
    cluster: String,
    asked: u64,
    kept: Vec<Vec<u8>>,
}

impl Policy for Misbehave {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if let Behave::RefuseSettings = settings.behave {
            return Err("these settings are refused on purpose".to_owned());
        }
        Ok(Self { behave: settings.behave, cluster: settings.cluster, asked: 0, kept: Vec::new() })
    }
}

impl Misbehave {
    /// What every question can do wrong.
    fn fail(&mut self) {
        match self.behave {
            Behave::Loop => loop {
                std::hint::spin_loop();
            },
            Behave::Trap => panic!("a trap on purpose"),
            Behave::Hog => loop {
                self.kept.push(vec![1; 1 << 20]);
            },
            Behave::Slow => {
                for step in 0..1_000_000_u32 {
                    std::hint::black_box(step);
                }
            }
            _ => {}
        }
    }
}

impl Router for Misbehave {
    fn route(&mut self, request: &Request, forward: &mut Forward) -> Route {
        self.asked += 1;
        self.fail();
        let respond = |status, headers| Route::Respond(Response { status, headers, body: Vec::new() });
        match self.behave {
            Behave::Forward => Route::Forward(self.cluster.clone()),
            Behave::TrapOnPath if request.path().starts_with("/trap") => panic!("a trap on purpose"),
            Behave::UnknownCluster => Route::Forward("nowhere".to_owned()),
            Behave::BadStatus => respond(999, Vec::new()),
            Behave::BadField => respond(200, vec![("transfer-encoding".to_owned(), b"chunked\r\nx: y".to_vec())]),
            Behave::Count => {
                let _ = forward.set_response_header("x-asked", self.asked.to_string().as_bytes());
                let _ = request.path();
                Route::Pass
            }
            _ => Route::Pass,
        }
    }
}

impl Balancer for Misbehave {
    fn pick(&mut self, _: &Request, endpoints: &Endpoints) -> Choice {
        self.fail();
        match self.behave {
            Behave::OutOfRange => Choice::Endpoint(endpoints.size() + 1000),
            Behave::Unavailable => (0..endpoints.size())
                .find(|i| !endpoints.available(*i))
                .map_or(Choice::Endpoint(u32::MAX), Choice::Endpoint),
            _ => Choice::Pass,
        }
    }
}

#[cfg(not(feature = "balancer"))]
tidegate_sdk::router!(Misbehave);
#[cfg(feature = "balancer")]
tidegate_sdk::balancer!(Misbehave);
