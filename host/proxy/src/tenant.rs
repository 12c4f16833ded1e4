//! Tenants, as exchanges see them: a bound on requests in flight, and turns.
//!
//! A decision is made at once, on the worker's thread: while a guest runs, everybody else on that worker waits. One
//! decision has its limit, but a hundred of one tenant in a row would be a hundred limits for its neighbour. So a tenant
//! takes turns: once its guests took [`TURN`] of the worker's time, its other exchanges wait until the event loop has been
//! round, everybody who was ready has run and the sockets were looked at. Nobody else waits for more than the decision
//! that is being made. Guests of the usual kind take microseconds, and then nobody waits at all.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tidegate_policy::Breaker;
use tokio::sync::Notify;

/// A tenant of one configuration; its counts go on over reloads.
pub struct Tenant {
    pub name: Arc<str>,
    /// Bounds its requests in flight, over all workers.
    pub requests: Breaker,
}

/// Whose a cluster is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Owner {
    /// The gateway's own: no tenant may name it.
    Gateway,
    /// Every tenant's.
    Shared,
    Tenant(Arc<str>),
}

impl Owner {
    /// Whether the routers of a tenant's routes may name what is this owner's. The gateway's own may name anything.
    pub fn serves(&self, tenant: Option<&Tenant>) -> bool {
        match (tenant, self) {
            (None, _) | (_, Self::Shared) => true,
            (Some(tenant), Self::Tenant(owner)) => tenant.name == *owner,
            (Some(_), Self::Gateway) => false,
        }
    }
}

/// What a tenant's guests may take of a worker before others have had theirs.
const TURN: Duration = Duration::from_micros(250);

/// A tenant in one round of the event loop.
#[derive(Default)]
struct Line {
    took: Cell<Duration>,
    waiting: Cell<usize>,
    next: Notify,
}

impl Line {
    fn had_its_turn(&self) -> bool {
        self.took.get() >= TURN
    }
}

/// The tenants of one worker.
#[derive(Default)]
pub(crate) struct Turns {
    lines: RefCell<FxHashMap<Arc<str>, Rc<Line>>>,
    over: Notify,
}

/// Between its guests' questions, no other exchange of the tenant is let in.
pub(crate) struct Turn(Rc<Line>);

impl Drop for Turn {
    fn drop(&mut self) {
        if self.0.waiting.get() > 0 && !self.0.had_its_turn() {
            self.0.next.notify_one();
        }
    }
}

impl Turns {
    fn line(&self, tenant: &Tenant) -> Rc<Line> {
        let mut lines = self.lines.borrow_mut();
        match lines.get(&tenant.name) {
            Some(line) => line.clone(),
            None => lines.entry(tenant.name.clone()).or_default().clone(),
        }
    }

    /// The tenant's turn, if it has one now.
    pub(crate) fn now(&self, tenant: &Tenant) -> Option<Turn> {
        let line = self.line(tenant);
        (!line.had_its_turn() && line.waiting.get() == 0).then(|| Turn(line))
    }

    /// The tenant's turn, as soon as it has one.
    pub(crate) async fn take(&self, tenant: &Tenant) -> Turn {
        match self.now(tenant) {
            Some(turn) => turn,
            None => self.wait(tenant).await,
        }
    }

    /// Waits for it, behind those of the tenant who came before.
    pub(crate) async fn wait(&self, tenant: &Tenant) -> Turn {
        struct Waiting<'a>(&'a Line);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.waiting.set(self.0.waiting.get() - 1);
            }
        }
        let line = self.line(tenant);
        line.waiting.set(line.waiting.get() + 1);
        {
            let _waiting = Waiting(&line);
            loop {
                line.next.notified().await;
                if !line.had_its_turn() {
                    break;
                }
            }
        }
        Turn(line)
    }

    /// A guest of the tenant took this much of the worker's time.
    pub(crate) fn took(&self, tenant: &Tenant, time: Duration) {
        let line = self.line(tenant);
        let before = line.had_its_turn();
        line.took.set(line.took.get() + time);
        if !before && line.had_its_turn() {
            self.over.notify_one();
        }
    }

    /// Ends the rounds in which somebody had a turn. One task of the worker runs it.
    pub(crate) async fn drive(&self) {
        loop {
            self.over.notified().await;
            // Behind all that is ready now; the runtime looks at its sockets before it comes back.
            tokio::task::yield_now().await;
            self.lines.borrow_mut().retain(|_, line| {
                line.took.set(Duration::ZERO);
                if line.waiting.get() > 0 {
                    line.next.notify_one();
                }
                Rc::strong_count(line) > 1
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Rc<Tenant> {
        Rc::new(Tenant { name: name.into(), requests: Breaker::default() })
    }

    /// A runtime as a worker has it.
    fn on_a_worker(test: impl AsyncFnOnce(Rc<Turns>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let turns = Rc::new(Turns::default());
            let driven = turns.clone();
            tokio::task::spawn_local(async move { driven.drive().await });
            test(turns).await;
        });
    }

    #[test]
    fn a_queue_of_one_tenant_lets_the_neighbour_in_after_one_decision() {
        on_a_worker(async |turns| {
            let (greedy, modest) = (tenant("greedy"), tenant("modest"));
            let order = Rc::new(RefCell::new(Vec::new()));
            let decide = |tenant: &Rc<Tenant>, time: Duration| {
                let (turns, tenant, order) = (turns.clone(), tenant.clone(), order.clone());
                tokio::task::spawn_local(async move {
                    let turn = turns.take(&tenant).await;
                    order.borrow_mut().push(tenant.name.clone());
                    turns.took(&tenant, time);
                    drop(turn);
                })
            };
            let mut tasks: Vec<_> = (0..100).map(|_| decide(&greedy, Duration::from_millis(5))).collect();
            // Ready behind a hundred others.
            tasks.push(decide(&modest, Duration::from_micros(3)));
            for task in tasks {
                task.await.expect("no panic");
            }
            let order = order.borrow();
            assert_eq!(order.len(), 101);
            assert_eq!(order.iter().position(|name| **name == *"modest"), Some(1), "behind one decision");
        });
    }

    #[test]
    fn quick_guests_share_a_round_and_nobody_is_left_waiting() {
        on_a_worker(async |turns| {
            let tenant = tenant("a");
            turns.took(&tenant, TURN);
            let done = Rc::new(Cell::new(0));
            let tasks: Vec<_> = (0..500)
                .map(|index| {
                    let (turns, tenant, done) = (turns.clone(), tenant.clone(), done.clone());
                    tokio::task::spawn_local(async move {
                        let turn = turns.take(&tenant).await;
                        // Some ask no guest at all.
                        if index % 3 != 0 {
                            turns.took(&tenant, Duration::from_micros(20));
                        }
                        drop(turn);
                        done.set(done.get() + 1);
                    })
                })
                .collect();
            // Exchanges whose client left while they waited.
            tasks.iter().step_by(7).for_each(|task| task.abort());
            for task in tasks {
                let _ = task.await;
            }
            assert!(done.get() >= 400, "{}", done.get());
            tokio::task::yield_now().await;
            assert!(turns.now(&tenant).is_some());
        });
    }

    #[test]
    fn a_cluster_serves_its_owner_and_what_is_shared_everybody() {
        let (a, own) = (tenant("a"), Owner::Tenant("a".into()));
        let b = tenant("b");
        assert!(own.serves(Some(&a)) && own.serves(None) && !own.serves(Some(&b)));
        assert!(Owner::Shared.serves(Some(&b)) && !Owner::Gateway.serves(Some(&b)) && Owner::Gateway.serves(None));
    }
}
