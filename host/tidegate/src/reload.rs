//! `tidegate reload`: the caller's side. What the gateway does is `Control::reload` in `boot`.

use std::process::ExitCode;

use http::{Method, StatusCode};

use crate::{admin_client, cli};

/// Asks the gateway behind `admin` to reload, and passes on what it says. 0: the new configuration serves; 2: it is wrong;
/// 1: it could not be put into force, or nobody answers.
pub(crate) fn ask(admin: &str) -> anyhow::Result<ExitCode> {
    let (status, answer) = admin_client::ask(admin, Method::POST, "/reload")?;
    if status == StatusCode::OK {
        cli::say(&format!("reloaded: generation {}\n", answer["generation"]))?;
        return Ok(ExitCode::SUCCESS);
    }
    for error in answer["errors"].as_array().into_iter().flatten() {
        eprintln!("tidegate: {}", error.as_str().unwrap_or_default());
    }
    eprintln!("tidegate: not reloaded: the old configuration goes on serving");
    let wrong = status == StatusCode::UNPROCESSABLE_ENTITY;
    Ok(if wrong { ExitCode::from(cli::EXIT_CONFIG) } else { ExitCode::FAILURE })
}
