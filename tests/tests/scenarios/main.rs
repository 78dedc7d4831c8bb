//! Whole-system scenarios: what an honest user does, against the real binaries.

mod cli;
mod entries;
mod load;
mod mainline;
mod postgres;
mod restart;
mod units;
