//! What a request costs, beside other proxies: each runs alone on one core, with one worker; load and origin share another.
//! Rounds are interleaved, so that a machine that slows down slows all. What counts is the processor time that a proxy
//! spends on a request: it repeats within some per cent where rates and latencies do not.

pub mod cpu;
pub mod instructions;
pub mod load;
pub mod message;
pub mod origin;
pub mod proxies;
pub mod report;
pub mod run;
pub mod scaling;
pub mod scenarios;
pub mod steering;
