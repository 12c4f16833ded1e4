//! Steers kept in step with their clusters: rules follow configurations and health, on the control thread's runtime.
//!
//! [`Steering::settle`] does it: it looks at what is wanted and what is in the kernel, and changes what differs. It is called
//! when a configuration came into force, when a check found an endpoint to be other than it was, and every few seconds:
//! somebody may have flushed the rules, and neighbours change their MAC addresses. It runs `nft` and waits for neighbours, so
//! never on an asynchronous thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_steer::{Claim, ClaimError, TableName, nft, removal};

use crate::boot::Control;
use crate::compile::Steered;

mod one;
mod report;

use one::One;
pub(crate) use report::{EndpointReport, Report};

/// How often the kernel's state is looked at while there are steers.
const LOOK: Duration = Duration::from_secs(5);

/// The steers of this process, and all that they installed. Removed from the kernel when it is dropped.
#[derive(Default)]
pub(crate) struct Steering {
    /// Held while `nft` runs.
    state: Mutex<State>,
    /// As of the last look.
    reports: Mutex<Arc<[Report]>>,
}

#[derive(Default)]
struct State {
    steers: Vec<One>,
    claims: HashMap<String, Claim>,
    /// Nothing is installed any more.
    ended: bool,
}

impl Steering {
    /// Clears what dead processes left behind, and installs the first configuration's steers.
    ///
    /// # Errors
    /// What keeps one of them out of the kernel; whatever was installed goes again.
    pub(crate) fn begin(&self, wanted: &[Steered]) -> anyhow::Result<()> {
        self.claim(wanted)?;
        let swept = sweep(wanted, &lock(&self.state).claims);
        // Without steers nobody asked for nft, and what it lacks is no matter.
        if !wanted.is_empty() {
            swept?;
        }
        self.settle(wanted);
        let failed =
            self.reports().iter().find_map(|report| Some((report.steer.name.clone(), report.failure.clone()?)));
        if let Some((name, failure)) = failed {
            self.end();
            anyhow::bail!("steer {name:?}: {failure}");
        }
        Ok(())
    }

    /// Before a configuration comes into force: its names are to be had, and `nft` may be used.
    pub(crate) fn claim(&self, wanted: &[Steered]) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        if state.claims.is_empty() && !wanted.is_empty() {
            nft::tables()?;
        }
        for steered in wanted {
            claim(&mut state.claims, &steered.steer.name)?;
        }
        Ok(())
    }

    /// Brings the kernel to what is wanted.
    ///
    /// # Returns
    /// When to look again at the latest; `None` where there is nothing to look at.
    pub(crate) fn settle(&self, wanted: &[Steered]) -> Option<Duration> {
        let mut state = lock(&self.state);
        if state.ended {
            return None;
        }
        state.let_go(wanted);
        for steered in wanted {
            if !state.steers.iter().any(|one| one.name() == steered.steer.name) {
                state.steers.push(One::new(steered.clone()));
            }
        }
        if state.steers.is_empty() {
            self.publish(&state);
            return None;
        }
        let now = Instant::now();
        state.count();
        let State { steers, claims, .. } = &mut *state;
        for one in steers {
            let Some(steered) = wanted.iter().find(|steered| steered.steer.name == one.name()) else { continue };
            // What a reload claimed may have been let go by a look in between.
            match claim(claims, one.name()) {
                Ok(()) => one.settle(steered, now),
                Err(error) => one.fail(error.to_string(), now),
            }
        }
        let next = state.steers.iter().filter_map(|one| one.look_in(now)).fold(LOOK, Duration::min);
        self.publish(&state);
        Some(next)
    }

    /// Reads the kernel's counters for the reports.
    pub(crate) fn count(&self) {
        let mut state = lock(&self.state);
        if !state.ended {
            state.count();
            self.publish(&state);
        }
    }

    /// As of the last look, in the order of the configuration.
    pub(crate) fn reports(&self) -> Arc<[Report]> {
        lock(&self.reports).clone()
    }

    fn publish(&self, state: &State) {
        *lock(&self.reports) = state.steers.iter().map(One::report).collect();
    }

    /// Removes all that is installed, for good.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        let tables: Vec<TableName> = state.steers.drain(..).filter_map(|one| one.table()).collect();
        remove(&tables);
        state.claims.clear();
        self.publish(&state);
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    /// Removes steers that are no longer wanted.
    fn let_go(&mut self, wanted: &[Steered]) {
        let named = |name: &str| wanted.iter().any(|steered| steered.steer.name == name);
        let gone: Vec<One> = self.steers.extract_if(.., |one| !named(one.name())).collect();
        let tables: Vec<TableName> = gone.iter().filter_map(One::table).collect();
        remove(&tables);
        self.claims.retain(|name, _| named(name));
    }

    fn count(&mut self) {
        match nft::counters() {
            Ok(mut counters) => {
                for one in &mut self.steers {
                    one.count(|table| counters.remove(table));
                }
            }
            Err(error) => tracing::warn!("steering: cannot read the kernel's counters: {error}"),
        }
    }
}

fn claim(claims: &mut HashMap<String, Claim>, name: &str) -> Result<(), ClaimError> {
    if !claims.contains_key(name) {
        claims.insert(name.to_owned(), Claim::new(name)?);
    }
    Ok(())
}

/// Removes tables; failing is logged, and their names stay for the next start to clear.
fn remove(tables: &[TableName]) {
    if tables.is_empty() {
        return;
    }
    match nft::apply(&removal(tables)) {
        Ok(()) => tables.iter().for_each(|table| tracing::info!(%table, "steer removed from the kernel")),
        Err(error) => tracing::error!("steering: rules stay behind: {error}"),
    }
}

/// Removes the tables of steers whose process is dead. Those that are wanted are replaced within the transaction that installs
/// them, so that packets are steered without a gap.
fn sweep(wanted: &[Steered], claims: &HashMap<String, Claim>) -> Result<(), nft::NftError> {
    let mut left: Vec<TableName> = Vec::new();
    // Held until the tables are gone: nobody may install under these names meanwhile.
    let mut held: HashMap<String, Claim> = HashMap::new();
    for table in nft::tables()? {
        let replaced = wanted.iter().any(|steered| TableName::of(&steered.steer) == table);
        let dead = claims.contains_key(table.steer()) || claim(&mut held, table.steer()).is_ok();
        if dead && !replaced {
            tracing::warn!(%table, "removing the rules of a process that did not stop in order");
            left.push(table);
        }
    }
    if left.is_empty() { Ok(()) } else { nft::apply(&removal(&left)) }
}

/// For as long as the program runs.
pub(crate) async fn run(control: Arc<Control>) {
    let mut swaps = control.swaps();
    let verdicts = control.verdicts();
    let mut next = Some(Duration::ZERO);
    loop {
        let wait = async {
            match next {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            _ = swaps.changed() => {}
            () = verdicts.notified(), if next.is_some() => {}
        }
        let settled = {
            let control = control.clone();
            tokio::task::spawn_blocking(move || control.steering.settle(&control.serves().1.steers)).await
        };
        // A panic in it is logged, and the next look may be better.
        next = settled.unwrap_or(Some(LOOK));
    }
}

/// What panicked while it held one of these left a whole old state behind.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
