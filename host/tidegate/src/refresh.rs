//! Tags of registries looked up again, and the list of what is revoked, while the gateway runs. On the control thread,
//! which sleeps where there is nothing to look at.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_config::Config;

use crate::boot::Control;
use crate::compile::Compiler;
use crate::files::Stamp;
use crate::shipping::refreshed;

/// How often the list's file is looked at. What is revoked must not serve for long.
const REVOKED: Duration = Duration::from_secs(10);

/// For as long as the program runs.
pub(crate) async fn run(control: Arc<Control>) {
    let mut schedule = Schedule::default();
    let mut list = RevokedList::default();
    let mut swaps = control.swaps();
    loop {
        let (config, serves) = control.serves();
        let now = Instant::now();
        schedule.follow(refreshed(&config, |name| serves.plugins.served.contains_key(name)), now);
        let watched = config.registry.revoked.as_ref().filter(|_| !serves.plugins.served.is_empty());
        let next = schedule.next().into_iter().chain(watched.map(|_| now + REVOKED)).min();
        drop((config, serves));
        tokio::select! {
            () = sleep_until(next) => {}
            _ = swaps.changed() => continue,
        }
        let (config, serves) = control.serves();
        let mut names = schedule.due(Instant::now());
        if list.changed(&config) {
            match Compiler::revoked(&config, &serves) {
                Ok(revoked) => names.extend(revoked),
                Err(error) => tracing::error!("the list of what is revoked cannot be used: {error}"),
            }
        }
        if !names.is_empty() {
            let control = control.clone();
            // It waits for registries and compiles; a panic in it is logged, and the next look may be better.
            let _ = tokio::task::spawn_blocking(move || control.refresh_plugins(&names)).await;
        }
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

/// When which version is looked up next, by its name.
#[derive(Default)]
struct Schedule(HashMap<String, (Duration, Instant)>);

impl Schedule {
    /// Takes what is to be refreshed from a configuration. One whose interval stayed keeps its place.
    fn follow(&mut self, wanted: impl Iterator<Item = (String, Duration)>, now: Instant) {
        let mut next = HashMap::new();
        for (name, every) in wanted {
            let known = self.0.get(&name).copied().filter(|(before, _)| *before == every);
            next.insert(name, known.unwrap_or_else(|| (every, now + jittered(every))));
        }
        self.0 = next;
    }

    fn next(&self) -> Option<Instant> {
        self.0.values().map(|(_, when)| *when).min()
    }

    /// Those whose time has come; they have a new one now.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        for (name, (every, when)) in &mut self.0 {
            if *when <= now {
                due.push(name.clone());
                *when = now + jittered(*every);
            }
        }
        due.sort();
        due
    }
}

/// A tenth more or less: gateways that were started together do not come to the registry together for ever.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// The file of revoked digests, as it was looked at last.
#[derive(Default)]
struct RevokedList(Option<(PathBuf, Option<Stamp>)>);

impl RevokedList {
    /// Whether it is another than the last time. The first look counts: it may have changed since it was loaded.
    fn changed(&mut self, config: &Config) -> bool {
        let now = config.registry.revoked.as_ref().map(|file| (file.clone(), Stamp::of(file)));
        let changed = now.is_some() && now != self.0;
        self.0 = now;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_plugin_is_due_at_its_own_time_and_a_reload_does_not_postpone_it() {
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let (ten, hundred) = (Duration::from_secs(10), Duration::from_secs(100));
        let named = |wanted: &[(&str, Duration)]| {
            wanted.iter().map(|(name, every)| ((*name).to_owned(), *every)).collect::<Vec<_>>().into_iter()
        };
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(), None);
        schedule.follow(named(&[("fast", ten), ("slow", hundred)]), begun);
        assert!(schedule.due(at(8)).is_empty());
        // As often as anybody reloads.
        schedule.follow(named(&[("fast", ten), ("slow", hundred)]), at(8));
        assert_eq!(schedule.due(at(11)), ["fast"]);
        assert!(schedule.due(at(11)).is_empty());
        assert!(schedule.next().is_some_and(|next| next > at(19) && next <= at(22)));
        assert_eq!(schedule.due(at(200)), ["fast", "slow"]);
        schedule.follow(named(&[("slow", ten)]), at(200));
        assert_eq!(schedule.due(at(211)), ["slow"], "another interval counts from when it is told");
    }
}
