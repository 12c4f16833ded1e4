//! `tidegate plugin bench`: what a component weighs, and what its decision costs.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use tidegate_wasm::Isolation;

use crate::cases::{Asker, Case, Facts, Subject, asked_of};
use crate::misuse;

/// What was measured of a component.
#[derive(Serialize)]
struct Measured {
    /// Bytes of the component.
    size: usize,
    /// Milliseconds that it takes to load without a cache, of which nearly all is compiling.
    compile_ms: f64,
    /// Bytes of linear memory of an instance that is configured.
    memory: usize,
    /// Nanoseconds of a decision by an instance that lives.
    decision_ns: f64,
    /// Of one whose answer is remembered.
    memoised_ns: f64,
    /// Of one by an instance of its own.
    fresh_ns: f64,
}

pub(crate) fn measure(plugin: &Path, cases: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let mut subject = Subject::open(plugin, cases)?;
    // What is kept from before would hide what compiling costs.
    subject.cache = None;
    let asks = |case: &&Case| case.expect.refused.is_none() && case.expect.fault.is_none();
    let case = subject.cases.cases.iter().find(asks);
    let case = case.ok_or_else(|| misuse("none of the cases expects an answer: there is nothing to measure"))?;
    let question = subject.cases.question;
    let facts = Facts::of(case, question)?;
    let mut asker = Asker::new(&subject)?;
    let mut load = |isolation, memoise| {
        asker.load(case, isolation, memoise)?.map_err(|outcome| anyhow::anyhow!("it gives no answer: {outcome:?}"))
    };
    let begun = Instant::now();
    let worker = load(Isolation::Worker, false)?;
    let compile_ms = begun.elapsed().as_secs_f64() * 1e3;
    let memoised = load(Isolation::Worker, true)?;
    let fresh = load(Isolation::Request, false)?;
    let [decision_ns, memoised_ns, fresh_ns] = [&worker, &memoised, &fresh].map(|plugin| {
        nanoseconds(|| {
            std::hint::black_box(asked_of(plugin, question, std::hint::black_box(&facts)));
        })
    });
    let memory = worker.memory_at_start();
    let measured = Measured { size: subject.bytes.len(), compile_ms, memory, decision_ns, memoised_ns, fresh_ns };
    if json {
        println!("{}", serde_json::to_string(&measured)?);
    } else {
        println!("component           {:>12} bytes", measured.size);
        println!("compiled in         {:>12.1} ms", measured.compile_ms);
        println!("an instance's memory{:>12} bytes", measured.memory);
        println!("a decision          {:>12.0} ns", measured.decision_ns);
        println!("  remembered        {:>12.0} ns", measured.memoised_ns);
        println!("  in fresh memory   {:>12.0} ns", measured.fresh_ns);
    }
    Ok(ExitCode::SUCCESS)
}

/// Nanoseconds of one call: the tenth percentile over batches, so that a busy machine disturbs little.
fn nanoseconds(mut call: impl FnMut()) -> f64 {
    let time = |call: &mut dyn FnMut(), least: Duration| {
        let begun = Instant::now();
        let mut calls = 0_u32;
        while calls == 0 || begun.elapsed() < least {
            call();
            calls += 1;
        }
        begun.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    // Warm first: a cold call says nothing of those that follow.
    time(&mut call, Duration::from_millis(100));
    let begun = Instant::now();
    let mut batches = Vec::new();
    while batches.len() < 10 || begun.elapsed() < Duration::from_millis(600) {
        batches.push(time(&mut call, Duration::from_micros(500)));
    }
    batches.sort_by(f64::total_cmp);
    batches[batches.len() / 10]
}
