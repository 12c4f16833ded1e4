//! `metrics`: what a guest counts itself, on the gateway's page under the plugin's name.

use wasmtime::StoreContextMut;

use super::Instance;
use crate::state::State;
use crate::stats::CustomMetric;

type Store<'a> = StoreContextMut<'a, State>;

pub(super) fn link(linker: &mut Instance<'_>) -> wasmtime::Result<()> {
    linker.func_wrap("add", |mut store: Store<'_>, (name, by): (String, u64)| {
        let state = store.data_mut();
        state.trace.taint();
        state.core.stats.update_custom(&name, CustomMetric::Counter(0), |metric| {
            if let CustomMetric::Counter(count) = metric {
                *count = count.wrapping_add(by);
            }
        });
        Ok(())
    })?;
    linker.func_wrap("set", |mut store: Store<'_>, (name, to): (String, f64)| {
        let state = store.data_mut();
        state.trace.taint();
        state.core.stats.update_custom(&name, CustomMetric::Gauge(0.0), |metric| {
            if let CustomMetric::Gauge(value) = metric {
                *value = to;
            }
        });
        Ok(())
    })?;
    linker.func_wrap("observe", |mut store: Store<'_>, (name, value): (String, f64)| {
        let state = store.data_mut();
        state.trace.taint();
        state.core.stats.update_custom(&name, CustomMetric::Histogram(0, 0.0), |metric| {
            if let CustomMetric::Histogram(count, sum) = metric {
                *count += 1;
                *sum += value;
            }
        });
        Ok(())
    })
}
