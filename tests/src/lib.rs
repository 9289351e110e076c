//! What the whole-cluster tests share: a toy job, a simulator of pure cores, clusters in one process or many.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test support: a failure is a panic"
)]

pub mod attacker;
pub mod chromium;
pub mod cluster;
pub mod collector;
pub mod files;
pub mod flood;
pub mod fuzz;
pub mod https;
pub mod kubernetes;
pub mod left;
pub mod liar;
pub mod live;
pub mod machines;
pub mod member;
pub mod nodes;
pub mod openssl;
pub mod outvoted;
pub mod pace;
pub mod page;
pub mod place;
pub mod process;
pub mod proxy;
pub mod python;
pub mod raw;
pub mod receiver;
pub mod serve_process;
pub mod served;
pub mod sim;
pub mod slurm;
pub mod sockets;
pub mod sshd;
pub mod stage;
pub mod through;
pub mod toy;
