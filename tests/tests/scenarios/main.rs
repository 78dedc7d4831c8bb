//! Whole-system scenarios: what an honest user does, against the real binaries.

mod authorities;
mod cli;
mod entries;
mod federation;
mod load;
mod mainline;
mod partners;
mod postgres;
mod restart;
mod units;
